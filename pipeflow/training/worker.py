"""One worker's loop: its parts, in order, on each batch of a phase.

    for each batch:   get the latent  ->  part  ->  send the new latent on  ->  backward and update, if it is its turn

With `memory.micro_batches` all but the update is done for one slice of the batch after the other.
A worker knows its own parts and the links at their ends, nothing of the others: with all parts it is a single GPU.
"""

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeflow.links.channel import EVALUATION, INITIAL, TRAINING
from pipeflow.links.link import Link, Stopped
from pipeflow.training.image_feed import ImageFeed
from pipeflow.training.labels import LabelFeed
from pipeflow.training.losses import Losses
from pipeflow.training.schedule import Phase
from pipeflow.training.trainer import PartTrainer
from pipeflow.use.likelihood import sum_over_batches
from pipeflow.workers.alarm import Alarm
from pipeflow.workers.timeline import COMPUTE, Timeline


@dataclass(frozen=True)
class Trained:
    """A worker's report of a phase that it has trained."""

    losses: Losses
    """Losses in bits/dim by part's index as text; the first part's have `Values.offset` in them, 8 bits for images."""
    stopped_at: int | None
    """The batch before which the phase was interrupted, where this worker knows of it."""
    busy_seconds: float
    """Seconds of the phase without those spent waiting at links."""
    cpu_seconds: float
    """Processor seconds of the phase, of all threads."""
    updates: dict[str, tuple[float, float]]
    """For each part with an update: learning rate of the last one, mean square of the gradient's norms."""


class Worker:
    """The parts of one worker, the ends of its links, and its images if it holds the first part."""

    def __init__(
        self,
        trainers: Sequence[PartTrainer],
        links: Mapping[int, Link],
        images: ImageFeed | None,
        labels: LabelFeed | None,
        device: torch.device,
        batch_size: int,
        micro_batches: Sequence[slice],
        alarm: Alarm,
        timeline: Timeline,
        max_error: float = math.inf,
        is_preempted: Callable[[], bool] = lambda: False,
    ):
        """links: by the index of the part in front. labels: None where no part takes them.

        max_error: `memory.max_error`, for parts that recover activations.

        micro_batches: the images of each, among those that this worker has of a batch.
        is_preempted: whether the run is to stop before the next batch.
        """
        self.trainers = trainers
        self.links = links
        self.backward_links: Mapping[int, Link] = {}
        """Ends of the links on which a pipeline's gradients go back, by the part in front."""
        self.images = images
        self.labels = labels
        self.progress: dict[str, Any] = {}
        """The state that the display shows. It is replaced in every step and never changed: other threads read it."""
        self._device = device
        self._batch_size = batch_size
        self._micro_batches = micro_batches
        self._alarm = alarm
        self._timeline = timeline
        self._max_error = max_error
        self._is_preempted = is_preempted
        self._last_inputs: dict[PartTrainer, tuple[Tensor, Tensor | None]] = {}
        """Latent and labels of each part's last update."""

    def initialize(
        self, layers: Collection[int], heads: Collection[int], last: int, epoch: int = 0, is_averaged: bool = False
    ) -> None:
        """Data-dependent initialisation: one batch goes through the parts, each initialises itself on what arrives.

        Args:
            layers, heads: indices of this worker's parts whose layers, and whose heads, are initialised.
            last: index of the last part that gets the batch.
            epoch: the epoch before which this is done, as all workers know it.
            is_averaged: whether averaged weights make the latents of parts whose layers stay as they are.
        """
        labels = None if self.labels is None else self.labels.initial()
        for trainer in self.trainers:
            part = trainer.part
            if part.index > last:
                break
            if part.index > 0:
                latent = self.links[part.index - 1].receive(INITIAL, epoch, 0)
            else:
                latent = self._own_images(INITIAL, epoch, 0)
            stays = is_averaged and part.index not in layers
            with trainer.averaged() if stays else contextlib.nullcontext():
                latent = part.initialize(latent, part.index in layers, part.index in heads, labels)
            if part.index < last:
                self._send_on(part.index, INITIAL, epoch, 0, latent)

    def train(self, phase: Phase, first_step: int = 0, before: Mapping[str, Sequence[float]] | None = None) -> Trained:
        """Runs the phase from batch `first_step` on, to its end or to where it is interrupted.

        before: losses of the batches in front of that one.
        """
        losses = Losses(phase.epoch, self._device, self._max_error, before)
        stopped_at = None
        for trainer in self.trainers:
            trainer.begin_epoch()
        start, cpu, waited = time.perf_counter(), time.process_time(), self._waited_at_links()
        for step in range(first_step, phase.steps):
            self._alarm.check()
            self._timeline.at(phase.epoch, step)
            self.progress = {"epoch": phase.epoch, "step": step, "losses": dict(losses.latest)}
            try:
                if self._leads() and self._is_preempted():
                    raise Stopped(step)
                self._train_batch(phase, step, losses)
            except Stopped as stop:
                stopped_at = stop.step
                if self.images is not None and self._leads():
                    self.images.stop(phase.epoch, stop.step)
                self._pass_on(phase.epoch, stop)
                break
        losses.values()
        self._check_last_updates(phase, losses)
        seconds = time.perf_counter() - start - (self._waited_at_links() - waited)
        cpu_seconds = time.process_time() - cpu
        updates = {str(trainer.part.index): of for trainer in self.trainers if (of := trainer.of_updates()) is not None}
        return Trained(losses, stopped_at, seconds, cpu_seconds, updates)

    def evaluate(self, epoch: int, num_images: int) -> dict[str, list[float]]:
        """Sums over the test images of each part's contributions and of its head's log-prior, by index as text.

        Raises Stopped where the run is interrupted meanwhile.
        """
        parts = [trainer.part for trainer in self.trainers]
        last = parts[-1].index

        def hand_on(part: int, step: int, latent: Tensor) -> Tensor:
            self._send_on(part, EVALUATION, epoch, step, latent)
            return self.links[part].receive(EVALUATION, epoch, step) if part < last else latent

        def labels_of(step: int) -> Tensor | None:
            return None if self.labels is None else self.labels.test(step, self._batch_size, num_images)

        try:
            latents = self._test_latents(parts[0].index, epoch, num_images)
            sums = sum_over_batches(parts, latents, hand_on, labels_of)
        except Stopped as stop:
            self._pass_on(epoch, stop)
            raise
        return {str(index): total for index, total in sums.items()}

    def _test_latents(self, first: int, epoch: int, num_images: int) -> Iterator[Tensor]:
        """Test batches as part `first` gets them."""
        images = None if self.images is None else self.images.test_batches(num_images, self._batch_size)
        for step in range(math.ceil(num_images / self._batch_size)):
            self._alarm.check()
            if images is None:
                yield self.links[first - 1].receive(EVALUATION, epoch, step)
            elif self._is_preempted():
                raise Stopped(step)
            else:
                yield next(images).to(self._device)

    def _leads(self) -> bool:
        """Whether the phase's batches begin here: the other workers follow this one, or have nothing to do in it."""
        return self.images is not None and self.images.is_origin and bool(self.trainers)

    def _pass_on(self, epoch: int, stop: Stopped) -> None:
        """Tells the workers that wait for latents from this one that no more come."""
        for trainer in self.trainers:
            if trainer.part.index in self.links:
                self.links[trainer.part.index].stop(epoch, stop.step)

    def _waited_at_links(self) -> float:
        return sum(link.waited for link in [*self.links.values(), *self.backward_links.values()])

    def _check_last_updates(self, phase: Phase, losses: Losses) -> None:
        """Recomputes the last loss: losses are checked before each update, damage by the last goes unseen."""
        for trainer, (latent, labels) in self._last_inputs.items():
            loss = trainer.part.loss(trainer.run(latent, labels))
            error = trainer.part.reconstruction_error
            losses.check(str(trainer.part.index), phase.steps, float(loss), 0.0 if error is None else float(error))
        self._last_inputs = {}

    def _train_batch(self, phase: Phase, step: int, losses: Losses) -> None:
        last, images = max(phase.training(step)), None
        all_labels = self._labels_of(phase.epoch, step)
        for number, chosen in enumerate(self._micro_batches):
            labels = None if all_labels is None else all_labels[chosen]
            for trainer in self.trainers:
                index = trainer.part.index
                if index > last:
                    break
                if index > 0:
                    latent = self.links[index - 1].receive(TRAINING, phase.epoch, step, number)
                else:
                    images = self._own_images(TRAINING, phase.epoch, step) if images is None else images
                    latent = images[chosen]
                if index in phase.training(step):
                    self._train_part(trainer, latent, labels, phase, step, number, losses)
                    continue
                with self._timeline.span(COMPUTE, f"part {index} forward {self._position(step, number)}"):
                    latent = trainer.hand_on(latent, labels, is_averaged=phase.is_averaged)
                self._send_on(index, TRAINING, phase.epoch, step, latent, number)

    def _train_part(
        self,
        trainer: PartTrainer,
        latent: Tensor,
        labels: Tensor | None,
        phase: Phase,
        step: int,
        number: int,
        losses: Losses,
    ) -> None:
        """Forward, handing on and backward of a micro-batch, and after the last one the update."""
        part, position = trainer.part, self._position(step, number)
        is_last = number == len(self._micro_batches) - 1
        with self._timeline.span(COMPUTE, f"part {part.index} forward {position}"):
            output, loss = trainer.forward(latent, is_last, labels)
            # The check comes before the latent leaves: a NaN stops here instead of travelling on.
            shown = loss + part.values.offset if part.index == 0 else loss
            weight = len(latent) / self._micro_batches[-1].stop
            losses.add(str(part.index), step, shown, part.reconstruction_error, weight, is_last)
            is_in_front = part.index < max(phase.training(step))
            handed_on = trainer.hand_on(latent, labels, output, phase.is_averaged) if is_in_front else None
        if handed_on is not None:
            self._send_on(part.index, TRAINING, phase.epoch, step, handed_on, number)
        if not is_last:
            with self._timeline.span(COMPUTE, f"part {part.index} backward {position}"):
                trainer.accumulate(loss * weight)
            return
        with self._timeline.span(COMPUTE, f"update part {part.index}, {step}"):
            trainer.update(loss * weight)
        self._last_inputs[trainer] = latent, labels

    def _position(self, step: int, number: int) -> str:
        """A batch, and which of its micro-batches if there are several: `12.3`."""
        return f"{step}.{number}" if len(self._micro_batches) > 1 else str(step)

    def _labels_of(self, epoch: int, step: int) -> Tensor | None:
        """Labels of this worker's share of a training batch, where a part takes them."""
        return None if self.labels is None else self.labels.train(epoch, step)

    def _own_images(self, kind: str, epoch: int, step: int) -> Tensor:
        assert self.images is not None, "the worker of the first part has images"
        images = self.images.initial() if kind == INITIAL else self.images.train(epoch, step)
        return images.to(self._device, non_blocking=True)

    def _send_on(self, index: int, kind: str, epoch: int, step: int, latent: Tensor, micro_batch: int = 0) -> None:
        """Sends a latent to the next part, where there is one."""
        if index in self.links:
            self.links[index].send(kind, epoch, step, latent, micro_batch)
