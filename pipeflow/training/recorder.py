"""Rank 0 takes down what happens: history, totals, log, display and summary.

On the other workers a recorder holds the history it began with, and does nothing else.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from torch import Tensor

from pipeflow.config import Config
from pipeflow.flow import Part
from pipeflow.rundir.folder import RunFolder
from pipeflow.rundir.log import MetricsLog
from pipeflow.rundir.records import Carried, Epoch, GivenLabel, Manifest, Position, Stage, Summary
from pipeflow.rundir.resuming import resume_lines
from pipeflow.safe_files import printable
from pipeflow.training.facts import Facts
from pipeflow.training.opening import first_lines
from pipeflow.training.progress import Progress
from pipeflow.training.schedule import Phase, Schedule, epoch_cost, training_macs
from pipeflow.training.totals import EpochDraft, Evaluated, RunningTotals, Traffic
from pipeflow.units import traffic_text
from pipeflow.use.sample import grid
from pipeflow.workers.timeline import Span
from pipeflow.workers.trace import write_trace
from pipeflow.workers.world import World

Method = TypeVar("Method", bound=Callable[..., Any])


def _on_rank_0(method: Method) -> Method:
    """The method does nothing and returns None on the other workers."""

    @functools.wraps(method)
    def on_rank_0(self: "Recorder", *arguments: Any) -> Any:
        return method(self, *arguments) if self.is_main else None

    return cast(Method, on_rank_0)


class Recorder:
    """Takes down what happens in the order in which it happens."""

    progress: Progress
    log: MetricsLog

    def __init__(
        self, config: Config, folder: RunFolder, parts: Sequence[Part], world: World,
        manifest: Manifest | None, schedule: Schedule, fingerprint: str, given_label: GivenLabel | None,
    ):  # fmt: skip
        """manifest: of the checkpoint that the run goes on from. fingerprint: of the images."""
        self.config = config
        self.folder = folder
        self.parts = parts
        self.world = world
        self.is_main = world.rank == 0
        self._travels = world.size > 1
        self.history: list[Epoch] = [] if manifest is None else list(manifest.history)
        changes = () if manifest is None else manifest.changes
        changes = changes if folder.change is None else (*changes, folder.change)
        self._facts = Facts(
            printable(folder.path.resolve().name), config, parts, world, fingerprint, given_label, changes
        )
        self.has_ended = self.is_main and folder.has_ended(manifest)
        """Whether the run had ended before this process began."""
        self._totals = RunningTotals(None if manifest is None else manifest.state, self._travels)
        self._sent_before = self._totals.shown_bytes
        self._draft: EpochDraft | None = None
        self._resources = contextlib.ExitStack()
        if self.is_main:
            self._open(manifest, schedule)

    def _open(self, manifest: Manifest | None, schedule: Schedule) -> None:
        if not self.has_ended:
            self.folder.write_config(self._facts.changes)
            self.folder.write_summary(None)  # an old one would be taken for this run's
            self.log = MetricsLog(self.folder.path, manifest, self.config)
            self._resources.callback(self.log.close)
        costs = [epoch_cost(self.config, phase, self.parts, self.world.size) for phase in schedule.phases()]
        self.progress = Progress(costs, len(self.parts), self._travels, self._facts.given)
        self._resources.callback(self.progress.close)
        for line in first_lines(self.config, self.parts, self.world, self.folder):
            self.say(line)
        if manifest is not None and not self.has_ended:
            changed = {} if self.folder.change is None else self.folder.change.options
            where = {"epoch": manifest.epoch, "step": manifest.step, "checkpoint": manifest.folder}
            self.log.event("resume", **where, changed=changed, world_size=self.world.size)
            for line in resume_lines(manifest, self.config, changed):
                self.say(line)

    def shown(self, progress_of_worker: Callable[[], Mapping[str, Any]]) -> contextlib.AbstractContextManager[None]:
        """Keeps the display up to date inside the block."""

        def refresh() -> None:
            draft, mine = self._draft, progress_of_worker()
            if draft is not None and mine.get("epoch") == draft.phase.epoch:  # and not still the epoch before
                monitor = self.world.monitor
                others = list(monitor.statuses.values()) if monitor is not None else []
                rate = draft.batches_per_second(mine["step"]) * self.config.optim.batch_size
                sent = self._sent_before + self.world.traffic.training + sum(each.get("sent", 0) for each in others)
                self.progress.update(mine, others, rate, sent)

        return self.progress.refreshed_by(refresh) if self.is_main else contextlib.nullcontext()

    @_on_rank_0
    def say(self, text: str) -> None:
        """Prints a line to the user."""
        self.progress.say(text)

    @_on_rank_0
    def add_bytes(self, traffic: Traffic) -> None:
        """Adds bytes to the totals, and to the record of the epoch that goes on."""
        self._totals.add_bytes(traffic, self._draft)

    @_on_rank_0
    def started(self, result: Evaluated) -> None:
        """The flow is initialised and evaluated; nothing is trained yet."""
        self._totals.initial_bpd = result.test_bpd
        self.folder.has_begun = True
        self.log.event(
            "start",
            initial_bpd=result.test_bpd,
            initial_exit_bpd=result.exit_bpd,
            parts=[part.describe() for part in self.parts],
            config=self.config.to_dict(),
            world_size=self.world.size,
            **self._facts.of_the_bits(),
        )
        self.say(f"initialised: test {self._facts.text(result.test_bpd)}")

    @_on_rank_0
    def epoch_begins(self, phase: Phase, first_step: int, carried: Carried | None) -> None:
        """An epoch's training starts, or goes on from batch `first_step` after an interruption that has left `carried`."""
        self._draft = EpochDraft(phase, len(self.parts) - 1, first_step, carried)
        self.progress.phase(phase, first_step)

    @_on_rank_0
    def epoch_trained(
        self, losses: Mapping[str, float], seconds: float, busy: Sequence[float], cpu: Sequence[float]
    ) -> None:
        """All workers have trained the epoch.

        busy, cpu: seconds of each worker in this sitting without those spent waiting at links, and of its processor.
        """
        draft = self._current()
        self._add_seconds(seconds)
        draft.fields |= {
            "train_loss": dict(sorted(losses.items())),
            "updates": {str(part.index): draft.phase.count_training(part.index) for part in self.parts},
            "idle": tuple(1 - each / seconds for each in busy),
            "cpu_seconds": tuple(cpu),
            "images": draft.num_batches * self.config.optim.batch_size,
            "macs": training_macs(draft.phase, self.parts, self.config.optim.batch_size),
        }

    @_on_rank_0
    def epoch_updated(self, updates: Sequence[Mapping[str, tuple[float, float]]], is_whole: bool) -> None:
        """What the epoch's updates were like.

        updates: of each worker, by part, the learning rate and the mean square of the gradient's norms.
        is_whole: whether the parts train as one flow.
        """
        by_part = {part: of for each in updates for part, of in sorted(each.items())}
        if is_whole and by_part:
            rate = next(iter(by_part.values()))[0]
            by_part = {"flow": (rate, sum(square for _, square in by_part.values()))}
        self._current().fields |= {
            "rate": {part: rate for part, (rate, _) in sorted(by_part.items())},
            "gradient_norm": {part: math.sqrt(square) for part, (_, square) in sorted(by_part.items())},
        }

    @_on_rank_0
    def sampled(self, epoch: int, pictures: tuple[Tensor, Tensor] | None) -> None:
        """Keeps an evaluation's samples and the test images beside them: uint8, [num, channels, height, width]."""
        if pictures is not None:
            samples, data = (grid(each, columns=4, scale=1) for each in pictures)
            self.folder.write_pictures({f"epoch-{epoch:06d}": samples, "data": data})
            self.log.samples(samples, epoch)

    @_on_rank_0
    def epoch_interrupted(self, seconds: float) -> Carried | None:
        """The epoch will be trained to its end later: what its record must carry over until then."""
        self._add_seconds(seconds)
        carried = self._current().carried
        self._draft = None
        return carried

    @_on_rank_0
    def epoch_evaluated(self, result: Evaluated, seconds: float) -> None:
        """The epoch's test bits/dim are there."""
        self._current().fields |= dataclasses.asdict(result)
        self._totals.seconds["eval"] += seconds

    @property
    def lacks_exits(self) -> bool:
        """Whether, on rank 0, the parts' exits on all test images are not known, of a run that has local epochs."""
        return self._totals.exit_bpd is None and self.config.num_local_epochs > 0

    @_on_rank_0
    def local_ended(self, result: Evaluated, seconds: float) -> None:
        """Exit bits/dim on all test images, before the parts are gathered."""
        self._totals.exit_bpd = result.exit_bpd
        self._totals.seconds["eval"] += seconds

    @_on_rank_0
    def epoch_ends(self) -> None:
        """The epoch's record is complete."""
        record, self._draft = self._current().finished(), None
        self._totals.macs += record.macs
        self.history.append(record)
        self.log.epoch(record)
        self.progress.epoch(record)

    def _current(self) -> EpochDraft:
        assert self._draft is not None, "an epoch goes on"
        return self._draft

    def _add_seconds(self, seconds: float) -> None:
        """Counts seconds of training."""
        draft = self._current()
        draft.seconds += seconds
        self._totals.seconds["local" if draft.phase.is_local else "finetune"] += seconds

    @_on_rank_0
    def timeline(self, spans: Sequence[Sequence[Span]]) -> None:
        """Writes each worker's spans of the recorded batches."""
        write_trace(spans, self.folder.path / "timeline.json")
        self.say(f"timeline of epoch {self._current().phase.epoch}: {self.folder.path / 'timeline.json'}")

    @_on_rank_0
    def gathered(self, seconds: float, stay: bool) -> None:
        """The parts are on rank 0's device, or stay where they are for a pipeline, which happens once in a run."""
        self._totals.seconds["gather"] += seconds
        counts = self._totals.gathered_bytes()
        self.log.event("gather", seconds=seconds, bytes=counts)
        if stay:
            self.say("the parts stay where they are, without their heads, and train as a pipeline")
        else:
            self.say("gathered the parts" + f": {traffic_text(sum(counts.values()), True)}" * self._travels)

    @_on_rank_0
    def checkpoint(
        self, epoch: int, stage: Stage, counts: Mapping[str, tuple[int, int]], position: Position | None
    ) -> Manifest | None:
        """The manifest of the run as it is now, without its files. Later events change nothing in it."""
        step = {} if position is None else {"step": position.step}
        self.log.event("checkpoint", epoch=epoch, **step)
        at = self.log.position()
        return self._facts.manifest(stage, counts, position, self.history, self._totals, at)

    @_on_rank_0
    def waited_for_checkpoint(self, seconds: float) -> None:
        """The training stood still for a checkpoint."""
        self._totals.seconds["checkpoint"] += seconds

    @_on_rank_0
    def evaluated_at_end(self, result: Evaluated, seconds: float) -> None:
        """The last evaluation is made, on all test images."""
        self._final = result
        if result.exit_bpd is not None:
            self._totals.exit_bpd = result.exit_bpd
        self._totals.seconds["eval"] += seconds

    @_on_rank_0
    def finish(self, memory: Sequence[tuple[int, int]]) -> Summary | None:
        """Writes the summary, the last file: it marks a run that has ended.

        memory: bytes that each worker held at first, and at most.
        """
        summary = self._facts.summary(self.history, self._totals, self._final, memory)
        told = {key: value for key, value in summary.to_json().items() if key not in ("epochs", "parts")}
        self.log.event("end", **told)
        self.log.close()
        self.folder.write_summary(summary)
        listed = ", ".join(f"{value:.3f}" for value in summary.exit_bpd or ())
        exits = f" (exits before the gather {listed})" if listed else ""
        self.say(
            f"done: test {self._facts.text(summary.test_bpd)} on all test images{exits}, "
            f"{traffic_text(summary.bytes.total, self._totals.wire)}, results in {self.folder.path}"
        )
        return summary

    def close(self) -> None:
        """Closes log and display, however the run ended."""
        self._resources.close()
