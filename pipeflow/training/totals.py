"""Costs of a run so far: seconds, bytes and multiply-adds, in all and in the epoch that goes on."""

import dataclasses
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

from pipeflow.links.channel import BACKWARD, FORWARD
from pipeflow.rundir.records import (
    Carried,
    Epoch,
    EpochBytes,
    GatherKind,
    ReplicaBytes,
    RunBytes,
    RunSeconds,
    Totals,
)
from pipeflow.training.schedule import Phase

Traffic = Iterable[tuple[str, int, int, int]]
"""Bytes as `(kind, source, target, count)`."""

_GATHER: tuple[GatherKind, ...] = ("parameters", "optimizer", "ema")
_SHOWN = ("latents", "pipeline", "backward", "gradients", "images")
"""Kinds of bytes that the progress display adds up; images were sent in runs of 0.1."""


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Test bits/dim of the whole flow, and exit bits/dim while there are heads."""

    test_bpd: float
    exit_bpd: tuple[float, ...] | None
    test_bpd_raw: float | None = None
    """Bits/dim of the trained weights, where `test_bpd` is that of their average."""


class EpochDraft:
    """The record of an epoch that goes on."""

    def __init__(self, phase: Phase, num_links: int, first_step: int = 0, carried: Carried | None = None):
        """first_step: where the epoch goes on after an interruption. carried: seconds and bytes before, if they count."""
        self.phase = phase
        self._first_step = first_step
        self.num_batches = phase.steps - (first_step if carried is None else 0)
        """Batches that the record's seconds are those of."""
        self._began = time.perf_counter()
        self.seconds = 0.0 if carried is None else carried.seconds
        self.fields: dict[str, Any] = {"test_bpd": None, "exit_bpd": None}
        """The rest of the record, as far as it is known."""
        self._latents = [0] * (num_links if phase.is_local else 0)
        self._backward: list[int] = []
        self._others = {"eval": 0, "gradients": 0, "images": 0, "control": 0}
        if carried is not None:
            # These counts are of other links, if the cuts were others.
            self._latents = _sum_of(self._latents, [count for _, _, count in carried.bytes.latents])
            self._backward = [count for _, _, count in carried.bytes.backward]
            self._others = {kind: getattr(carried.bytes, kind) for kind in self._others}

    def batches_per_second(self, step: int) -> float:
        """Speed in this process, when it has come to batch `step`."""
        return (step - self._first_step) / (time.perf_counter() - self._began)

    def add_bytes(self, kind: str, source: int, count: int) -> None:
        """Counts bytes of the epoch; other kinds belong to none."""
        if kind in ("latents", FORWARD):
            self._latents = _sum_of(self._latents, [0] * source + [count])
        elif kind == BACKWARD:
            self._backward = _sum_of(self._backward, [0] * (source - 1) + [count])
        elif kind in self._others:
            self._others[kind] += count

    @property
    def carried(self) -> Carried:
        """Seconds and bytes until now, which the record needs if the epoch is interrupted here."""
        forward = tuple((link, link + 1, count) for link, count in enumerate(self._latents))
        back = tuple((link + 1, link, count) for link, count in enumerate(self._backward))
        return Carried(seconds=self.seconds, bytes=EpochBytes(latents=forward, backward=back, **self._others))

    def finished(self) -> Epoch:
        """The whole record."""
        phase, carried = self.phase, self.carried
        return Epoch(
            epoch=phase.epoch, phase=phase.mode, trained=tuple(phase.trained), steps=phase.steps,
            seconds=carried.seconds, bytes=carried.bytes, **self.fields,
        )  # fmt: skip


class RunningTotals:
    """Seconds, bytes and multiply-adds of a run, and the bits/dim that its summary repeats."""

    def __init__(self, before: Totals | None, travels: bool):
        """before: totals of the checkpoint that the run goes on from. travels: whether there are several workers now."""
        self.wire = travels or (before is not None and before.wire)
        self.seconds: dict[str, float] = dataclasses.asdict(RunSeconds() if before is None else before.seconds)
        self.macs = 0 if before is None else before.macs
        self.initial_bpd = 0.0 if before is None else before.initial_bpd
        self.exit_bpd = None if before is None else before.exit_bpd
        self._bytes: Counter[str] = Counter({} if before is None else before.bytes)
        self._began = time.perf_counter() - self.seconds["total"]

    def add_bytes(self, traffic: Traffic, draft: EpochDraft | None) -> None:
        """Counts bytes, in the record of the epoch that goes on too."""
        for kind, source, target, count in traffic:
            name = kind
            if kind == "latents":  # by link, and by direction: that none goes back is counted, not assumed
                name = f"latents/{source}" if target > source else f"backward/{target}"
            elif kind == FORWARD:
                name = f"pipeline/{source}"
            elif kind == BACKWARD:
                name = f"backward/{target}"
            elif kind == "gradients" and (draft is None or draft.phase.is_local):
                name = "gradients/replicas"
            self._bytes[name] += count
            if draft is not None:
                draft.add_bytes(kind, source, count)

    @property
    def shown_bytes(self) -> int:
        """Bytes that the progress display adds up."""
        return sum(count for name, count in self._bytes.items() if name.split("/")[0] in _SHOWN)

    def gathered_bytes(self) -> dict[GatherKind, int]:
        """Bytes that gathers have sent, by kind."""
        return {kind: self._bytes[kind] for kind in _GATHER}

    def run_seconds(self) -> RunSeconds:
        """Seconds until now."""
        self.seconds["total"] = time.perf_counter() - self._began
        return RunSeconds(**self.seconds)

    def to_record(self) -> Totals:
        """The totals as a checkpoint keeps them."""
        return Totals(
            seconds=self.run_seconds(),
            bytes=dict(self._bytes),
            macs=self.macs,
            initial_bpd=self.initial_bpd,
            wire=self.wire,
            exit_bpd=self.exit_bpd,
        )

    def run_bytes(self, num_links: int) -> RunBytes:
        """The bytes as a summary has them. num_links: of the run as it is cut now."""
        sent = self._bytes
        used = [int(name.split("/")[1]) + 1 for name in sent if name.startswith(("latents/", "pipeline/", "backward/"))]
        links = range(max(num_links, *used, 0))  # a run that was cut otherwise before had other links
        return RunBytes(
            forward=tuple(sent[f"latents/{link}"] + sent[f"pipeline/{link}"] for link in links),
            backward=tuple(sent[f"backward/{link}"] for link in links),
            eval=sent["eval"],
            initial=sent["initial"],
            gather=self.gathered_bytes(),
            finetune=sent["gradients"] + sent["images"],
            replicas=ReplicaBytes(
                gradients=sent["gradients/replicas"], images=sent["images/replicas"], start=sent["replicas"]
            ),
            control=sent["control"],
            labels=sent["labels"],
            samples=sent["samples"],
            total=sent.total(),
        )


def _sum_of(left: Sequence[int], right: Sequence[int]) -> list[int]:
    """The counts of each link, of either or of both."""
    return [sum(counts) for counts in zip_longest(left, right, fillvalue=0)]
