"""The log of a run, kept by rank 0: one JSON line an event in `metrics.jsonl`, and scalars and samples for trackers."""

import os
from pathlib import Path
from typing import Any

from PIL.Image import Image

from pipeflow.config import Config
from pipeflow.errors import CheckpointError
from pipeflow.rundir.records import Epoch, Manifest
from pipeflow.rundir.trackers import open_trackers
from pipeflow.rundir.typed_json import dumps
from pipeflow.safe_files import open_file


class MetricsLog:
    """The log that a run writes."""

    def __init__(self, run_dir: str | Path, manifest: Manifest | None = None, config: Config | None = None):
        """manifest: of the checkpoint to go on from. Events since then are cut off, since they happen again.

        config: of the run, for trackers other than TensorBoard.

        Raises CheckpointError where the log in the folder is not the one that the checkpoint was taken with, ConfigError
        where the tracker that `track.to` names is not installed or cannot be started.
        """
        path = Path(run_dir) / "metrics.jsonl"
        position, history = (0, ()) if manifest is None else (manifest.log_position, manifest.history)
        if position and not _has_line_end(path, position):
            raise CheckpointError(
                f"{path} is not the log this checkpoint was taken with: no line ends at byte {position}. "
                f"Put the log back, or start the run again in another folder (run.dir)."
            )
        self._bytes_sent = 0
        self._trackers = open_trackers(Path(run_dir), config, [self._scalars(record) for record in history])
        self._file = open(path, "r+b" if position else "wb")
        self._file.truncate(position)
        self._file.seek(position)

    def event(self, kind: str, **fields: Any) -> None:
        """Appends the line `{"event": kind, ...}`, which is on its way to the disk when this returns."""
        self._file.write(dumps({"event": kind, **fields}).encode() + b"\n")
        self._file.flush()

    def epoch(self, record: Epoch) -> None:
        """Appends the event of a finished epoch, and hands its scalars to the trackers."""
        self.event("epoch", **record.to_json())
        scalars = self._scalars(record)
        for tracker in self._trackers:
            tracker.scalars(scalars, record.epoch)

    def samples(self, picture: Image, epoch: int) -> None:
        """Hands a grid of samples to the trackers."""
        for tracker in self._trackers:
            tracker.picture("samples", picture, epoch)

    def _scalars(self, record: Epoch) -> dict[str, float]:
        """An epoch's numbers by the names that they have in trackers. Epochs come in order."""
        self._bytes_sent += record.training_bytes
        scalars = {}
        for name, by_part in (
            ("train_loss", record.train_loss),
            ("learning_rate", record.rate or {}),
            ("gradient_norm", record.gradient_norm or {}),
        ):
            for part, value in by_part.items():
                scalars[f"{name}/{f'part_{part}' if record.is_local else 'whole_flow'}"] = value
        if record.test_bpd is not None:
            scalars["bits_per_dim/test"] = record.test_bpd
        for index, exit_bpd in enumerate(record.exit_bpd or ()):
            scalars[f"bits_per_dim/exit_of_part_{index}"] = exit_bpd
        for worker, idle in enumerate(record.idle or ()):
            scalars[f"idle/worker_{worker}"] = idle
        for source, target, count in record.bytes.latents:
            scalars[f"megabytes_per_second/{source}_to_{target}"] = count / 1e6 / record.seconds
        scalars["images_per_second"] = record.images / record.seconds
        scalars["seconds"] = record.seconds
        scalars["multiply_adds"] = record.macs
        scalars["megabytes_sent"] = self._bytes_sent / 1e6
        return scalars

    def position(self) -> int:
        """Bytes written so far. A checkpoint keeps the number to continue the log from here; `sync` comes before it."""
        return self._file.tell()

    def sync(self) -> None:
        """Waits until all that was written is on the disk. Any thread may call it.

        A checkpoint that outlives a crash of the machine while the log's bytes do not could not be resumed from.
        """
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def _has_line_end(path: Path, position: int) -> bool:
    """Whether a line of the log ends at this byte."""
    if not path.is_file() or path.stat().st_size < position:
        return False
    with open_file(path) as file:
        file.seek(position - 1)
        return file.read(1) == b"\n"
