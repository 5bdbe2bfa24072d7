"""What is measured in a run, and rank 0's log of it: one JSON line an event, and TensorBoard scalars an epoch."""

import os
from pathlib import Path
from typing import Any

from pipeflow.config import FINETUNE
from pipeflow.errors import CheckpointError
from pipeflow.rundir.records import EPOCH, text, to_json, training_bytes, wrong
from pipeflow.safe_files import MAX_JSON_BYTES, open_file, parse_json


def _epochs_in(log: bytes, path: Path) -> list[dict]:
    """The records of epochs in a log. Raises CheckpointError where a line is none that a run writes."""
    epochs = []
    for line, content in enumerate(log.splitlines(), start=1):
        try:
            event = parse_json(content)
        except ValueError as error:
            raise CheckpointError(f"{path}, line {line}: this is no JSON ({error}): the log is damaged.") from None
        found = wrong(event, {"event": text})
        if found is None and event["event"] == "epoch":
            found = wrong(event, EPOCH)
            epochs.append(event)
        if found is not None:
            raise CheckpointError(f"{path}, line {line}: {found}, which no run writes: the log is damaged.")
    return epochs


class MetricsLog:
    """Rank 0's log: `metrics.jsonl`, one line an event, and TensorBoard scalars for the events of kind "epoch".

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
        epochs = _epochs_in(kept, path)
        self._bytes_sent = sum(training_bytes(record) for record in epochs)
        next_epoch = epochs[-1]["epoch"] + 1 if epochs else 0
        self._file = open(path, "r+b" if position else "wb")
        self._file.truncate(position)
        self._file.seek(position)
        self._scalars = SummaryWriter(str(Path(run_dir) / "tensorboard"), purge_step=next_epoch)

    def event(self, kind: str, **fields: Any) -> None:
        """Append the line `{"event": kind, ...}`; it is on its way to the disk when this returns."""
        self._file.write(to_json({"event": kind, **fields}).encode() + b"\n")
        self._file.flush()
        if kind == "epoch":
            self._write_scalars(fields)

    def position(self) -> int:
        """Bytes written so far: what a checkpoint keeps, to continue the log from here. Before it is whole, `sync`."""
        return self._file.tell()

    def sync(self) -> None:
        """Waits until all that was written is on the disk, from whichever thread.

        A checkpoint that outlives a crash of the machine while the log's bytes do not could not be resumed from.
        """
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        self._scalars.close()

    def _write_scalars(self, record: dict) -> None:
        self._bytes_sent += training_bytes(record)
        whole = record["phase"] in FINETUNE
        scalars = {
            f"train_loss/{'whole_flow' if whole else f'part_{part}'}": loss
            for part, loss in record["train_loss"].items()
        }
        if record["test_bpd"] is not None:
            scalars["bits_per_dim/test"] = record["test_bpd"]
        for part, exit_bpd in enumerate(record["exit_bpd"] or []):
            scalars[f"bits_per_dim/exit_of_part_{part}"] = exit_bpd
        scalars["images_per_second"] = record["images"] / record["seconds"]
        scalars["megabytes_sent"] = self._bytes_sent / 1e6
        for tag, scalar in scalars.items():
            self._scalars.add_scalar(tag, scalar, record["epoch"])
        self._scalars.flush()
