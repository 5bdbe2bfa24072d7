"""The likelihood of a flow that is cut into parts: sums over batches, and the bits per dimension that they make."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from pipeflow.flow import Part, Values
from pipeflow.flow.part import PartOutput


@torch.no_grad()
def sum_over_batches(
    parts: Sequence[Part],
    batches: Iterable[Tensor],
    hand_on: Callable[[int, int, Tensor], Tensor] = lambda part, step, latent: latent,
    labels_of: Callable[[int], Tensor | None] = lambda step: None,
    see: Callable[[Part, PartOutput], None] = lambda part, output: None,
) -> dict[int, list[float]]:
    """Sums over all images of each part's contributions and of its head's log-prior, in nats, by the part's index.

    Args:
        parts: consecutive parts of a flow.
        batches: the first part's latents, [batch, ...], float32.
        hand_on: takes the part, the step and the part's latent; gives the latent that the next of the parts gets.
        labels_of: takes the step; gives the labels of its images, if a part takes labels.
        see: gets each part and its output for each batch.
    """
    sums: dict[int, Tensor] = {}
    for step, latent in enumerate(batches):
        labels = labels_of(step)
        for part in parts:
            output = part(latent, labels)
            see(part, output)
            total = torch.stack([output.contribution.sum(), output.log_head.sum()])
            sums[part.index] = sums[part.index] + total if part.index in sums else total
            latent = hand_on(part.index, step, output.latent)
    return {index: total.tolist() for index, total in sums.items()}


def exit_bits_per_dim(sums: Sequence[Sequence[float]], num_images: int, values: Values) -> list[float]:
    """B_1 ... B_K, the bits/dim had the flow ended at part k, from each part's sums in the order of the parts."""
    exits, total = [], 0.0
    for contribution, log_head in sums:
        total += contribution
        exits.append(values.bits_per_dim((total + log_head) / num_images))
    return exits
