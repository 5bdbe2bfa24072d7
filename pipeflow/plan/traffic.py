"""What a run computes and sends, by formula: the bytes of each kind of traffic, and the work of training.

Exact: the links of a run count the same bytes.
"""

from collections.abc import Collection, Sequence

from pipeflow.flow import Part
from pipeflow.links.codec import make_codec
from pipeflow.training.schedule import Phase, training_macs


def latent_bytes(part: Part, batch: int, dtype: str) -> int:
    """Bytes of what a part hands to the next for one batch of this many images, in a type of `link.dtype`."""
    return make_codec(dtype, part.output_shape).num_bytes(batch)


def phase_link_bytes(phase: Phase, parts: Sequence[Part], batch_size: int, dtype: str) -> list[int]:
    """Bytes over each link in a phase's training."""
    return [
        latent_bytes(part, batch_size, dtype) * (phase.count_sent(part.index) if phase.is_local else 0)
        for part in parts[:-1]
    ]


def eval_link_bytes(parts: Sequence[Part], num_images: int) -> list[int]:
    """Bytes over each link in one evaluation before the gather, which is in float32 whatever `link.dtype` is."""
    return [latent_bytes(part, num_images, "float32") for part in parts[:-1]]


def gather_bytes(parts: Sequence[Part], owners: Sequence[int], trained: Collection[int], ema: bool) -> dict[str, int]:
    """Bytes that the gather sends to rank 0, by kind. Heads stay behind; what rank 0 holds is there already.

    Args:
        owners: rank of the worker that holds each part.
        trained: indices of the parts that have been updated, and so have two moments for each parameter.
        ema: whether there are averaged weights.
    """
    counts = {"parameters": 0, "optimizer": 0, "ema": 0}
    for part, owner in zip(parts, owners):
        if owner == 0:
            continue
        counts["parameters"] += sum(tensor.nbytes for tensor in _without_head(part.global_state(), part).values())
        parameters = sum(tensor.nbytes for tensor in _without_head(part.global_parameters(), part).values())
        counts["optimizer"] += 2 * parameters * (part.index in trained)
        counts["ema"] += parameters * ema
    return counts


def gradient_bytes(parts: Sequence[Part], num_workers: int, steps: int) -> int:
    """Bytes that a ring of data-parallel workers sends to average the whole flow's gradients, float32."""
    parameters = sum(
        tensor.nbytes for part in parts for tensor in _without_head(part.global_parameters(), part).values()
    )
    return 2 * (num_workers - 1) * parameters * steps


def replica_bytes(phase: Phase, parts: Sequence[Part], num_replicas: int) -> int:
    """Bytes that a local phase's replicas send to average the gradients of their parts, heads included."""
    values = [sum(value.nbytes for value in part.global_parameters().values()) for part in parts]
    sent = sum(count * phase.count_training(part.index) for part, count in zip(parts, values))
    return 2 * (num_replicas - 1) * sent * phase.is_local


def _without_head(tensors: dict, part: Part) -> dict:
    """The last part's head is the flow's own prior, and stays."""
    head = f"{part.head_name}." if part.head_name.startswith("heads.") else None
    return {name: tensor for name, tensor in tensors.items() if head is None or not name.startswith(head)}


def training_share(phases: Sequence[Phase], parts: Sequence[Part]) -> float:
    """Training multiply-adds of all phases, as a share of the same epochs end to end."""
    whole = 3 * sum(part.multiply_adds() for part in parts)
    return sum(training_macs(phase, parts, 1) for phase in phases) / sum(phase.steps * whole for phase in phases)
