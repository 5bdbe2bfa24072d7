"""Bytes that a run sends, by formula, for each kind of traffic; and its share of the work of end-to-end training.

The formulas are exact: the links of a run count the same bytes.
"""

from collections.abc import Collection, Sequence

from torch import nn

from pipeflow.config import Config
from pipeflow.flow import Part
from pipeflow.flow.part import is_head
from pipeflow.links.codec import DENSITY_BYTES, make_codec
from pipeflow.training.schedule import Phase, training_macs


def latent_bytes(part: Part, batch: int, dtype: str, messages: int = 1) -> int:
    """Bytes of a part's latents for a batch of this many images, in a type of `link.dtype`.

    messages: the latents in which the batch travels. Their number changes only what each has beside the values.
    """
    codec = make_codec(dtype, part.output_shape)
    return codec.num_bytes(batch) + (messages - 1) * codec.num_bytes(0)


def latent_messages(config: Config) -> int:
    """The latents in which a training batch travels: one for each micro-batch of each replica's share."""
    return config.parts.replicas * config.memory.micro_batches


def phase_link_bytes(phase: Phase, parts: Sequence[Part], batch_size: int, dtype: str, messages: int = 1) -> list[int]:
    """Bytes over each link in a phase's training. messages: as for `latent_bytes`."""
    if not phase.is_local:
        return [0] * (len(parts) - 1)
    return [latent_bytes(part, batch_size, dtype, messages) * phase.count_sent(part.index) for part in parts[:-1]]


def pipeline_latent_bytes(
    part: Part, batch: int, dtype: str, gradient_dtype: str, messages: int = 1
) -> tuple[int, int]:
    """Bytes over the link behind a part for a batch in a pipeline: latents and densities forward, gradients back."""
    forward = latent_bytes(part, batch, dtype, messages) + DENSITY_BYTES * batch
    return forward, latent_bytes(part, batch, gradient_dtype)


def pipeline_link_bytes(phase: Phase, parts: Sequence[Part], config: Config) -> list[tuple[int, int]]:
    """Bytes over each link in an end-to-end phase that is a pipeline, forward and back."""
    messages = config.parts.replicas * config.finetune.micro_batches
    types = config.link.dtype, config.finetune.gradient_dtype
    of_batch = [pipeline_latent_bytes(part, config.optim.batch_size, *types, messages) for part in parts[:-1]]
    return [(phase.steps * forward, phase.steps * back) for forward, back in of_batch]


def eval_link_bytes(parts: Sequence[Part], num_images: int) -> list[int]:
    """Bytes over each link in one evaluation of parts, which is in float32 whatever `link.dtype` is."""
    return [latent_bytes(part, num_images, "float32") for part in parts[:-1]]


def label_bytes(parts: Sequence[Part], num_replicas: int, num_images: int) -> int:
    """Bytes of the labels of all images, int64, which go once to each worker whose part takes them and is not the first."""
    return 8 * num_images * num_replicas * sum(part.num_classes is not None for part in parts[1:])


def gather_bytes(parts: Sequence[Part], owners: Sequence[int], trained: Collection[int], ema: bool) -> dict[str, int]:
    """Bytes that the gather sends to rank 0, by kind, without heads and without what rank 0 holds already.

    Args:
        owners: rank of the worker that holds each part.
        trained: indices of the parts that have been updated, and so have two moments for each parameter.
        ema: whether there are averaged weights.
    """
    counts = {"parameters": 0, "optimizer": 0, "ema": 0}
    for part in (part for part, owner in zip(parts, owners) if owner != 0):
        parameters = _parameter_bytes(part)
        state = [module.state_dict(keep_vars=True) for module in _flow_modules(part)]
        counts["parameters"] += sum(tensor.nbytes for tensors in state for tensor in tensors.values())
        counts["optimizer"] += 2 * parameters * (part.index in trained)
        counts["ema"] += parameters * ema
    return counts


def gradient_bytes(parts: Sequence[Part], num_workers: int, steps: int) -> int:
    """Bytes that a ring of data-parallel workers sends to average the whole flow's gradients, float32."""
    return 2 * (num_workers - 1) * sum(map(_parameter_bytes, parts)) * steps


def replica_bytes(phase: Phase, parts: Sequence[Part], num_replicas: int) -> int:
    """Bytes that a local phase's replicas send to average the gradients of their parts, heads included."""
    if not phase.is_local:
        return 0
    values = [sum(parameter.nbytes for parameter in part.parameters()) for part in parts]
    sent = sum(count * phase.count_training(part.index) for part, count in zip(parts, values))
    return 2 * (num_replicas - 1) * sent


def training_share(phases: Sequence[Phase], parts: Sequence[Part]) -> float:
    """Training multiply-adds of all phases, heads included, as a share of the same epochs end to end."""
    whole = 3 * sum(part.multiply_adds(with_head=False) for part in parts)
    if whole == 0:  # layers without products or convolutions cost nothing, however often they run
        return 1.0
    return sum(training_macs(phase, list(parts), 1) for phase in phases) / sum(phase.steps * whole for phase in phases)


def _flow_modules(part: Part) -> list[nn.Module]:
    """A part's layers, and its head only if that is the flow's own prior, which stays."""
    return [*part.layers, *([] if is_head(part.head_name) else [part.head])]


def _parameter_bytes(part: Part) -> int:
    return sum(parameter.nbytes for module in _flow_modules(part) for parameter in module.parameters())
