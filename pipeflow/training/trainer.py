"""One part's training: its optimizer, learning rate, clipping and averaged weights. The whole flow is a part too."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipeflow.config import Config
from pipeflow.flow.part import Part, PartOutput


def learning_rate(base: float, update: int, num_updates: int, warmup_steps: int, decay: str) -> float:
    """The rate of update `update` (from 0) of `num_updates`: linear warm-up, then nothing or a cosine to 0."""
    rate = base * min(1.0, (update + 1) / max(1, warmup_steps))
    if decay == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, update / max(1, num_updates))))
    return rate


def make_optimizer(parameters: Sequence[nn.Parameter], config: Config, lr: float) -> torch.optim.Optimizer:
    """The optimizer of `optim.name`; with `precision.step` fast, Adam updates everything in one kernel."""
    if config.optim.name == "adamax":
        return torch.optim.Adamax(parameters, lr=lr)
    return torch.optim.Adam(parameters, lr=lr, fused=True if config.precision.step == "fast" else None)


_MEASURE_EVERY = 16
"""Updates from one whose gradient's norm is measured to the next: each would cost some percent of a small step."""


class PartTrainer:
    """Updates one part. `forward`, hand the latent on, then `update`: the latent leaves before the backward begins.

    A batch may come in micro-batches, each forward before the next: `accumulate` for all but the last, which updates.
    """

    def __init__(self, part: Part, device: torch.device, config: Config, lr: float, num_updates: int):
        """num_updates: the part's updates in this stage, over which the rate decays."""
        self.part = part.to(device)
        self.optim = config.optim
        self.lr = lr
        self.num_updates = num_updates
        self.updates = 0
        self._module: nn.Module = self.part
        self._parameters = part.global_parameters()
        self.optimizer = make_optimizer(list(self._parameters.values()), config, lr)
        self.averages: dict[str, Tensor] = {}
        self._is_accumulating = False
        self._squared_norms: list[Tensor] = []
        self._updates_before = 0

    def begin_epoch(self) -> None:
        """Forgets the norms of the epoch before."""
        self._squared_norms = []
        self._updates_before = self.updates

    def of_updates(self) -> tuple[float, float] | None:
        """Rate of the last update of this epoch, and mean square of the gradients' norms; None if there was no update."""
        if not self._squared_norms:
            return None
        return self.optimizer.param_groups[0]["lr"], float(torch.stack(self._squared_norms).mean())

    def forward(self, latent: Tensor, is_last: bool = True, labels: Tensor | None = None) -> tuple[PartOutput, Tensor]:
        """Runs the part with gradients, for an update; its output and its loss.

        is_last: whether the update comes next, and no other micro-batch of the same batch.
        labels: of the images, for a part that takes them.
        """
        output = self._module(latent, labels)
        return output, self.part.loss(output)

    def hand_on(
        self, latent: Tensor, labels: Tensor | None = None, output: PartOutput | None = None, is_averaged: bool = False
    ) -> Tensor:
        """The latent for the next part, detached.

        output: of the part's trained weights for this latent, where it is known.
        is_averaged: whether the averaged weights make it, and not the trained ones.
        """
        if is_averaged:
            with self.averaged():
                output = self.run(latent, labels)
        return self.part.outgoing(self.run(latent, labels) if output is None else output)

    @torch.no_grad()
    def run(self, latent: Tensor, labels: Tensor | None = None) -> PartOutput:
        """Runs the part without gradients: it is frozen in this turn, or is evaluated."""
        return self.part(latent, labels)

    def accumulate(self, loss: Tensor) -> None:
        """Backward of a micro-batch. loss: the last `forward`'s, times the share that it has in the batch's."""
        self._backward(loss)
        self._is_accumulating = True

    def update(self, loss: Tensor) -> None:
        """Backward, clip, step, average. loss: as for `accumulate`, whose gradients count for this update."""
        self._backward(loss)
        self._is_accumulating = False
        is_clipped = self.optim.clip_norm > 0
        self.measure(nn.utils.clip_grad_norm_(self._parameters.values(), self.optim.clip_norm) if is_clipped else None)
        self.step()

    @torch.no_grad()
    def measure(self, norm: Tensor | None = None) -> None:
        """Keeps the norm of the gradient, if it is this update's turn; a GPU is not waited for.

        norm: before clipping, where it is known; None: of the gradient that is there.
        """
        if (self.updates - self._updates_before) % _MEASURE_EVERY == 0:
            if norm is None:
                gradients = [each.grad for each in self._parameters.values() if each.grad is not None]
                norm = nn.utils.get_total_norm(gradients)
            self._squared_norms.append(norm.double().square())

    def step(self) -> None:
        """Steps with the gradients that are there, and averages."""
        rate = learning_rate(self.lr, self.updates, self.num_updates, self.optim.warmup_steps, self.optim.decay)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.updates += 1
        if self.averages:
            self._average()

    def _backward(self, loss: Tensor) -> None:
        if not self._is_accumulating:
            self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)

    @torch.no_grad()
    def _average(self) -> None:
        """Moves the averages towards the new weights; the first updates count more, to forget the initial values soon."""
        decay = min(self.optim.ema, (1 + self.updates) / (10 + self.updates))
        current: list[Tensor] = [self._parameters[name] for name in self.averages]
        torch._foreach_lerp_(list(self.averages.values()), current, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the trained ones, for evaluation and sampling."""
        trained = {name: self._parameters[name].data for name in self.averages}
        try:
            for name, average in self.averages.items():
                self._parameters[name].data = average
            yield
        finally:
            for name, value in trained.items():
                self._parameters[name].data = value

    def tensors(self) -> dict[str, Tensor]:
        """All tensors to be saved, as `model/<name>`, `optim.<key>/<name>`, `ema/<name>`."""
        tensors = {f"model/{name}": value for name, value in self.part.global_state().items()}
        for name, parameter in self._parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if key != "step":
                    tensors[f"optim.{key}/{name}"] = value
        tensors.update({f"ema/{name}": value for name, value in self.averages.items()})
        return tensors

    def counts(self) -> dict[str, list[int]]:
        """By layer and head: updates in this stage, and the optimizer's own count since the beginning."""
        counts = {}
        for owner in self.part.owners():
            steps = [
                int(self.optimizer.state[parameter]["step"])
                for name, parameter in self._parameters.items()
                if name.startswith(f"{owner}.") and parameter in self.optimizer.state
            ]
            counts[owner] = [self.updates, max(steps, default=0)]
        return counts

    @torch.no_grad()
    def load_model(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads parameters and buffers that `tensors` gave, with any cut; those that are not there stay as they are."""
        for name, value in self.part.global_state().items():
            if f"model/{name}" in tensors:
                value.copy_(tensors[f"model/{name}"])

    def start_averages(self) -> None:
        """Has the averages begin at the present weights."""
        if self.optim.ema > 0:
            # In the parameters' own memory layout, whatever layout came over the wire: kernels may sum in its order.
            self.averages = {name: value.detach().clone() for name, value in self._parameters.items()}

    @torch.no_grad()
    def load_training(
        self, tensors: Mapping[str, Tensor], counts: Mapping[str, Sequence[int]], same_stage: bool
    ) -> None:
        """Loads averages and optimizer state; averages that are not there begin at the present weights.

        same_stage: whether the updates already made count against this stage's warm-up and decay.
        """
        self.start_averages()
        for name, average in self.averages.items():
            if f"ema/{name}" in tensors:
                average.copy_(tensors[f"ema/{name}"])
        owners = [owner for owner in self.part.owners() if owner in counts]
        if same_stage:
            self.updates = max((counts[owner][0] for owner in owners), default=0)
        moments: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            section, name = key.split("/", 1)
            if section.startswith("optim."):
                moments.setdefault(name, {})[section.removeprefix("optim.")] = value
        state = self.optimizer.state_dict()
        for index, name in enumerate(self._parameters):
            owner = next((owner for owner in owners if name.startswith(f"{owner}.")), None)
            if name in moments and owner is not None:
                state["state"][index] = {"step": torch.tensor(float(counts[owner][1])), **moments[name]}
        self.optimizer.load_state_dict(state)
