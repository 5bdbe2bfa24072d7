"""Losses of one phase, checked for numbers that are none without making a GPU wait."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeflow.errors import TrainingStopped

LARGEST_LOSS = 1e4
"""Bits per dimension beyond which a loss counts as diverged at once."""

_READ_LOSSES_EVERY = 16
"""Number of losses that a GPU hands over together."""


class Losses:
    """The losses of one phase: checked for NaN, and averaged by part, without making a GPU wait in any step.

    Beside them stands the error of recovered activations, for a part whose backward inverts its layers.
    """

    def __init__(
        self,
        epoch: int,
        device: torch.device,
        max_error: float = math.inf,
        before: Mapping[str, Sequence[float]] | None = None,
    ):
        """before: the losses of the phase's first batches, where it was interrupted after them."""
        self.epoch = epoch
        self.max_error = max_error
        self.latest: dict[str, float] = {}
        self._on_gpu = device.type == "cuda"
        self._begun: dict[str, Tensor] = {}
        self._waiting: dict[str, list[tuple[int, Tensor]]] = {}
        self._copied: dict[str, tuple[list[int], Tensor, torch.cuda.Event | None]] = {}
        self._read = {part: list(losses) for part, losses in (before or {}).items()}

    def add(
        self,
        part: str,
        step: int,
        loss: Tensor,
        error: Tensor | None = None,
        weight: float = 1.0,
        is_last: bool = True,
    ) -> None:
        """Adds the loss of a batch, or of a micro-batch, whose batch is whole with the last.

        Raises TrainingStopped where it, or on a GPU the loss of an earlier batch, is no number or beyond all bounds.

        Args:
            error: the error of the backward before this one, where it is known; the largest counts.
            weight: the micro-batch's share of the batch.
            is_last: whether no other micro-batch of this batch comes.
        """
        loss = loss.detach()
        pair = torch.stack([loss * weight, loss.new_zeros(()) if error is None else error.to(loss.dtype)])
        if part in self._begun:
            before = self._begun.pop(part)
            pair = torch.stack([before[0] + pair[0], torch.maximum(before[1], pair[1])])
        if not self._on_gpu:
            self.check(part, step, float(loss), float(pair[1]))
        if not is_last:
            self._begun[part] = pair
        elif self._on_gpu:
            self._add_waiting(part, step, pair)
        else:
            self._look(part, [step], [pair.tolist()])

    def _add_waiting(self, part: str, step: int, pair: Tensor) -> None:
        waiting = self._waiting.setdefault(part, [])
        waiting.append((step, pair))
        if len(waiting) >= _READ_LOSSES_EVERY:
            self._look_at_copied(part)
            self._copy(part)

    def _copy(self, part: str) -> None:
        """Begins to copy the waiting losses from the GPU; they will be here when the next ones wait."""
        steps, pairs = zip(*self._waiting.pop(part))
        stacked = torch.stack(pairs)
        values = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=stacked.is_cuda)
        values.copy_(stacked, non_blocking=True)
        event = torch.cuda.current_stream().record_event() if stacked.is_cuda else None
        self._copied[part] = (list(steps), values, event)

    def _look_at_copied(self, part: str) -> None:
        if part in self._copied:
            steps, values, event = self._copied.pop(part)
            if event is not None:
                event.synchronize()
            self._look(part, steps, values.tolist())

    def _look(self, part: str, steps: Sequence[int], pairs: Sequence[Sequence[float]]) -> None:
        for step, (loss, error) in zip(steps, pairs):
            self.check(part, step, loss, error)
        self._read.setdefault(part, []).extend(loss for loss, _ in pairs)
        self.latest[part] = pairs[-1][0]

    def check(self, part: str, step: int, loss: float, error: float = 0.0) -> None:
        """Raises TrainingStopped for a loss that is no number or beyond all bounds, or an error that is."""
        if not error <= self.max_error:
            raise TrainingStopped(
                f"the activations that part {part} recovered by inverting its layers were off by {error:.1e} in epoch "
                f"{self.epoch}, before step {step}, more than memory.max_error {self.max_error:g}, so that its gradients "
                f"are wrong",
                advice="Resume with memory.activations recompute, or cut into shorter parts",
            )
        if not math.isfinite(loss) or loss > LARGEST_LOSS:
            raise TrainingStopped(
                f"the training loss of part {part} became {loss:g} bits/dim in epoch {self.epoch}, step {step}"
            )

    def values(self) -> dict[str, list[float]]:
        """The losses of each part, batch after batch."""
        for part in [*self._copied]:
            self._look_at_copied(part)
        for part in [*self._waiting]:
            self._copy(part)
            self._look_at_copied(part)
        return self._read

    def means(self) -> dict[str, float]:
        """Mean loss of each part over the phase."""
        return {part: sum(values) / len(values) for part, values in self.values().items()}


def merge_means(means: Sequence[Mapping[str, float]], weights: Sequence[float], is_whole: bool) -> dict[str, float]:
    """Mean loss by part, or of the `flow`, from each worker's; of replicas the mean over the whole batch.

    weights: of each worker's mean: the share of a batch that it has. is_whole: whether the whole flow trains.
    """
    merged: dict[str, float] = {}
    for each, weight in zip(means, weights):
        for part, loss in each.items():
            key = "flow" if is_whole else part
            merged[key] = merged.get(key, 0.0) + weight * loss
    return merged
