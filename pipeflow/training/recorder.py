"""What a run leaves behind, kept by rank 0: history, totals, log, progress display, plots and summary.

On the other workers a recorder holds the history and does nothing else.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import safetensors
import torch
from torch import Tensor

import pipeflow
from pipeflow.config import FINETUNE, Config
from pipeflow.flow import Part
from pipeflow.rundir.folder import RunFolder
from pipeflow.rundir.log import MetricsLog
from pipeflow.rundir.records import Carried, Epoch, Manifest, Position, Summary, Totals
from pipeflow.training.progress import Progress
from pipeflow.training.schedule import Phase, training_macs
from pipeflow.units import bytes_text
from pipeflow.workers.trace import write_trace
from pipeflow.workers.world import World

_SECONDS = ("local", "gather", "finetune", "eval", "checkpoint", "total")
_GATHER = ("parameters", "optimizer", "ema")


def _on_rank_0(method: Callable) -> Callable:
    @functools.wraps(method)
    def on_rank_0(self: "Recorder", *arguments: Any) -> Any:
        return method(self, *arguments) if self.is_main else None

    return on_rank_0


class Recorder:
    """Takes down what happens in the order in which it happens."""

    def __init__(self, config: Config, folder: RunFolder, parts: list[Part], world: World, manifest: Manifest | None):
        self.config = config
        self.folder = folder
        self.parts = parts
        self.world = world
        self.is_main = world.rank == 0
        self.history: list[Epoch] = [] if manifest is None else list(manifest.history)
        state = {"seconds": dict.fromkeys(_SECONDS, 0.0), "bytes": {}, "macs": 0, "initial_bpd": None, "exit_bpd": None}
        self.state = state if manifest is None else manifest.state.to_json()
        self._began = time.perf_counter() - self.state["seconds"]["total"]
        self._record: dict = {}
        position = None if manifest is None else manifest.position
        self._carried = position.carried.to_json() if position is not None and position.carried is not None else None
        """Of a phase that was interrupted, and is now trained to its end: its seconds and bytes until then."""
        self._sent_before = sum(
            count
            for name, count in self.state["bytes"].items()
            if name.split("/")[0] in ("latents", "gradients", "images")
        )
        self._final: dict = {}
        self.log: MetricsLog | None = None
        self.progress: Progress | None = None
        if self.is_main:
            self._open(manifest)

    def _open(self, manifest: Manifest | None) -> None:
        self.folder.write_config()
        if len(self.history) < self.config.num_epochs:
            self.folder.write_summary(None)  # an old one would be taken for this run's
        if manifest is None or not self.is_finished():
            self.log = MetricsLog(self.folder.path, manifest.log_position if manifest is not None else 0)
        self.progress = Progress(self.config.num_epochs, len(self.parts))
        for part in self.parts:
            about = part.describe()
            self.progress.say(
                f"part {part.index}: {about['layers'][0]} to {about['layers'][-1]}, {about['parameters']:,} parameters, "
                f"{about['forward_macs'] / 1e6:.1f} M multiply-adds an image"
            )
        self.progress.say(
            f"{self.world.size} worker{'s' * (self.world.size > 1)} on {self.world.device.type}, "
            f"run folder {self.folder.path}"
        )
        alone = self.config.finetune.parallel == "single"
        if self.world.size > 1 and alone and self.config.num_local_epochs == 0:
            self.progress.say("end to end on rank 0's device: the other workers wait (finetune.parallel ddp uses them)")
        if manifest is not None:
            steps = f" and {manifest.position.step} batches" if manifest.position is not None else ""
            self.progress.say(f"resuming after {len(self.history)} epochs{steps} from {manifest.folder}")

    @contextmanager
    def shown(self, progress_of_worker: Callable[[], dict]) -> Iterator[None]:
        """Keeps the display up to date, about twice a second, from a thread of its own."""
        ended = threading.Event()

        def refresh() -> None:
            while not ended.wait(0.5):
                self._show(progress_of_worker())

        thread = threading.Thread(target=refresh, name="pipeflow-progress", daemon=True)
        with self.progress:
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()

    def _show(self, mine: dict) -> None:
        if not self._record or not mine:
            return
        monitor = self.world.monitor
        others = list(monitor.statuses.values()) if monitor is not None else []
        losses = {part: loss for status in [mine, *others] for part, loss in status.get("losses", {}).items()}
        # Everybody's steps, for the display follows the last part's; losses of phases gone by stay as they are.
        steps = min([mine["step"], *(status["step"] for status in others if status.get("epoch") == mine.get("epoch"))])
        elapsed = time.perf_counter() - self._phase_start
        rate = mine["step"] * self.config.optim.batch_size / elapsed
        sent = self._sent_before + self.world.traffic.training + sum(status.get("sent", 0) for status in others)
        self.progress.update(steps, {int(part): loss for part, loss in losses.items()}, rate, sent)

    @_on_rank_0
    def say(self, text: str) -> None:
        """A line to the user."""
        self.progress.say(text)

    @_on_rank_0
    def started(self, result: dict, traffic: list) -> None:
        """Initialised, evaluated, nothing trained yet."""
        self.state["initial_bpd"] = result["test_bpd"]
        self._add_bytes(traffic)
        self.log.event(
            "start",
            initial_bpd=result["test_bpd"],
            initial_exit_bpd=result["exit_bpd"],
            parts=[part.describe() for part in self.parts],
            config=self.config.to_dict(),
            world_size=self.world.size,
        )
        self.progress.say(f"initialised: test {result['test_bpd']:.3f} bits/dim")

    @_on_rank_0
    def phase_begins(self, phase: Phase) -> None:
        """A phase's training starts."""
        self._phase_start = time.perf_counter()
        self._record = {"epoch": phase.epoch, "phase": phase.mode, "trained": phase.trained, "steps": phase.steps}
        self.progress.phase(self._record)

    @_on_rank_0
    def phase_trained(
        self, phase: Phase, losses: dict, seconds: float, busy: Sequence[float], cpu: Sequence[float], traffic: list
    ) -> None:
        """All workers have trained the phase. busy: seconds that each did not wait for another; cpu: that it computed."""
        self._count_training(phase, seconds)
        carried, self._carried = self._carried, None
        self._record |= {
            "train_loss": dict(sorted(losses.items())),
            "updates": {str(part.index): phase.count_training(part.index) for part in self.parts},
            "test_bpd": None,
            "exit_bpd": None,
            "seconds": seconds,
            "idle": [1 - each / seconds for each in busy],  # and the next: of this sitting
            "cpu_seconds": list(cpu),
            "images": phase.steps * self.config.optim.batch_size,
            "macs": training_macs(phase, self.parts, self.config.optim.batch_size),
            "bytes": self._no_bytes(phase),
        }
        if carried is not None:
            self._record["seconds"] += carried["seconds"]
            self._record["bytes"] = carried["bytes"]
        self._add_bytes(traffic)

    @_on_rank_0
    def phase_interrupted(self, phase: Phase, seconds: float, traffic: list) -> Carried:
        """The phase is to be trained to its end later: what its record must carry over until then."""
        if "bytes" not in self._record:  # else it has been trained and was being evaluated
            self._count_training(phase, seconds)
            carried = self._carried or {"seconds": 0.0, "bytes": self._no_bytes(phase)}
            self._record |= {"seconds": seconds + carried["seconds"], "bytes": carried["bytes"]}
        self._add_bytes(traffic)
        carried = Carried.from_json(self._record)
        self._record = {}
        return carried

    def forget_carried(self) -> None:
        """The phase's first batches were cut otherwise: its record is of the batches since."""
        self._carried = None

    def _count_training(self, phase: Phase, seconds: float) -> None:
        self.state["seconds"]["local" if phase.is_local else "finetune"] += seconds

    def _no_bytes(self, phase: Phase) -> dict:
        links = [[part.index, part.index + 1, 0] for part in self.parts[:-1]] if phase.is_local else []
        return {"latents": links, "eval": 0, "gradients": 0, "images": 0, "control": 0}

    @_on_rank_0
    def timeline(self, spans: list) -> None:
        """What each worker did in the batches that were to be recorded."""
        write_trace(spans, self.folder.path / "timeline.json")
        self.progress.say(f"timeline of epoch {self._record['epoch']}: {self.folder.path / 'timeline.json'}")

    @_on_rank_0
    def evaluated(self, result: dict, seconds: float, traffic: list) -> None:
        """The phase's test bits/dim are there."""
        self._record |= result
        self.state["seconds"]["eval"] += seconds
        self._add_bytes(traffic)

    @_on_rank_0
    def local_ended(self, result: dict, seconds: float, traffic: list) -> None:
        """Exit bits/dim on all test images, before the parts are gathered."""
        self.state["exit_bpd"] = result["exit_bpd"]
        self.state["seconds"]["eval"] += seconds
        self._add_bytes(traffic)

    @_on_rank_0
    def phase_ends(self) -> None:
        """The phase's record is complete."""
        record, self._record = Epoch.from_json(self._record), {}
        self.state["macs"] += record.macs
        self.history.append(record)
        self.log.epoch(record)
        self.progress.epoch(record)

    @_on_rank_0
    def gathered(self, seconds: float, traffic: list) -> None:
        """The parts are on rank 0's device."""
        self.state["seconds"]["gather"] += seconds
        counts = {kind: sum(entry[3] for entry in traffic if entry[0] == kind) for kind in _GATHER}
        self._add_bytes(traffic)
        self.log.event("gather", seconds=seconds, bytes=counts)
        self.progress.say(f"gathered the parts: {bytes_text(sum(counts.values()))} sent")

    @_on_rank_0
    def checkpoint(
        self, epoch: int, stage: str, counts: dict, traffic: list, position: Position | None = None
    ) -> Manifest:
        """The manifest of what the run is now, but for its files. What comes later changes nothing in it.

        position: in the epoch that follows, where the checkpoint is inside one.
        """
        self._add_bytes(traffic)
        step = {} if position is None else {"step": position.step}
        self.log.event("checkpoint", epoch=epoch, **step)
        self.state["seconds"]["total"] = time.perf_counter() - self._began
        return Manifest(
            epoch=epoch,
            files=(),
            stage=stage,
            config=self.config.to_dict(),
            cuts=tuple(part.names[0] for part in self.parts[1:]),
            counts={owner: tuple(count) for owner, count in counts.items()},
            history=tuple(self.history),
            state=Totals.from_json(self.state),
            log_position=self.log.position(),
            position=position,
        )

    @_on_rank_0
    def waited_for_checkpoint(self, seconds: float) -> None:
        """The training stood still for a checkpoint."""
        self.state["seconds"]["checkpoint"] += seconds

    @_on_rank_0
    def final(self, result: dict, memory: list, seconds: float, traffic: list) -> None:
        """The last evaluation, on all test images. memory: bytes that each worker held at first, and at most."""
        self._final = {**result, "memory": dict(zip(("before", "peak"), map(list, zip(*memory))))}
        if result["exit_bpd"] is not None:
            self.state["exit_bpd"] = result["exit_bpd"]
        self.state["seconds"]["eval"] += seconds
        self._add_bytes(traffic)

    def is_finished(self) -> bool:
        """Whether the run had ended before this process began."""
        return len(self.history) >= self.config.num_epochs and self.folder.summary() is not None

    @_on_rank_0
    def finish(self, samples: Tensor | None) -> Summary:
        """Writes samples and summary; the summary."""
        from pipeflow.use.sample import sample_grid

        self.state["seconds"]["total"] = time.perf_counter() - self._began
        summary = self._summary()
        self.log.event(
            "end", **{key: item for key, item in summary.to_json().items() if key not in ("epochs", "parts")}
        )
        self.log.close()
        if samples is not None and samples.ndim == 4 and samples.shape[1] in (1, 3):
            sample_grid(samples, self.folder.path / "samples.png")
        self.folder.write_summary(summary)  # the last file: it marks a run that has ended
        exits = f" (exits before the gather {_listed(summary.exit_bpd)})" if summary.exit_bpd else ""
        self.progress.say(
            f"done: test {summary.test_bpd:.3f} bits/dim on all test images{exits}, "
            f"{bytes_text(summary.bytes.total)} sent, results in {self.folder.path}"
        )
        return summary

    def close(self) -> None:
        """Closes log and display, however the run ended."""
        if self.progress is not None:
            self.progress.close()
        if self.log is not None:
            self.log.close()

    def _add_bytes(self, traffic: list) -> None:
        """Adds what `Traffic.take` gave to the totals, and to the phase's record while there is one."""
        totals = self.state["bytes"]
        for kind, source, target, count in traffic:
            name = kind
            if kind == "latents":  # by link, and by direction: that none goes back is counted, not assumed
                name = f"latents/{source}" if target > source else f"backward/{target}"
            elif kind in ("gradients", "images") and self._record.get("phase") not in FINETUNE:
                name = f"{kind}/replicas"
            totals[name] = totals.get(name, 0) + count
            if "bytes" in self._record:
                if kind == "latents":
                    self._record["bytes"]["latents"][source][2] += count
                else:
                    self._record["bytes"][kind] = self._record["bytes"].get(kind, 0) + count

    def _summary(self) -> Summary:
        sent = self.state["bytes"]
        links = range(len(self.parts) - 1)
        finetune = sent.get("gradients", 0) + sent.get("images", 0)
        summary = {
            "name": self.folder.path.name,
            "test_bpd": self._final["test_bpd"],
            "initial_bpd": self.state["initial_bpd"],
            "exit_bpd": self.state["exit_bpd"],
            "num_epochs": len(self.history),
            "train_macs": self.state["macs"],
            "epochs": [record.to_json() for record in self.history],
            "parts": [part.describe() for part in self.parts],
            "seconds": self.state["seconds"],
            "bytes": {
                "forward": [sent.get(f"latents/{link}", 0) for link in links],
                "backward": [sent.get(f"backward/{link}", 0) for link in links],
                "eval": sent.get("eval", 0),
                "initial": sent.get("initial", 0),
                "gather": {kind: sent.get(kind, 0) for kind in _GATHER},
                "finetune": finetune,
                "replicas": {
                    "gradients": sent.get("gradients/replicas", 0),
                    "images": sent.get("images/replicas", 0),
                    "start": sent.get("replicas", 0),
                },
                "control": sent.get("control", 0),
                "total": sum(sent.values()),
            },
            "memory": self._final["memory"],
            "wire": self.world.size > 1,
            "world_size": self.world.size,
            "replicas": self.config.parts.replicas,
            "backend": self.world.backend if self.world.size > 1 else "none",
            "device": self.world.device.type,
            "versions": {
                "pipeflow": pipeflow.__version__,
                "torch": torch.__version__,
                "safetensors": safetensors.__version__,
            },
        }
        if "test_bpd_raw" in self._final:
            summary["test_bpd_raw"] = self._final["test_bpd_raw"]
        return Summary.from_json(summary)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)
