"""One worker's loop: its parts, in order, on each batch of a phase.

    for each batch:   get the latent  ->  part  ->  send the new latent on  ->  backward and update, if it is its turn

A worker knows its own parts and the links at their ends, nothing of the others: with all parts it is a single GPU.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pipeflow.errors import TrainingStopped
from pipeflow.metrics import bits_per_dim
from pipeflow.training.link import EVALUATION, INITIAL, TRAINING, Link
from pipeflow.training.liveness import Alarm
from pipeflow.training.schedule import Phase
from pipeflow.training.trainer import PartTrainer

LARGEST_LOSS = 1e4
"""Bits per dimension beyond which a loss counts as diverged at once."""

_READ_LOSSES_EVERY = 16
"""Steps between looks at the losses on a GPU, where a look waits for it."""


class ImageSource(Protocol):
    """Where the worker of the first part gets its images."""

    def train(self, epoch: int, step: int) -> Tensor:
        """A dequantized training batch, float32."""

    def initial(self) -> Tensor:
        """The batch for the data-dependent initialisation."""

    def test_batches(self, num_images: int | None, batch_size: int) -> Iterator[Tensor]:
        """Test images with fixed noise."""


class Losses:
    """The losses of one phase: looked at for NaN, and averaged by part, without making a GPU wait in every step."""

    def __init__(self, epoch: int, device: torch.device):
        self.epoch = epoch
        self.latest: dict[str, float] = {}
        self._read_every = 1 if device.type == "cpu" else _READ_LOSSES_EVERY
        self._waiting: dict[str, list[tuple[int, Tensor]]] = {}
        self._read: dict[str, list[float]] = {}

    def add(self, part: str, step: int, loss: Tensor) -> None:
        """Raises TrainingStopped where this loss, or one not looked at yet, is no number or beyond all bounds."""
        waiting = self._waiting.setdefault(part, [])
        waiting.append((step, loss.detach()))
        if len(waiting) >= self._read_every:
            self._look(part)

    def _look(self, part: str) -> None:
        waiting = self._waiting.pop(part, [])
        values = torch.stack([loss for _, loss in waiting]).tolist() if waiting else []
        for (step, _), value in zip(waiting, values):
            self.check(part, step, value)
        if values:
            self._read.setdefault(part, []).extend(values)
            self.latest[part] = values[-1]

    def check(self, part: str, step: int, loss: float) -> None:
        """Raises TrainingStopped for a loss that is no number or beyond all bounds."""
        if not math.isfinite(loss) or loss > LARGEST_LOSS:
            raise TrainingStopped(
                f"the training loss of part {part} became {loss:g} bits/dim in epoch {self.epoch}, step {step}"
            )

    def means(self) -> dict[str, float]:
        """Mean loss of each part over the phase."""
        for part in list(self._waiting):
            self._look(part)
        return {part: sum(values) / len(values) for part, values in self._read.items()}


class Worker:
    """The parts of one worker, the ends of its links, and its images if it holds the first part."""

    def __init__(
        self,
        trainers: Sequence[PartTrainer],
        links: Mapping[int, Link],
        images: ImageSource | None,
        device: torch.device,
        batch_size: int,
        alarm: Alarm,
    ):
        self._alarm = alarm
        self.trainers = trainers
        self.links = links
        self.images = images
        self.device = device
        self.batch_size = batch_size
        self._last_batches: dict[PartTrainer, Tensor] = {}
        self.progress: dict = {}
        """What the progress display shows. Replaced in every step, never changed: other threads read it."""

    def initialize(self, layers: bool, heads: Sequence[str]) -> None:
        """Data-dependent initialisation: one batch goes through all parts, each initialises itself on what arrives.

        layers: whether all layers are to be initialised; heads: names of the heads that are.
        """
        for trainer in self.trainers:
            part = trainer.part
            latent = self._incoming(part.index, INITIAL, 0, 0)
            latent = part.initialize(latent, layers, part.head_name in heads)
            self._send_on(part.index, INITIAL, 0, 0, latent)

    def train(self, phase: Phase) -> dict[str, float]:
        """Runs the phase; mean training loss of each part, in bits/dim, by its index as text.

        The loss of the part that holds the images includes the 8 bits of their 256 values, as bits/dim do.
        """
        losses = Losses(phase.epoch, self.device)
        for step in range(phase.steps):
            self._alarm.check()
            self.progress = {"epoch": phase.epoch, "step": step, "losses": dict(losses.latest)}
            self._train_batch(phase, step, losses)
        means = losses.means()
        self._check_last_updates(phase, losses)
        return means

    def _check_last_updates(self, phase: Phase, losses: Losses) -> None:
        """A loss is looked at before its update: what a part's last update broke shows on the same batch again."""
        for trainer, latent in self._last_batches.items():
            loss = trainer.part.loss(trainer.run(latent))
            losses.check(str(trainer.part.index), phase.steps, float(loss))
        self._last_batches = {}

    def _train_batch(self, phase: Phase, step: int, losses: Losses) -> None:
        training = phase.training(step)
        last = max(training)
        for trainer in self.trainers:
            part = trainer.part
            if part.index > last:
                return
            latent = self._incoming(part.index, TRAINING, phase.epoch, step)
            if part.index not in training:
                self._send_on(part.index, TRAINING, phase.epoch, step, part.outgoing(trainer.run(latent)))
                continue
            output = trainer.forward(latent)
            loss = part.loss(output)
            # Looked at before the latent leaves: a NaN stops here instead of travelling on.
            losses.add(str(part.index), step, loss + 8 if part.index == 0 else loss)
            if part.index < last:
                self._send_on(part.index, TRAINING, phase.epoch, step, part.outgoing(output))
            trainer.update(loss)
            self._last_batches[trainer] = latent

    def evaluate(self, epoch: int, num_images: int) -> dict[str, list[float]]:
        """Sums over the test images of each part's contributions and of its head's log-prior, by index as text."""
        sums = {}
        num_batches = math.ceil(num_images / self.batch_size)
        batches = self.images.test_batches(num_images, self.batch_size) if self.images is not None else None
        for step in range(num_batches):
            for trainer in self.trainers:
                part = trainer.part
                if part.index == 0:
                    latent = next(batches).to(self.device)
                else:
                    latent = self.links[part.index - 1].receive(EVALUATION, epoch, step)
                output = trainer.run(latent)
                self._send_on(part.index, EVALUATION, epoch, step, output.latent)
                total = torch.stack([output.contribution.sum(), output.log_head.sum()])
                sums[part.index] = sums[part.index] + total if part.index in sums else total
        return {str(index): total.tolist() for index, total in sums.items()}

    def _incoming(self, index: int, kind: str, epoch: int, step: int) -> Tensor:
        if index > 0:
            return self.links[index - 1].receive(kind, epoch, step)
        images = self.images.initial() if kind == INITIAL else self.images.train(epoch, step)
        return images.to(self.device, non_blocking=True)

    def _send_on(self, index: int, kind: str, epoch: int, step: int, latent: Tensor) -> None:
        """To the next part, where there is one."""
        if index in self.links:
            self.links[index].send(kind, epoch, step, latent)


def exit_bits_per_dim(sums: Sequence[Sequence[float]], num_images: int, num_dims: int) -> list[float]:
    """B_1 ... B_K from each part's sums, in part order: the bits/dim had the flow ended at part k."""
    exits, total = [], 0.0
    for contribution, log_head in sums:
        total += contribution
        exits.append(bits_per_dim((total + log_head) / num_images, num_dims))
    return exits
