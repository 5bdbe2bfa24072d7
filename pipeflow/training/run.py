"""A whole run, the same on every worker: from a configuration to a finished run folder.

open the folder -> data, flow, parts, workers -> initialise or resume
  -> [ coordinator's next phase -> train -> evaluate -> checkpoint ]*   with the gather where the local phases end
  -> test bits/dim of all images, model, samples, plots, summary
"""

import contextlib
import dataclasses
import errno
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeflow.config import Config
from pipeflow.data import Batches, ImageData, load_data
from pipeflow.data.random import generator
from pipeflow.device import peak_memory
from pipeflow.errors import CheckpointError, ConfigError, Preempted, TrainingStopped
from pipeflow.flow import Flow, build_flow, cut_names, split_flow
from pipeflow.flow.layers import NoInverse
from pipeflow.flow.timing import layer_seconds
from pipeflow.links.link import Stopped
from pipeflow.rundir.checkpoint import Checkpoints
from pipeflow.rundir.folder import RunFolder
from pipeflow.rundir.model import save_flow
from pipeflow.rundir.records import Carried, Manifest, Position
from pipeflow.training.entries import Entries
from pipeflow.training.losses import Losses
from pipeflow.training.recorder import Recorder
from pipeflow.training.saver import Saver
from pipeflow.training.schedule import Phase, Schedule, Stop
from pipeflow.training.stages import Stages
from pipeflow.use.likelihood import exit_bits_per_dim
from pipeflow.use.sample import to_images
from pipeflow.workers.trace import gather_spans
from pipeflow.workers.world import World, join_workers

SAMPLE_TEMPERATURE = 0.7
"""Of the grid of samples that a run leaves."""


def train(
    config: Config,
    flow: Flow | None = None,
    data: ImageData | None = None,
    report: Callable[[dict], None] | None = None,
) -> dict:
    """Trains as the configuration says, as one of the workers that the launcher started; the run's summary.

    flow: a flow of one's own instead of `model.name`. With several workers each builds it, to the same values: under
    `torch.manual_seed`. data: images of one's own instead of `data.name`. report: is called by every worker, also by
    those that wait out the fine-tuning, after each epoch and its checkpoint, and at the end: on rank 0 with
    `{"event": "epoch", **record}` and `{"event": "end", **summary}`, as they stand in `summary.json`, elsewhere with an
    empty dict. It may wait for the other workers' calls; nothing is sent for it.

    Raises PipeflowError for whatever the user can mend; `reported` tells whether another worker has reported it. On
    SIGTERM the run is saved, and Preempted raised; a process that has not come so far after `checkpoint.grace_s` is ended.
    """
    config = _name_what_is_given(config, flow, data)
    with join_workers(config) as world, _disk_errors_in_words(config), Run(world, config, flow, data) as run:
        return run.execute(report or (lambda event: None))


@contextlib.contextmanager
def _disk_errors_in_words(config: Config) -> Iterator[None]:
    """Raises a full, broken or read-only disk as a CheckpointError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _is_of_the_disk(error):
            raise
        raise CheckpointError(
            f"run.dir: {config.run.dir}: {error}. Free some space, then start the same command again to resume: "
            f"{Checkpoints(config.run.dir, config.checkpoint.keep).last_good()}."
        ) from None


def _is_of_the_disk(error: Exception) -> bool:
    """Whether a full, broken or read-only disk is what is wrong."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
    return getattr(error, "errno", None) in numbers or any(f"os error {number}" in str(error) for number in numbers)


def _name_what_is_given(config: Config, flow: Flow | None, data: ImageData | None) -> Config:
    """The configuration with `python` for the names of what was given, so that nobody takes another flow or data for it.

    Raises ConfigError where it says `python` and nothing was given.
    """
    for section, given in (("model", flow), ("data", data)):
        named = getattr(config, section)
        if given is not None:
            config = dataclasses.replace(config, **{section: dataclasses.replace(named, name="python")})
        elif named.name == "python":
            argument = {"model": "flow", "data": "data"}[section]
            raise ConfigError(f"{section}.name: python, but train(config, {argument}=...) was given none.")
    return config


class _Interrupted(Exception):
    """The run was asked to leave, and all workers know it at the same point."""


@dataclasses.dataclass(frozen=True)
class _Inside:
    """A point inside an epoch, or behind its training and before the end of its evaluation."""

    step: int
    losses: Losses
    """This worker's, up to here."""
    carried: Carried | None
    """What the epoch's record will need of the time until here, on rank 0."""


class Run:
    """One worker's view of the run."""

    def __init__(self, world: World, config: Config, flow: Flow | None, data: ImageData | None):
        self.world = world
        self.control = world.control
        self.config = config
        self.folder = RunFolder(config)
        self.is_main = world.rank == 0
        self._memory_before = peak_memory(world.device)
        with contextlib.ExitStack() as resources:
            resources.callback(self.folder.close)
            self.manifest = self._open_folder()
            self._resumed_from = self.manifest
            position = self.manifest and self.manifest.position
            self._saved = (self.manifest.epoch if self.manifest else 0, position.step if position else 0)
            self._set_up(flow, data)
            resources.callback(self.recorder.close)
            entries = Entries(world.connect_store(), world.rank, world.traffic)
            self.saver = Saver(self.folder.checkpoints, world.rank, entries, world.alarm)
            resources.callback(self.saver.close)
            self._resources = resources.pop_all()

    def _set_up(self, flow: Flow | None, data: ImageData | None) -> None:
        world, config = self.world, self.config
        self.batches = self._load_data(data) if self.is_main else None
        info = self.batches and {
            "shape": list(self.batches.data.shape),
            "steps": self.batches.steps_per_epoch,
            "num_test": len(self.batches.data.test),
        }
        info = self.control.broadcast(info, "the data's shape")
        self.num_test = info["num_test"]
        self.flow = self._build_flow(flow, tuple(info["shape"]))
        self.parts = self._split()
        self.schedule = Schedule(config, len(self.parts), info["steps"])
        self._check_timeline(info["steps"])
        self.recorder = Recorder(config, self.folder, self.parts, world, self.manifest)
        self.stages = Stages(
            world, config, self.flow, self.parts, self.schedule, self.batches, self.folder.checkpoints, self.manifest
        )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._resources.close()

    def execute(self, report: Callable[[dict], None]) -> dict:
        """Runs to the end; the summary, on every worker. report: as `train` takes it."""
        # Until here there is nothing to save, and SIGTERM just ends the process: it may wait for one that is gone already.
        self.stages.start(next_is_local=len(self.recorder.history) < self.config.num_local_epochs)
        with self.world.notice.listening(self.config.checkpoint.grace_s, self.folder.checkpoints.last_good):
            try:
                return self._execute(report)
            except _Interrupted:
                self._wait_for_checkpoint()
                self.control.share("saved", "the checkpoint")  # nobody leaves before the checkpoint is whole
                raise self._preempted() from None

    def _execute(self, report: Callable[[dict], None]) -> dict:
        recorder = self.recorder
        if self.is_main:
            self._resources.enter_context(recorder.shown(lambda: self.stages.worker.progress))
        never = [part.index for part in self.parts if not self.schedule.num_updates(part.index)]
        if never and self.config.num_local_epochs:
            recorder.say(f"parts {never} get no update before the gather: schedule.local_epochs is too short for them")
        if self.manifest is None:
            initial = self._evaluate(-1, self._num_eval_images())
            recorder.started(initial, self._collect(None)[1])
        phase = self._next_phase()
        while phase is not None:
            if not phase.is_local and self.stages.name == "local":
                self._gather()
            interrupted = self._run_phase(phase)
            if interrupted is not None:
                self._save_inside(phase.epoch, interrupted)
                raise _Interrupted
            # A stop comes before the checkpoint: were it saved, each resume would only meet the stop again.
            following = self._next_phase()
            if phase.checkpoint:
                self._checkpoint(phase.epoch + 1)
            report({"event": "epoch", **recorder.history[-1].to_json()} if self.is_main else {})
            phase = following
        summary = self.control.broadcast(self._finish(), "the end of the run")
        report({"event": "end", **summary} if self.is_main else {})
        return summary

    # --- setting up ---------------------------------------------------------------------------------------------------

    def _open_folder(self) -> Manifest | None:
        """The manifest to resume from, on every worker, once all have been seen to share the folder."""
        opened = None
        if self.is_main:
            manifest, notes = self.folder.open()
            opened = [manifest and manifest.to_json(), notes, self.folder.show_token()]
            for note in notes:
                print(note, flush=True)
        manifest, _, token = self.control.broadcast(opened, "the run folder")
        blind = [
            rank
            for rank, sees in enumerate(self.control.gather(self.folder.sees(token), "a look at the run folder"))
            if not sees
        ]
        if self.is_main:
            self.folder.remove_token(token)
            if blind:
                raise CheckpointError(
                    f"run.dir: {self.folder.path} of rank 0 is not seen by worker {blind[0]}: choose a folder that all "
                    f"workers share, by its full path."
                )
        return manifest and Manifest.from_json(manifest)

    def _load_data(self, data: ImageData | None) -> Batches:
        data = load_data(self.config.data) if data is None else data
        return Batches(data, self.config.run.seed, self.config.optim.batch_size, self.config.data.flip)

    def _build_flow(self, flow: Flow | None, shape: tuple[int, ...]) -> Flow:
        if flow is None:
            return build_flow(self.config, shape)
        if flow.shape != shape:
            raise ConfigError(f"flow: made for images of shape {flow.shape}, but the data has {shape}.")
        values = [float(parameter.detach().double().sum()) for parameter in flow.parameters()]
        if any(theirs != values for theirs in self.control.share(values, "the flow's values")):
            raise ConfigError("flow: its initial values differ between workers: build it under torch.manual_seed(...).")
        return flow

    def _check_timeline(self, num_steps: int) -> None:
        """Raises ConfigError where the batches to be recorded are not there."""
        asked = self.config.timeline
        if asked.steps and (asked.epoch >= self.config.num_epochs or asked.first_step + asked.steps > num_steps):
            raise ConfigError(
                f"timeline.steps: {asked.steps} batches from number {asked.first_step} of epoch {asked.epoch}, but there "
                f"are {self.config.num_epochs} epochs of {num_steps} batches: record others (timeline.first_step, "
                f"timeline.epoch)."
            )

    def _split(self) -> list:
        config = self.config
        cuts = self._cuts()
        config.check_world_size(self.world.size, num_parts=len(cuts) + 1)
        return split_flow(self.flow, cuts, config.parts.head, config.memory.activations)

    def _cuts(self) -> list[str]:
        """Where the parts begin. Timed cuts of a run that is resumed stay: times would not come out the same again."""
        split, num = self.config.parts.split, self.config.parts.num
        if split != "balanced" or self.config.parts.balance == "macs":
            return cut_names(self.flow, split, num)
        before = self.manifest
        timed = {"split": split, "num": num, "balance": "time"}
        was_timed = before and before.config and timed.items() <= before.config["parts"].items()
        cuts = list(before.cuts) if was_timed and before.cuts is not None else None
        if cuts is None:
            if self.is_main:
                costs = layer_seconds(self.flow, self.world.device, self.config.optim.batch_size)
                cuts = cut_names(self.flow, split, num, costs)
            cuts = self.control.broadcast(cuts, "the cuts")
        return cuts

    # --- phases -------------------------------------------------------------------------------------------------------

    def _next_phase(self) -> Phase | None:
        """The coordinator's decision, made on rank 0."""
        answer = None
        if self.is_main:
            decision = self.schedule.next_phase(self.recorder.history)
            if isinstance(decision, Stop):
                raise self._stopped(decision.reason)
            answer = decision and decision.to_json()
        answer = self.control.broadcast(answer, "the next phase")
        return answer and Phase.from_json(answer)

    def _run_phase(self, phase: Phase) -> _Inside | None:
        """Trains and evaluates; where it was interrupted, if it was."""
        recorder = self.recorder
        recorder.phase_begins(phase)
        first_step, before = self._take_position()
        start = time.perf_counter()
        worker = self.stages.worker
        try:
            trained = worker.train(phase, first_step, before)
        except TrainingStopped as error:
            raise self._stopped(str(error)) from None
        collected, traffic = self._collect(
            [trained.losses.means(), worker.busy_seconds, worker.cpu_seconds, trained.stopped_at],
            f"the losses of epoch {phase.epoch}",
        )
        losses, busy, cpu, stops = zip(*collected) if self.is_main else ((), (), (), ())
        stopped_at = self.control.broadcast(
            next((step for step in stops if step is not None), None), "whether the run stops here"
        )
        if stopped_at is not None:
            carried = recorder.phase_interrupted(phase, time.perf_counter() - start, traffic)
            return _Inside(stopped_at, trained.losses, carried)
        recorder.phase_trained(phase, self._merge_losses(losses), time.perf_counter() - start, busy, cpu, traffic)
        if self.world.timeline.wanted(phase.epoch):
            self.recorder.timeline(gather_spans(self.world.timeline, self.control))
        try:
            self._evaluate_phase(phase)
        except _Interrupted:
            carried = recorder.phase_interrupted(phase, 0.0, self._collect(None)[1])
            return _Inside(phase.steps, trained.losses, carried)
        recorder.phase_ends()
        return None

    def _evaluate_phase(self, phase: Phase) -> None:
        recorder = self.recorder
        if phase.evaluate:
            start = time.perf_counter()
            result = self._evaluate(phase.epoch, self._num_eval_images())
            recorder.evaluated(result, time.perf_counter() - start, self._collect(None)[1])
        if phase.epoch == self.config.num_local_epochs - 1 and phase.epoch < self.config.num_epochs - 1:
            start = time.perf_counter()
            result = self._evaluate(phase.epoch, self.num_test)
            recorder.local_ended(result, time.perf_counter() - start, self._collect(None)[1])

    def _gather(self) -> None:
        start = time.perf_counter()
        self.stages.gather()
        _, traffic = self._collect(None)
        self.recorder.gathered(time.perf_counter() - start, traffic)

    def _checkpoint(self, epoch: int, position: Position | None = None) -> None:
        """Begins to save all that a run is, after `epoch` epochs, and the batches of the next that `position` tells of."""
        start = time.perf_counter()
        recorder, step, counts = self.recorder, 0 if position is None else position.step, None
        if self.stages.takes_part:
            tensors, counts = self.stages.state()
            self.saver.take(tensors)
        collected, traffic = self._collect(counts, f"the checkpoint after {epoch} epochs")
        merged = {owner: count for each in collected for owner, count in (each or {}).items()}
        manifest = recorder.checkpoint(epoch, self.stages.name, merged, traffic, position)
        if self.is_main:
            writers = [rank for rank, each in enumerate(collected) if each is not None]
            self.saver.save(epoch, step, writers, manifest, recorder.log.sync)
        elif self.stages.takes_part:
            self.saver.save(epoch, step)
        self._saved = (epoch, step)
        recorder.waited_for_checkpoint(time.perf_counter() - start)

    def _wait_for_checkpoint(self) -> None:
        """Until the last one is whole, as rank 0 sees it; elsewhere until this worker's file is on the disk."""
        start = time.perf_counter()
        self.saver.wait()
        self.recorder.waited_for_checkpoint(time.perf_counter() - start)

    # --- preemption ---------------------------------------------------------------------------------------------------

    def _save_inside(self, epoch: int, inside: _Inside) -> None:
        """A checkpoint in the middle of an epoch, unless the one that the run came from or wrote last is as far."""
        if (epoch, inside.step) != self._saved:
            losses, _ = self._collect(inside.losses.values(), "the losses so far")
            replicas = self.stages.replicas.size
            position = Position(step=inside.step, losses=tuple(losses), replicas=replicas, carried=inside.carried)
            self._checkpoint(epoch, position if inside.step else None)

    def _take_position(self) -> tuple[int, dict[str, list[float]]]:
        """Where in its epoch the run goes on, and this worker's losses of the batches before.

        Losses of parts that were cut otherwise, or of another share of each batch, are not this run's.
        """
        manifest, self._resumed_from = self._resumed_from, None
        if manifest is None or manifest.position is None:
            return 0, {}
        position = manifest.position
        replicas = self.stages.replicas
        same = manifest.cuts == tuple(part.names[0] for part in self.parts[1:]) and manifest.stage == self.stages.name
        if not same or position.replicas != replicas.size:
            self.recorder.forget_carried()
            return position.step, {}
        held = {str(trainer.part.index) for trainer in self.stages.worker.trainers}
        mine = [of for rank, of in enumerate(position.losses) if rank % replicas.size == replicas.index]
        return position.step, {part: list(each) for of in mine for part, each in of.items() if part in held}

    def _preempted(self) -> Preempted:
        sender = self.world.notice.from_rank  # None: it was stopped before it was told by whom
        at = "" if sender is None else f" at worker {sender}"
        return Preempted(
            f"preempted (SIGTERM{at}): nothing that was trained is lost, "
            f"{self.folder.checkpoints.last_good()}. Start the same command again to resume."
        )

    def _collect(self, value: Any, what: str = "the bytes sent") -> tuple[list, list]:
        """Everybody's values on rank 0, and the bytes that all have sent since the last call."""
        collected = self.control.gather([value, self.world.traffic.drain()], what)
        return [value for value, _ in collected], [entry for _, traffic in collected for entry in traffic]

    def _merge_losses(self, losses: list[dict[str, float]]) -> dict[str, float]:
        """Mean loss by part; of replicas the mean over the whole batch."""
        merged: dict[str, float] = {}
        for rank, each in enumerate(losses):
            weight = self.stages.replicas.weight(self.config.optim.batch_size, rank)
            for part, loss in each.items():
                key = "flow" if self.stages.name == "whole" else part
                merged[key] = merged.get(key, 0.0) + weight * loss
        return merged

    def _stopped(self, reason: str) -> TrainingStopped:
        self.saver.close()  # the checkpoint that is being written may be the last good one
        return TrainingStopped(
            f"{reason}: stopped all workers, {self.folder.checkpoints.last_good()}. Resume with a lower optim.lr or with "
            f"optim.clip_norm."
        )

    # --- evaluation and the end ---------------------------------------------------------------------------------------

    def _num_eval_images(self) -> int:
        return min(self.config.eval.num_images or self.num_test, self.num_test)

    def _evaluate(self, epoch: int, num_images: int) -> dict:
        """Test bits/dim of the whole flow and exit bits/dim of the parts, with averaged weights where there are any."""
        result = {}
        if self.config.optim.ema > 0:
            result["test_bpd_raw"] = self._evaluate_once(epoch, num_images)["test_bpd"]
        with self.stages.averaged():
            return {**self._evaluate_once(epoch, num_images), **result}

    def _evaluate_once(self, epoch: int, num_images: int) -> dict:
        sums, stopped = {}, False
        if self.stages.takes_part:
            try:
                sums = self.stages.worker.evaluate(epoch, num_images)
            except Stopped:
                stopped = True
        everyone = self.control.gather(sums, f"the evaluation of epoch {epoch}")
        if self.control.broadcast(self.is_main and stopped, "whether the run stops here"):
            raise _Interrupted
        if not self.is_main:
            return {"test_bpd": None, "exit_bpd": None}
        merged = {int(part): values for each in everyone for part, values in each.items()}
        exits = exit_bits_per_dim([merged[part] for part in sorted(merged)], num_images, self.flow.num_dims)
        return {"test_bpd": exits[-1], "exit_bpd": exits if self.stages.name == "local" else None}

    def _finish(self) -> dict | None:
        """The last evaluation, the model, samples, plots and the summary, unless they are there already."""
        done = self.control.broadcast(self.is_main and self.recorder.is_finished(), "the end of the run")
        if done:
            self.stages.close_links()
            self.recorder.say(f"the run in {self.folder.path} has ended already: nothing to do")
            summary = self.folder.summary() if self.is_main else None
            return summary and summary.to_json()
        start = time.perf_counter()
        result = self._evaluate(self.config.num_epochs, self.num_test)
        memory, traffic = self._collect([self._memory_before, peak_memory(self.world.device)], "the memory used")
        self.recorder.final(result, memory, time.perf_counter() - start, traffic)
        self._wait_for_checkpoint()
        if self.stages.name == "local":
            self._gather()
        if not self.is_main:
            return None
        with self.stages.averaged(), torch.no_grad():
            save_flow(self.flow, self.folder.path)
            return self.recorder.finish(self._sample()).to_json()

    def _sample(self) -> Tensor | None:
        """Images for the grid of samples; None for a flow that has no inverse."""
        try:
            noise = generator(self.config.run.seed, "samples")
            return to_images(self.flow.sample(64, noise, SAMPLE_TEMPERATURE))
        except NoInverse as error:
            self.recorder.say(f"no samples: {error}")
            return None
