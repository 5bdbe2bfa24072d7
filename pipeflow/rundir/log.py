"""The log of a run, kept by rank 0: one JSON line an event in `metrics.jsonl`, and TensorBoard scalars an epoch."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeflow.errors import CheckpointError
from pipeflow.rundir.records import Epoch, Gather, Start
from pipeflow.rundir.typed_json import Record, Text, dumps
from pipeflow.safe_files import MAX_JSON_BYTES, open_file, parse_json

Event = Start | Epoch | Gather
_EVENTS: dict[str, type[Event]] = {"start": Start, "epoch": Epoch, "gather": Gather}


def events_in(log: bytes, path: Path) -> list[Event]:
    """The events of a log that are read back; others, as of a checkpoint, are left out.

    Raises CheckpointError where a line is none that a run writes.
    """
    events: list[Event] = []
    for number, line in enumerate(log.splitlines(), start=1):
        try:
            value = parse_json(line)
            kind = _Event.from_json(value).event
            if kind in _EVENTS:
                events.append(_EVENTS[kind].from_json(value))
        except ValueError as error:
            raise CheckpointError(
                f"{path}, line {number}: {error}. The log is damaged: take it from a copy, or run again."
            ) from None
    return events


@dataclass(frozen=True, kw_only=True)
class _Event(Record):
    event: Text


class MetricsLog:
    """The log that a run writes.

    Args:
        run_dir: the run's folder; it must exist.
        position: bytes of an earlier log to keep, as `position()` gave them when the checkpoint was taken. What comes
            after them is cut off, since it will be done again; 0 starts a new log.

    Raises:
        CheckpointError: the log in the folder is shorter than `position`, or has no line ending there.
    """

    def __init__(self, run_dir: str | Path, position: int = 0):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only rank 0 needs it

        path = Path(run_dir) / "metrics.jsonl"
        kept = b""
        if position and path.is_file():
            with open_file(path) as file:
                kept = file.read(min(position, MAX_JSON_BYTES))
        if len(kept) < position or (kept and not kept.endswith(b"\n")):
            raise CheckpointError(
                f"{path} is not the log this checkpoint was taken with: no line ends at byte {position}. "
                f"Put the log back, or start the run again in another folder (run.dir)."
            )
        epochs = [event for event in events_in(kept, path) if isinstance(event, Epoch)]
        self._bytes_sent = sum(record.training_bytes for record in epochs)
        next_epoch = epochs[-1].epoch + 1 if epochs else 0
        self._file = open(path, "r+b" if position else "wb")
        self._file.truncate(position)
        self._file.seek(position)
        self._scalars = SummaryWriter(str(Path(run_dir) / "tensorboard"), purge_step=next_epoch)

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
