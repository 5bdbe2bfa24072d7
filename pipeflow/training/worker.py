"""One worker's loop: its parts, in order, on each batch of a phase.

    for each batch:   get the latent  ->  part  ->  send the new latent on  ->  backward and update, if it is its turn

A worker knows its own parts and the links at their ends, nothing of the others: with all parts it is a single GPU.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeflow.links.channel import EVALUATION, INITIAL, TRAINING
from pipeflow.links.link import Link, Stopped
from pipeflow.training.image_feed import ImageSource
from pipeflow.training.losses import Losses
from pipeflow.training.schedule import Phase
from pipeflow.training.trainer import PartTrainer
from pipeflow.workers.alarm import Alarm
from pipeflow.workers.timeline import COMPUTE, Timeline


@dataclass(frozen=True)
class Trained:
    """What a worker has made of a phase."""

    losses: Losses
    """In bits/dim, by part's index as text. Of the part that holds the images with the 8 bits of their 256 values."""
    stopped_at: int | None
    """The batch before which the phase was interrupted, where this worker knows of it."""


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
        timeline: Timeline,
        max_error: float = math.inf,
        is_preempted: Callable[[], bool] = lambda: False,
    ):
        """max_error: of activations that a backward recovers by inverting, `memory.max_error`.

        is_preempted: whether the run is to stop before the next batch.
        """
        self._max_error = max_error
        self._is_preempted = is_preempted
        self._alarm = alarm
        self._timeline = timeline
        self.trainers = trainers
        self.links = links
        self.images = images
        self.device = device
        self.batch_size = batch_size
        self._last_batches: dict[PartTrainer, Tensor] = {}
        self.progress: dict = {}
        """What the progress display shows. Replaced in every step, never changed: other threads read it."""
        self.busy_seconds = 0.0
        """Of the last phase, without waiting at links."""
        self.cpu_seconds = 0.0
        """Of the last phase, of all threads."""

    def initialize(self, layers: bool, heads: Sequence[str]) -> None:
        """Data-dependent initialisation: one batch goes through all parts, each initialises itself on what arrives.

        layers: whether all layers are to be initialised; heads: names of the heads that are.
        """
        for trainer in self.trainers:
            part = trainer.part
            latent = self._incoming(part.index, INITIAL, 0, 0)
            latent = part.initialize(latent, layers, part.head_name in heads)
            self._send_on(part.index, INITIAL, 0, 0, latent)

    def train(self, phase: Phase, first_step: int = 0, before: Mapping[str, Sequence[float]] | None = None) -> Trained:
        """Runs the phase from batch `first_step` on, to its end or to where it is interrupted.

        before: losses of the batches in front of that one.
        """
        losses = Losses(phase.epoch, self.device, self._max_error, before)
        stopped_at = None
        start, cpu, waited = time.perf_counter(), time.process_time(), self._waited_at_links()
        for step in range(first_step, phase.steps):
            self._alarm.check()
            self._timeline.at(phase.epoch, step)
            self.progress = {"epoch": phase.epoch, "step": step, "losses": dict(losses.latest)}
            try:
                if self._is_preempted() and self._leads(phase):
                    raise Stopped(step)
                self._train_batch(phase, step, losses)
            except Stopped as stop:
                stopped_at = stop.step
                if self._has_first_images():
                    self.images.stop(stop.step)
                self._pass_on(phase.epoch, stop)
                break
        losses.values()
        self._check_last_updates(phase, losses)
        self.busy_seconds = time.perf_counter() - start - (self._waited_at_links() - waited)
        self.cpu_seconds = time.process_time() - cpu
        return Trained(losses, stopped_at)

    def _leads(self, phase: Phase) -> bool:
        """Whether the phase's batches begin here: the other workers follow this one, or have nothing to do in it."""
        return self._has_first_images()

    def _has_first_images(self) -> bool:
        return self.images is not None and self.images.is_origin and bool(self.trainers)

    def _pass_on(self, epoch: int, stop: Stopped) -> None:
        """Tells the workers that wait for latents from this one that no more come."""
        for trainer in self.trainers:
            if trainer.part.index in self.links:
                self.links[trainer.part.index].stop(epoch, stop.step)

    def _waited_at_links(self) -> float:
        return sum(link.waited for link in self.links.values())

    def _check_last_updates(self, phase: Phase, losses: Losses) -> None:
        """A loss is looked at before its update: what a part's last update broke shows on the same batch again."""
        for trainer, latent in self._last_batches.items():
            loss = trainer.part.loss(trainer.run(latent))
            error = trainer.part.reconstruction_error
            losses.check(str(trainer.part.index), phase.steps, float(loss), 0.0 if error is None else float(error))
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
                with self._timeline.span(COMPUTE, f"part {part.index} forward {step}"):
                    latent = part.outgoing(trainer.run(latent))
                self._send_on(part.index, TRAINING, phase.epoch, step, latent)
                continue
            with self._timeline.span(COMPUTE, f"part {part.index} forward {step}"):
                output, loss = trainer.forward(latent)
                # Looked at before the latent leaves: a NaN stops here instead of travelling on.
                shown = loss + 8 if part.index == 0 else loss
                losses.add(str(part.index), step, shown, part.reconstruction_error)
            if part.index < last:
                self._send_on(part.index, TRAINING, phase.epoch, step, part.outgoing(output))
            with self._timeline.span(COMPUTE, f"update part {part.index}, {step}"):
                trainer.update(loss)
            self._last_batches[trainer] = latent

    def evaluate(self, epoch: int, num_images: int) -> dict[str, list[float]]:
        """Sums over the test images of each part's contributions and of its head's log-prior, by index as text.

        Raises Stopped where the run is interrupted meanwhile.
        """
        try:
            return self._evaluate(epoch, num_images)
        except Stopped as stop:
            self._pass_on(epoch, stop)
            raise

    def _evaluate(self, epoch: int, num_images: int) -> dict[str, list[float]]:
        sums = {}
        num_batches = math.ceil(num_images / self.batch_size)
        batches = self.images.test_batches(num_images, self.batch_size) if self.images is not None else None
        for step in range(num_batches):
            self._alarm.check()
            if batches is not None and self._is_preempted():
                raise Stopped(step)
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
