"""Facts of a run that no epoch changes, and the records that stand on them: a checkpoint's manifest and the summary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors
import torch

import pipeflow
from pipeflow.config import Config
from pipeflow.flow import Part
from pipeflow.rundir.records import (
    Change,
    Epoch,
    GivenLabel,
    Manifest,
    Memory,
    PartSummary,
    Position,
    Stage,
    Summary,
    ValuesRecord,
)
from pipeflow.training.totals import Evaluated, RunningTotals
from pipeflow.workers.world import World


@dataclass(frozen=True)
class Facts:
    """A run as it is cut and spread now."""

    name: str
    """Name of the run folder."""
    config: Config
    parts: Sequence[Part]
    world: World
    fingerprint: str
    """Fingerprint of the images."""
    given_label: GivenLabel | None
    changes: tuple[Change, ...]
    """Options that changed where the run was resumed."""

    @property
    def values(self) -> ValuesRecord | None:
        """The values that the flow is trained on, where they are not 8-bit values of its own shape."""
        return ValuesRecord.of(self.parts[0].values)

    @property
    def given(self) -> str:
        """The words behind the whole flow's bits/dim, where they are given the label."""
        return "" if self.given_label is None else " given the label"

    def text(self, bits_per_dim: float) -> str:
        """Bits/dim of the whole flow in words."""
        return self.parts[0].values.text(bits_per_dim) + self.given

    def of_the_bits(self) -> dict[str, Any]:
        """The fields of a log's `start` event that say what the bits/dim are of, where there is something to say."""
        records = {"values": self.values, "given_label": self.given_label}
        return {name: record.to_json() for name, record in records.items() if record is not None}

    def manifest(
        self,
        stage: Stage,
        counts: Mapping[str, tuple[int, int]],
        position: Position | None,
        history: Sequence[Epoch],
        totals: RunningTotals,
        log_position: int,
    ) -> Manifest:
        """The manifest of a checkpoint behind these epochs, without its files."""
        return Manifest(
            epoch=len(history),
            files=(),
            stage=stage,
            config=self.config.to_dict(),
            shape=self.parts[0].input_shape,
            cuts=tuple(part.names[0] for part in self.parts[1:]),
            counts=counts,
            history=tuple(history),
            state=totals.to_record(),
            log_position=log_position,
            position=position,
            data=self.fingerprint,
            values=self.values,
            given_label=self.given_label,
            changes=self.changes,
        )

    def summary(
        self,
        history: Sequence[Epoch],
        totals: RunningTotals,
        final: Evaluated,
        memory: Sequence[tuple[int, int]],
    ) -> Summary:
        """The summary of the run that ends so. memory: bytes that each worker held at first, and at most."""
        world = self.world
        return Summary(
            name=self.name,
            test_bpd=final.test_bpd,
            initial_bpd=totals.initial_bpd,
            exit_bpd=totals.exit_bpd,
            num_epochs=len(history),
            train_macs=totals.macs,
            epochs=tuple(history),
            parts=tuple(PartSummary.from_json(part.describe()) for part in self.parts),
            seconds=totals.run_seconds(),
            bytes=totals.run_bytes(num_links=len(self.parts) - 1),
            memory=Memory(before=tuple(before for before, _ in memory), peak=tuple(peak for _, peak in memory)),
            wire=totals.wire,
            world_size=world.size,
            replicas=self.config.parts.replicas,
            backend=world.backend if world.size > 1 else "none",
            device=world.device.type,
            versions={
                "pipeflow": pipeflow.__version__,
                "torch": torch.__version__,
                "safetensors": safetensors.__version__,
            },
            test_bpd_raw=final.test_bpd_raw,
            data=self.fingerprint,
            values=self.values,
            given_label=self.given_label,
            changes=self.changes,
        )
