"""One worker's run: the steps of which `train` makes the story. All workers take them together."""

import contextlib
import time
from typing import Any

from pipeflow.config import Config
from pipeflow.data import ImageData
from pipeflow.device import peak_memory
from pipeflow.errors import Preempted, TrainingStopped
from pipeflow.flow import Flow
from pipeflow.links.link import Stopped
from pipeflow.rundir.folder import RunFolder
from pipeflow.rundir.records import Position, Summary
from pipeflow.rundir.resuming import check_images, check_labels, ended, next_commands, rate_option, with_its_heads
from pipeflow.training.entries import Entries
from pipeflow.training.interruption import Inside, Interrupted, position_of, resume_inside
from pipeflow.training.labels import Labels, given_label
from pipeflow.training.losses import Losses, merge_means
from pipeflow.training.opening import Images, check_timeline, load_initial, make_flow, make_parts, open_folder
from pipeflow.training.recorder import Recorder
from pipeflow.training.results import leave_results
from pipeflow.training.sampling import draw_beside_data
from pipeflow.training.saver import Saver
from pipeflow.training.schedule import Phase, Schedule, Stop, resumed_at
from pipeflow.training.stages import Stages
from pipeflow.training.totals import Evaluated
from pipeflow.units import count_text
from pipeflow.use.likelihood import exit_bits_per_dim
from pipeflow.workers import parent
from pipeflow.workers.trace import gather_spans
from pipeflow.workers.world import World


class Run:
    """One worker's view of the run. A context: it holds the run folder."""

    def __init__(self, world: World, config: Config, flow: Flow | None, data: ImageData | None):
        """Opens the folder and brings together what the run is made of. flow, data: as `train` takes them."""
        self.world, self.control, self.config = world, world.control, config
        self.folder = RunFolder(config)
        self.is_main = world.rank == 0
        self._memory_before = peak_memory(world.device)
        with contextlib.ExitStack() as resources:
            resources.callback(self.folder.close)
            self.manifest = manifest = open_folder(world, self.folder)
            self._saved = (0, 0) if manifest is None else (manifest.epoch, manifest.step)
            """Epochs, and batches of the next, that the newest checkpoint has."""
            self._is_first_phase = True
            self._last_losses: Losses
            images = Images(world, config, data)
            check_images(self.folder.path, manifest, config, images.info.fingerprint)
            self.num_test = images.info.num_test
            self.flow = make_flow(world, config, flow, images.info.values)
            self.given_label = given_label(self.flow, images.info)
            check_labels(self.folder.path, manifest, self.given_label)
            if manifest is None and config.model.init is not None:
                load_initial(world, config.model.init, self.flow)
            self.parts = make_parts(world, config, self.flow, manifest)
            num_steps = images.info.num_train // config.optim.batch_size
            self.schedule = Schedule(config, len(self.parts), num_steps, *resumed_at(manifest, self.parts))
            check_timeline(config, num_steps)
            checkpoints, fingerprint = self.folder.checkpoints, images.info.fingerprint
            self.recorder = Recorder(
                config, self.folder, self.parts, world, manifest, self.schedule, fingerprint, self.given_label
            )
            resources.callback(self.recorder.close)
            labels = Labels(world, images, config.run.seed, config.optim.batch_size)
            self.stages = Stages(
                world,
                config,
                self.flow,
                self.parts,
                self.schedule,
                images.batches,
                labels,
                checkpoints,
                manifest and with_its_heads(manifest, config),
            )
            resources.callback(self.stages.close_images)
            entries = Entries(world.connect_store(), world.rank, world.traffic)
            self.saver = Saver(checkpoints, world.rank, entries, world.alarm)
            resources.callback(self.saver.close)
            self._resources = resources.pop_all()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    # --- the steps ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Loads the checkpoint, or initialises the flow."""
        self.stages.start(next_is_local=len(self.recorder.history) < self.config.num_local_epochs)
        never = [part.index for part in self.parts if not self.schedule.num_updates(part.index)]
        if never and self.config.num_local_epochs:
            self.recorder.say(
                f"parts {never} get no update before the gather: schedule.local_epochs is too short for them"
            )

    def evaluate_at_start(self) -> None:
        """Evaluates the flow that nothing has trained yet; a resumed run has done so before."""
        if self.manifest is None:
            result = self._evaluate(-1, self._num_eval_images())
            self._collect(None)
            if result is not None:
                self.recorder.started(result)

    def next_phase(self) -> Phase | None:
        """The coordinator's decision, made on rank 0. Raises TrainingStopped where it is to end the run."""
        answer = None
        if self.is_main:
            decision = self.schedule.next_phase(self.recorder.history)
            if isinstance(decision, Stop):
                raise self._stopped(decision.reason)
            answer = decision and decision.to_json()
        answer = self.control.broadcast(answer, "the next phase")
        return answer and Phase.from_json(answer)

    def gather(self) -> None:
        """Brings the parts together on rank 0's device, or to train as one where they are; once in a run.

        First evaluates the parts if their last local epoch, which was to end the run, did not. Raises Interrupted.
        """
        if self.control.broadcast(self.recorder.lacks_exits, "whether parts are to be evaluated"):
            self._evaluate_exits(len(self.recorder.history) - 1)
        start = time.perf_counter()
        self.stages.gather()
        self._collect(None)
        self.recorder.gathered(time.perf_counter() - start, self.stages.is_pipelined)

    def train(self, phase: Phase) -> None:
        """One pass over the data. Raises Interrupted, at the same batch on every worker."""
        recorder, worker = self.recorder, self.stages.worker
        goes_on = resume_inside(self.manifest if self._is_first_phase else None, self.stages)
        self._is_first_phase = False
        if goes_on.step == 0:
            self.stages.initialize(phase)
        recorder.epoch_begins(phase, goes_on.step, goes_on.carried)
        start = time.perf_counter()
        try:
            trained = worker.train(phase, goes_on.step, goes_on.losses)
        except TrainingStopped as error:
            raise self._stopped(str(error), error.advice) from None
        mine = [trained.losses.means(), trained.busy_seconds, trained.cpu_seconds, trained.updates, trained.stopped_at]
        collected = self._collect(mine, f"the losses of epoch {phase.epoch}")
        seconds = time.perf_counter() - start
        stops = [stop for *_, stop in collected if stop is not None]
        stopped_at = self.control.broadcast(stops[0] if stops else None, "whether the run stops here")
        if stopped_at is not None:
            raise Interrupted(Inside(phase, stopped_at, trained.losses, recorder.epoch_interrupted(seconds)))
        self._last_losses = trained.losses
        if self.is_main:
            losses, busy, cpu, updates, _ = zip(*collected)
            is_whole, weight = self.stages.name == "whole", self.stages.replicas.weight
            weights = [weight(self.config.optim.batch_size, rank) for rank in range(len(losses))]
            recorder.epoch_trained(merge_means(losses, weights, is_whole), seconds, busy, cpu)
            recorder.epoch_updated(updates, is_whole)
        if self.world.timeline.wanted(phase.epoch):
            recorder.timeline(gather_spans(self.world.timeline, self.control))

    def evaluate(self, phase: Phase) -> None:
        """Test bits/dim of the phase, where it is due; after the last local one on all test images too."""
        recorder = self.recorder
        try:
            if phase.evaluate:
                start = time.perf_counter()
                result = self._evaluate(phase.epoch, self._num_eval_images())
                recorder.sampled(phase.epoch, draw_beside_data(self.stages, self.num_test))
                self._collect(None)
                if result is not None:
                    recorder.epoch_evaluated(result, time.perf_counter() - start)
            if phase.epoch == self.config.num_local_epochs - 1 and phase.epoch < self.config.num_epochs - 1:
                self._evaluate_exits(phase.epoch)
        except Interrupted:
            self._collect(None)
            carried = recorder.epoch_interrupted(0.0)
            raise Interrupted(Inside(phase, phase.steps, self._last_losses, carried)) from None
        recorder.epoch_ends()

    def checkpoint(self, epoch: int, position: Position | None = None) -> None:
        """Begins to save the run after `epoch` epochs, and the batches of the next that `position` tells of."""
        start = time.perf_counter()
        recorder, step, counts = self.recorder, 0 if position is None else position.step, None
        if self.stages.takes_part:
            tensors, counts = self.stages.state()
            self.saver.copy(tensors)
        collected = self._collect(counts, f"the checkpoint after {count_text(epoch, 'epoch')}")
        merged = {owner: tuple(count) for each in collected for owner, count in (each or {}).items()}
        manifest = recorder.checkpoint(epoch, self.stages.name, merged, position)
        if manifest is not None:
            writers = [rank for rank, each in enumerate(collected) if each is not None]
            self.saver.save(epoch, step, writers, manifest, recorder.log.sync)
        elif self.stages.takes_part:
            self.saver.save(epoch, step)
        self._saved = (epoch, step)
        recorder.waited_for_checkpoint(time.perf_counter() - start)

    def last_epoch(self) -> dict[str, Any]:
        """The event of the last epoch for `report`: its record on rank 0, nothing elsewhere."""
        return {"event": "epoch", **self.recorder.history[-1].to_json()} if self.is_main else {}

    def finish(self) -> Summary:
        """The last evaluation, the model, samples and the summary, unless they are there already."""
        summary = None
        if self.control.broadcast(self.is_main and self.recorder.has_ended, "the end of the run"):
            self.stages.close_links()
            self.recorder.say(f"{ended(self.config)}: nothing to do. {next_commands(self.config)}")
            summary = self.folder.summary() if self.is_main else None
        else:
            summary = self._finish()
        return Summary.from_json(self.control.broadcast(summary and summary.to_json(), "the end of the run"))

    def _finish(self) -> Summary | None:
        start = time.perf_counter()
        result = self._evaluate(self.config.num_epochs, self.num_test)
        memory = self._collect((self._memory_before, peak_memory(self.world.device)), "the memory used")
        if result is not None:
            self.recorder.evaluated_at_end(result, time.perf_counter() - start)
        self._wait_for_checkpoint()
        if self.stages.is_pipelined:
            self.stages.close_links()
        elif self.stages.name == "local":
            self.gather()
        if self.stages.takes_part:
            leave_results(self.stages, self.folder, self.given_label, self.recorder.say)
        if self.stages.is_pipelined:  # whose workers have sent each other samples
            self._collect(None)
        return self.recorder.finish(memory) if self.is_main else None

    # --- interruptions ------------------------------------------------------------------------------------------------

    def save_interrupted(self, inside: Inside | None) -> Preempted:
        """Saves what the newest checkpoint does not have; the error that says so, once the checkpoint is whole."""
        if inside is not None and (inside.phase.epoch, inside.step) != self._saved:
            losses = self._collect(inside.losses.values(), "the losses so far")
            self.checkpoint(inside.phase.epoch, position_of(inside, losses, self.stages))
        self._wait_for_checkpoint()
        self.control.share("saved", "the checkpoint")  # nobody leaves before the checkpoint is whole
        saved = f"nothing that was trained is lost, {self.folder.checkpoints.last_good()}"
        saved = saved if any(self._saved) else "nothing was trained yet"
        return Preempted(f"{self.world.notice}: {saved}. {parent.how_to_resume()}")

    def _stopped(self, reason: str, advice: str | None = None) -> TrainingStopped:
        """advice: what helps; None: a lower rate."""
        self.saver.close()  # the checkpoint that is being written may be the last good one
        rate = rate_option(self.config, self.stages.name == "local")
        advice = advice or f"Resume with a lower {rate} or with optim.clip_norm"
        return TrainingStopped(f"{reason}: stopped all workers, {self.folder.checkpoints.last_good()}. {advice}.")

    # --- pieces -------------------------------------------------------------------------------------------------------

    def _collect(self, value: object, what: str = "the bytes sent") -> list[Any]:
        """Everybody's values on rank 0. The bytes that all have sent since the last call are counted."""
        collected = self.control.gather([value, self.world.traffic.drain()], what)
        self.recorder.add_bytes(entry for _, traffic in collected for entry in traffic)
        return [mine for mine, _ in collected]

    def _wait_for_checkpoint(self) -> None:
        """Until the last one is whole, as rank 0 sees it; elsewhere until this worker's file is on the disk."""
        start = time.perf_counter()
        self.saver.wait()
        self.recorder.waited_for_checkpoint(time.perf_counter() - start)

    def _num_eval_images(self) -> int:
        return min(self.config.eval.num_images or self.num_test, self.num_test)

    def _evaluate(self, epoch: int, num_images: int) -> Evaluated | None:
        """Test bits/dim of the whole flow, of averaged weights where there are any, on rank 0. Raises Interrupted."""
        raw = self._evaluate_once(epoch, num_images) if self.config.optim.ema > 0 else None
        with self.stages.averaged():
            exits = self._evaluate_once(epoch, num_images)
        if not exits:
            return None
        kept = tuple(exits) if self.stages.name == "local" else None
        return Evaluated(exits[-1], kept, raw[-1] if raw else None)

    def _evaluate_exits(self, epoch: int) -> None:
        """The parts' exits on all test images, before they are one flow."""
        start = time.perf_counter()
        result = self._evaluate(epoch, self.num_test)
        self._collect(None)
        if result is not None:
            self.recorder.local_ended(result, time.perf_counter() - start)

    def _evaluate_once(self, epoch: int, num_images: int) -> list[float]:
        """Exit bits/dim of all parts on rank 0, an empty list elsewhere."""
        sums, stopped = {}, False
        if self.stages.takes_part:
            try:
                sums = self.stages.worker.evaluate(epoch, num_images)
            except Stopped:
                stopped = True
        everyone = self.control.gather(sums, "an evaluation")
        if self.control.broadcast(self.is_main and stopped, "whether the run stops here"):
            raise Interrupted
        merged = {int(part): values for each in everyone for part, values in each.items()}
        return exit_bits_per_dim([merged[part] for part in sorted(merged)], num_images, self.flow.values)
