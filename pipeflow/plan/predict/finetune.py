"""The end-to-end epochs behind the local ones: on one worker, on several that share a batch, or in a pipeline of parts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeflow.plan.predict.cuts import Cut
from pipeflow.plan.predict.data_parallel import predict_data_parallel, predict_end_to_end
from pipeflow.plan.predict.pipelines import MICRO_BATCHES, Wire, predict_pipeline_at
from pipeflow.plan.predict.prediction import PIPELINES, Prediction
from pipeflow.plan.predict.scenario import Scenario

QUICKEST = "quickest"
"""Beside the values of `finetune.parallel`: whichever takes the shortest, a pipeline with the slices that suit it best."""


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """How end-to-end epochs run, and what they take."""

    name: str
    """single, ddp, or the pipeline's schedule with its slices: `gpipe x16`."""
    seconds: float
    """Seconds of an epoch."""
    bytes: float
    """Bytes sent in an epoch."""
    moved: float
    """Bytes of parameters and moments that are sent once before: to the first worker, and with ddp from there to all."""
    memory: float = 0.0
    """Bytes of a pipeline's fullest worker."""


def predict_finetune(scenario: Scenario, how: str, cut: Cut, owners: Sequence[int], replicas: int) -> Finetune:
    """Predicts the end-to-end epochs of a run.

    Args:
        how: a value of `finetune.parallel`, or QUICKEST.
        cut, owners, replicas: of the local epochs before: the parts, the worker of each, and on how many workers each is.
    """
    counts, workers = scenario.counts, scenario.machines.workers
    gathered = sum(counts.gathered_bytes(part) for part, owner in zip(cut.parts, owners) if owner != 0)
    single = Finetune(name="single", seconds=predict_end_to_end(scenario).seconds, bytes=0, moved=gathered)
    ways = [single]
    if workers > 1 and how in ("ddp", QUICKEST):
        found = predict_data_parallel(scenario)[0]
        moved = gathered + (workers - 1) * counts.gathered_bytes(counts.whole)
        ways.append(Finetune(name="ddp", seconds=found.seconds, bytes=found.bytes, moved=moved))
    if max(owners) > 0 and how in ("pipeline", QUICKEST):
        ways += [
            Finetune(
                name=f"{each.system} x{each.micro_batches}",
                seconds=each.seconds,
                bytes=each.bytes,
                moved=0,
                memory=each.memory,
            )
            for each in _pipelines(scenario, how, _stages(scenario, cut, owners), replicas)
        ]
    if how != QUICKEST:
        return ways[-1]
    limit = scenario.machines.memory or math.inf
    return min(ways, key=lambda way: (way.memory > limit, run_seconds(scenario, way)))


def run_seconds(scenario: Scenario, way: Finetune) -> float:
    """Seconds of all end-to-end epochs, with what is sent before them."""
    return scenario.config.schedule.finetune_epochs * way.seconds + way.moved / scenario.machines.bytes_per_second


def _stages(scenario: Scenario, cut: Cut, owners: Sequence[int]) -> Cut:
    """The parts of each worker as one."""
    if len(cut.parts) == max(owners) + 1:
        return cut
    names = [part.names[0] for part, owner, before in zip(cut.parts[1:], owners[1:], owners) if owner != before]
    return Cut(cut.name, scenario.counts.cuts.split(names))


def _pipelines(scenario: Scenario, how: str, stages: Cut, replicas: int) -> list[Prediction]:
    """The configured pipeline, or all that a run could be configured to have."""
    config = scenario.config
    wire = Wire(config.link.dtype, config.finetune.gradient_dtype, has_density_back=False, depth=config.link.depth)
    ways: list[tuple[str, int]] = [(config.finetune.schedule, config.finetune.micro_batches)]
    if how == QUICKEST:
        ways = [
            (kind, num)
            for kind in PIPELINES
            for num in MICRO_BATCHES
            if scenario.batch_size % (replicas * num) == 0 and (kind == "gpipe" or num >= len(stages.parts))
        ]
    return [predict_pipeline_at(scenario, kind, stages, num, wire, replicas) for kind, num in ways]
