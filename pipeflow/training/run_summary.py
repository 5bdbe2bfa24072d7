"""The summary of a run that has ended, from what rank 0 has taken down."""

from collections.abc import Sequence

import safetensors
import torch

import pipeflow
from pipeflow.config import Config
from pipeflow.flow import Part
from pipeflow.rundir.records import Epoch, Memory, PartSummary, Summary
from pipeflow.training.totals import Evaluated, RunningTotals
from pipeflow.workers.world import World


def run_summary(
    name: str,
    config: Config,
    world: World,
    parts: Sequence[Part],
    history: Sequence[Epoch],
    totals: RunningTotals,
    final: Evaluated,
    memory: Sequence[tuple[int, int]],
) -> Summary:
    """Results and costs of a run, without what tells of its data and of changed options.

    final: the last evaluation. memory: bytes that each worker held at first, and at most.
    """
    return Summary(
        name=name,
        test_bpd=final.test_bpd,
        initial_bpd=totals.initial_bpd,
        exit_bpd=totals.exit_bpd,
        num_epochs=len(history),
        train_macs=totals.macs,
        epochs=tuple(history),
        parts=tuple(PartSummary.from_json(part.describe()) for part in parts),
        seconds=totals.run_seconds(),
        bytes=totals.run_bytes(num_links=len(parts) - 1),
        memory=Memory(before=tuple(before for before, _ in memory), peak=tuple(peak for _, peak in memory)),
        wire=totals.wire,
        world_size=world.size,
        replicas=config.parts.replicas,
        backend=world.backend if world.size > 1 else "none",
        device=world.device.type,
        versions={
            "pipeflow": pipeflow.__version__,
            "torch": torch.__version__,
            "safetensors": safetensors.__version__,
        },
        test_bpd_raw=final.test_bpd_raw,
    )
