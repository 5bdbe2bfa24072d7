"""Seconds of the end-to-end epochs that follow on local ones, with the gather before them, by `finetune.parallel`."""

from collections.abc import Sequence

from pipeflow.flow import Part
from pipeflow.plan.predict.data_parallel import predict_data_parallel, predict_end_to_end
from pipeflow.plan.predict.pipelines import MICRO_BATCHES
from pipeflow.plan.predict.prediction import PIPELINES
from pipeflow.plan.predict.programs import PartCosts, pipeline_programs
from pipeflow.plan.predict.scenario import Scenario
from pipeflow.plan.traffic import pipeline_latent_bytes


def finetune_seconds(
    scenario: Scenario, parts: Sequence[Part], owners: Sequence[int], replicas: int, num_epochs: int
) -> dict[str, float]:
    """All end-to-end epochs of a run, in each way that these workers can take.

    `pipeline` is as configured, and the quickest of the others stands beside it: `pipeline, gpipe x16`.

    owners: the place that holds each part, with `replicas` workers.
    """
    gathered = sum(scenario.counts.gathered_bytes(part) for part, owner in zip(parts, owners) if owner != 0)
    gather = gathered / scenario.machines.bytes_per_second
    seconds = {"single": gather + num_epochs * predict_end_to_end(scenario).seconds}
    if scenario.machines.workers > 1:
        seconds["ddp"] = gather + num_epochs * predict_data_parallel(scenario)[0].seconds
    if max(owners) > 0:
        configured = scenario.config.finetune
        seconds["pipeline"] = num_epochs * _pipelined_seconds(
            scenario, parts, owners, replicas, configured.schedule, configured.micro_batches
        )
        others = {
            f"pipeline, {schedule} x{slices}": _pipelined_seconds(scenario, parts, owners, replicas, schedule, slices)
            for schedule in PIPELINES
            for slices in MICRO_BATCHES
            if scenario.batch_size % (replicas * slices) == 0 and (schedule == "gpipe" or slices > max(owners))
        }
        if others:
            quickest = min(others, key=lambda way: others[way])
            seconds[quickest] = num_epochs * others[quickest]
    return seconds


def _pipelined_seconds(
    scenario: Scenario, parts: Sequence[Part], owners: Sequence[int], replicas: int, schedule: str, slices: int
) -> float:
    """Seconds of an end-to-end epoch over the links of the parts: nothing is gathered."""
    places, machines = max(owners) + 1, scenario.machines
    images = scenario.batch_size / replicas / slices
    stages = [[part for part, owner in zip(parts, owners) if owner == place] for place in range(places)]
    costs = []
    for place, stage in enumerate(stages):
        works = [scenario.work(part) for part in stage]
        # The first replica draws the whole batch, and each makes the noise of all of it.
        drawn = machines.image_seconds * images * replicas if place == 0 else 0
        sent, back = (0.0, 0.0) if place == places - 1 else _link_bytes(scenario, stage[-1], images)
        costs.append(
            PartCosts(
                forward=drawn + sum(work.forward(images) for work in works),
                backward=sum(work.backward(images) for work in works),
                update=sum(work.update for work in works) + _reducing(scenario, stage, replicas),
                sent=sent,
                owner=place,
                returned=back,
            )
        )
    handling, depth = machines.handling_seconds, scenario.config.link.depth
    seconds, _ = scenario.epoch(lambda num: pipeline_programs(schedule, costs, slices, num, handling), depth, period=1)
    return seconds


def _link_bytes(scenario: Scenario, part: Part, images: float) -> tuple[float, float]:
    """Bytes of a slice that go forward over the link behind a part, and back."""
    config = scenario.config
    num = max(1, round(images))
    forward, back = pipeline_latent_bytes(part, num, config.link.dtype, config.finetune.gradient_dtype)
    return forward * images / num, back * images / num


def _reducing(scenario: Scenario, stage: Sequence[Part], replicas: int) -> float:
    """Seconds in which replicas add up their gradients, behind the backward."""
    if replicas == 1:
        return 0.0
    machines, hops = scenario.machines, 2 * (replicas - 1)
    sent = hops / replicas * sum(parameter.nbytes for part in stage for parameter in part.layers.parameters())
    handling = 2 * (hops * machines.message_seconds + sent * machines.byte_seconds)
    return handling + sent / machines.reduce_bytes_per_second + hops * machines.latency
