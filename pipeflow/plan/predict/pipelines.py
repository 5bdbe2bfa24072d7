"""Pipelines that train the whole flow end to end, a worker a part: latents go forward, their gradients back."""

from pipeflow.plan.predict.cuts import Cut
from pipeflow.plan.predict.prediction import Prediction
from pipeflow.plan.predict.programs import PartCosts, pipeline_programs
from pipeflow.plan.predict.scenario import Scenario
from pipeflow.plan.traffic import latent_bytes

MICRO_BATCHES = (2, 4, 8, 16)
_DENSITY = 8
"""Bytes an image that travel beside each latent, and beside its gradient: the log-density so far, float64."""


def predict_pipeline(scenario: Scenario, kind: str, cut: Cut) -> Prediction:
    """A pipeline at the number of micro-batches at which it is fastest."""
    nums = [num for num in MICRO_BATCHES if num <= scenario.batch_size] or [1]
    return min((predict_pipeline_at(scenario, kind, cut, num) for num in nums), key=lambda each: each.seconds)


def predict_pipeline_at(scenario: Scenario, kind: str, cut: Cut, num_micro: int) -> Prediction:
    """A pipeline, `gpipe` or `1f1b`, with this many micro-batches."""
    parts, batch_size = cut.parts, scenario.batch_size
    images = batch_size / num_micro
    costs, handling = _costs(scenario, cut, images), scenario.machines.handling_seconds
    seconds, busy = scenario.epoch(lambda num: pipeline_programs(kind, costs, num_micro, num, handling), None, 1)
    latents = sum(latent_bytes(part, batch_size, "float32") + _DENSITY * batch_size for part in parts[:-1])
    return scenario.predict(
        kind,
        cut,
        seconds=seconds,
        sent=2 * scenario.steps() * latents,
        memory=_memory(scenario, kind, cut, num_micro),
        idle=1 - busy / (len(parts) * seconds),
        workers=len(parts),
        micro_batches=num_micro,
    )


def _costs(scenario: Scenario, cut: Cut, images: float) -> list[PartCosts]:
    """Seconds and bytes of each part for a micro-batch."""
    costs, fixed = [], scenario.machines.pass_seconds
    for owner, part in enumerate(cut.parts):
        work = scenario.work(part)
        drawn = scenario.machines.image_seconds * images if owner == 0 else 0
        sent = 0.0
        if part is not cut.parts[-1]:
            sent = latent_bytes(part, max(1, round(images)), "float32") + _DENSITY * images
        forward, backward = drawn + work.forward(images) + fixed, work.backward(images) + fixed
        costs.append(PartCosts(forward, backward, work.update, sent, owner))
    return costs


def _memory(scenario: Scenario, kind: str, cut: Cut, num_micro: int) -> float:
    """Bytes of the fullest worker: what it keeps and what it received of each micro-batch until its backward."""
    images, fullest = scenario.batch_size / num_micro, 0.0
    for index, part in enumerate(cut.parts):
        held = num_micro if kind == "gpipe" else min(num_micro, len(cut.parts) - index)
        kept = held * scenario.counts.activations.of(part).at(images)
        received = held * latent_bytes(cut.parts[index - 1], 1, "float32") * images if index else 0
        fullest = max(fullest, scenario.memory([part], kept, received))
    return fullest
