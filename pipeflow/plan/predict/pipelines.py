"""Pipelines that train the whole flow end to end, a worker a part: latents go forward, their gradients back."""

from dataclasses import dataclass

from pipeflow.flow import Part
from pipeflow.links.codec import DENSITY_BYTES
from pipeflow.plan.predict.cuts import Cut
from pipeflow.plan.predict.prediction import Prediction
from pipeflow.plan.predict.programs import PartCosts, pipeline_programs
from pipeflow.plan.predict.scenario import Scenario
from pipeflow.plan.traffic import latent_bytes

MICRO_BATCHES = (2, 4, 8, 16)


@dataclass(frozen=True)
class Wire:
    """Types of the latents and gradients that travel between the workers of a pipeline."""

    latents: str = "float32"
    gradients: str = "float32"
    has_density_back: bool = True
    """Whether the gradient of the log-density goes back too. It is the same for all images, so that it need not."""
    depth: int | None = None
    """Messages that may wait at each end of a link; None: torch's own, as many as there are."""

    def forward_bytes(self, part: Part, images: float, messages: int = 1) -> float:
        """Bytes of a part's latents and log-densities, in so many messages."""
        return latent_bytes(part, max(1, round(images)), self.latents, messages) + DENSITY_BYTES * images

    def backward_bytes(self, part: Part, images: float, messages: int = 1) -> float:
        """Bytes of the gradients of a part's latents."""
        sent = latent_bytes(part, max(1, round(images)), self.gradients, messages)
        return sent + DENSITY_BYTES * images * self.has_density_back


RIVAL_WIRE = Wire()
"""Types in the pipelines that pipeflow is compared with."""


def predict_pipeline(scenario: Scenario, kind: str, cut: Cut) -> Prediction:
    """A rival's pipeline at the number of micro-batches at which it is fastest."""
    nums = [num for num in MICRO_BATCHES if num <= scenario.batch_size] or [1]
    return min((predict_pipeline_at(scenario, kind, cut, num) for num in nums), key=lambda each: each.seconds)


def predict_pipeline_at(
    scenario: Scenario, kind: str, cut: Cut, num_micro: int, wire: Wire = RIVAL_WIRE, replicas: int = 1
) -> Prediction:
    """A pipeline, `gpipe` or `1f1b`, with this many micro-batches; with replicas several, which share each batch."""
    parts, batch_size = cut.parts, scenario.batch_size
    images = batch_size / replicas / num_micro
    costs, handling = _costs(scenario, cut, images, wire, replicas), scenario.machines.handling_seconds
    # A processor posts torch's recv when it gets there, and gloo sends nothing before; on a GPU it is posted ahead.
    meets = wire.depth is None and scenario.config.run.device == "cpu"
    seconds, busy = scenario.epoch(
        lambda num: pipeline_programs(kind, costs, num_micro, num, handling), wire.depth, 1, meets=meets
    )
    messages = num_micro * replicas
    sent = sum(
        wire.forward_bytes(part, batch_size, messages) + wire.backward_bytes(part, batch_size, messages)
        for part in parts[:-1]
    )
    sent += sum(scenario.counts.replica_bytes(part, replicas) for part in parts)
    return scenario.predict(
        kind,
        cut,
        seconds=seconds,
        sent=scenario.steps() * sent,
        memory=_memory(scenario, kind, cut, num_micro, images),
        idle=1 - busy / (len(parts) * seconds),
        workers=len(parts) * replicas,
        replicas=replicas,
        micro_batches=num_micro,
    )


def _costs(scenario: Scenario, cut: Cut, images: float, wire: Wire, replicas: int) -> list[PartCosts]:
    """Seconds and bytes of each part for a micro-batch."""
    costs, machines = [], scenario.machines
    for owner, part in enumerate(cut.parts):
        work = scenario.work(part)
        # Each replica makes the noise of the whole batch.
        drawn = machines.image_seconds * images * replicas if owner == 0 else 0
        sent, returned = 0.0, 0.0
        if part is not cut.parts[-1]:
            sent, returned = wire.forward_bytes(part, images), wire.backward_bytes(part, images)
        reducing = 0.0
        if replicas > 1:
            reduced = scenario.counts.replica_bytes(part, replicas) / replicas
            hops = 2 * (replicas - 1)
            reducing = reduced / machines.reduce_bytes_per_second + hops * (machines.latency + machines.message_seconds)
        forward = drawn + work.forward(images) + machines.pass_seconds
        backward = work.backward(images) + machines.pass_seconds
        costs.append(PartCosts(forward, backward, work.update, sent, owner, reducing, returned))
    return costs


def _memory(scenario: Scenario, kind: str, cut: Cut, num_micro: int, images: float) -> float:
    """Bytes of the fullest worker: what it keeps and what it received of each micro-batch until its backward."""
    fullest = 0.0
    for index, part in enumerate(cut.parts):
        held = num_micro if kind == "gpipe" else min(num_micro, len(cut.parts) - index)
        kept = held * scenario.counts.activations.of(part).at(images)
        received = held * latent_bytes(cut.parts[index - 1], 1, "float32") * images if index else 0
        fullest = max(fullest, scenario.memory([part], kept, received))
    return fullest
