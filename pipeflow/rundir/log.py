"""The log of a run, kept by rank 0: one JSON line an event in `metrics.jsonl`, and TensorBoard scalars an epoch."""

import os
from pathlib import Path
from typing import Any

from pipeflow.errors import CheckpointError
from pipeflow.rundir.records import Epoch, Manifest
from pipeflow.rundir.typed_json import dumps
from pipeflow.safe_files import open_file


class MetricsLog:
    """The log that a run writes."""

    def __init__(self, run_dir: str | Path, manifest: Manifest | None = None):
        """manifest: of the checkpoint to go on from. Events since then are cut off, since they happen again.

        Raises CheckpointError where the log in the folder is not the one that the checkpoint was taken with.
        """
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only rank 0 needs it

        path = Path(run_dir) / "metrics.jsonl"
        position, history = (0, ()) if manifest is None else (manifest.log_position, manifest.history)
        if position and not _has_line_end(path, position):
            raise CheckpointError(
                f"{path} is not the log this checkpoint was taken with: no line ends at byte {position}. "
                f"Put the log back, or start the run again in another folder (run.dir)."
            )
        self._bytes_sent = sum(record.training_bytes for record in history)
        self._file = open(path, "r+b" if position else "wb")
        self._file.truncate(position)
        self._file.seek(position)
        self._scalars = SummaryWriter(str(Path(run_dir) / "tensorboard"), purge_step=len(history))

    def event(self, kind: str, **fields: Any) -> None:
        """Appends the line `{"event": kind, ...}`, which is on its way to the disk when this returns."""
        self._file.write(dumps({"event": kind, **fields}).encode() + b"\n")
        self._file.flush()

    def epoch(self, record: Epoch) -> None:
        """Appends the event of a finished epoch, and its scalars."""
        self.event("epoch", **record.to_json())
        self._bytes_sent += record.training_bytes
        scalars = {
            f"train_loss/{f'part_{part}' if record.is_local else 'whole_flow'}": loss
            for part, loss in record.train_loss.items()
        }
        if record.test_bpd is not None:
            scalars["bits_per_dim/test"] = record.test_bpd
        for index, exit_bpd in enumerate(record.exit_bpd or ()):
            scalars[f"bits_per_dim/exit_of_part_{index}"] = exit_bpd
        scalars["images_per_second"] = record.images / record.seconds
        scalars["megabytes_sent"] = self._bytes_sent / 1e6
        for tag, scalar in scalars.items():
            self._scalars.add_scalar(tag, scalar, record.epoch)
        self._scalars.flush()

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
        self._scalars.close()


def _has_line_end(path: Path, position: int) -> bool:
    """Whether a line of the log ends at this byte."""
    if not path.is_file() or path.stat().st_size < position:
        return False
    with open_file(path) as file:
        file.seek(position - 1)
        return file.read(1) == b"\n"
