"""Records of runs that were never made."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeflow.rundir.checkpoint import Checkpoints
from pipeflow.rundir.log import MetricsLog
from pipeflow.rundir.records import Epoch, EpochBytes, File, Manifest, RunBytes, RunSeconds, Summary, Totals
from pipeflow.rundir.typed_json import dumps
from pipeflow.training.snapshot import Snapshot

GATHER = {"parameters": 400, "optimizer": 800, "ema": 0}


def epoch(
    number: int, phase: str = "concurrent", trained: Sequence[int] = (0, 1, 2), latents: int = 1000, **changes
) -> Epoch:
    """An epoch of three parts."""
    local = phase not in ("finetune", "end_to_end")
    bpd = 6.0 - 0.1 * number
    record = Epoch(
        epoch=number,
        phase=phase,
        trained=tuple(trained),
        steps=4,
        train_loss={str(part): 1.0 for part in trained} if local else {"flow": 1.0},
        test_bpd=bpd,
        exit_bpd=(bpd + 1, bpd + 0.5, bpd) if local else None,
        seconds=2.0,
        images=100,
        macs=10**9,
        bytes=EpochBytes(
            latents=((0, 1, 2 * latents), (1, 2, latents)) if local else (),
            eval=50,
            gradients=0 if local else 300,
            control=5,
        ),
    )
    return dataclasses.replace(record, **changes)


def epochs(schedule: list[tuple[str, list[int]]], latents: int = 1000) -> tuple[Epoch, ...]:
    """Epochs of three parts, by phase and trained parts."""
    return tuple(epoch(number, phase, trained, latents) for number, (phase, trained) in enumerate(schedule))


ALTERNATE = epochs([("alternate", [part]) for part in (0, 1, 2)] + [("finetune", [0, 1, 2])] * 2)


def summary(name: str, records: tuple[Epoch, ...] = ALTERNATE, gather: dict | None = None, **changes) -> Summary:
    """The summary of such a run."""
    forward = [sum(record.bytes.latents[link][2] for record in records if record.bytes.latents) for link in (0, 1)]
    made = Summary(
        name=name,
        test_bpd=5.55,
        initial_bpd=7.0,
        exit_bpd=(6.8, 6.3, 5.8),
        num_epochs=len(records),
        train_macs=10**9 * len(records),
        epochs=records,
        parts=(),
        seconds=RunSeconds(gather=0.5),
        bytes=RunBytes(
            forward=tuple(forward),
            backward=(0, 0),
            eval=50 * len(records),
            gather=GATHER if gather is None else gather,
            finetune=700,
            control=5 * len(records),
            total=12_345_678,
        ),
    )
    return dataclasses.replace(made, **changes)


def manifest(num_epochs: int, **changes) -> Manifest:
    """The manifest of a checkpoint of a run of one part after some epochs."""
    made = Manifest(
        epoch=num_epochs,
        files=(),
        stage="local",
        counts={},
        history=epochs([("concurrent", [0])] * num_epochs),
        state=Totals(seconds=RunSeconds(), bytes={}, macs=0, initial_bpd=7.0, exit_bpd=None),
        log_position=0,
    )
    return dataclasses.replace(made, **changes)


def write(folder: Path, records: tuple[Epoch, ...] = ALTERNATE, **changes) -> Path:
    """A folder with the summary of a run that has ended."""
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(dumps(summary(folder.name, records, **changes).to_json()))
    return folder


def write_log(folder: Path, records: tuple[Epoch, ...], *more: tuple[str, dict]) -> Path:
    """A folder with the log of a run that goes on."""
    folder.mkdir()
    log = MetricsLog(folder)
    log.event("start", initial_bpd=7.0, parts=[], world_size=3)
    for record in records:
        log.epoch(record)
    for kind, fields in more:
        log.event(kind, **fields)
    log.close()
    return folder


def write_file(checkpoints: Checkpoints, epoch: int, rank: int, tensors: dict[str, torch.Tensor]) -> File:
    """One worker's file of a checkpoint; its entry for the manifest."""
    snapshot = Snapshot()
    snapshot.take(tensors)
    writing = checkpoints.write(epoch, rank, snapshot.chunks())
    while True:
        try:
            next(writing)
        except StopIteration as written:
            return written.value
