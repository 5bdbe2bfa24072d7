"""Where the worker of the first part gets its images: loaded ahead, or handed out to those who share a batch."""

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from pipeflow.data import Batches, dequantization_noise, dequantize
from pipeflow.flow.layers import Shape
from pipeflow.links.link import Stopped
from pipeflow.workers.control import Control
from pipeflow.workers.replicas import Replicas, share_of
from pipeflow.workers.timeline import LOAD, WAIT, Timeline

AHEAD = 2
"""Training batches made while the worker computes."""


class ImageSource(Protocol):
    """Where the worker of the first part gets its images."""

    is_origin: bool
    """Whether they are drawn here, not by another worker: with them begins every batch."""

    def train(self, epoch: int, step: int) -> Tensor:
        """A dequantized training batch, float32."""

    def stop(self, step: int) -> None:
        """Tells whoever gets images from here that those of batch `step` do not come."""

    def initial(self) -> Tensor:
        """The batch for the data-dependent initialisation."""

    def test_batches(self, num_images: int | None, batch_size: int) -> Iterator[Tensor]:
        """Test images with fixed noise."""


class ImagesAhead:
    """Training images picked, flipped, dequantized and brought to the device by a thread, in the order of an epoch."""

    is_origin = True

    def __init__(self, batches: Batches, device: torch.device, timeline: Timeline):
        self._batches = batches
        self._device = device
        self._timeline = timeline
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pipeflow-images")
        # With as many threads as the computation it would take the cores from it, at every batch for some milliseconds:
        # on two cores a flow of width 64 trains 290 images/s then, and 460 so.
        num_threads = torch.get_num_threads()
        self._thread.submit(_compute_with_one_thread).result()
        torch.set_num_threads(num_threads)
        self._coming: dict[tuple[int, int], Future] = {}

    def train(self, epoch: int, step: int) -> Tensor:
        """A training batch, on the device."""
        last = min(step + AHEAD, self._batches.steps_per_epoch - 1)
        wanted = [(epoch, each) for each in range(step, last + 1)]
        # What was begun for an epoch that ended before its time is of no use.
        self._coming = {key: self._coming.get(key) or self._thread.submit(self._load, *key) for key in wanted}
        with self._timeline.span(WAIT, f"for images {step}"):
            images, event = self._coming.pop((epoch, step)).result()
        if event is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(event)
            images.record_stream(stream)
        return images

    def stop(self, step: int) -> None:
        """Nobody gets images from here."""

    def _load(self, epoch: int, step: int) -> "tuple[Tensor, torch.cuda.Event | None]":
        with self._timeline.span(LOAD, f"images {step}"):
            images = self._batches.train(epoch, step)
            if self._stream is None:
                return images, None
            torch.cuda.set_device(self._device)
            with torch.cuda.stream(self._stream):
                return images.pin_memory().to(self._device, non_blocking=True), self._stream.record_event()

    def initial(self) -> Tensor:
        """The batch for the data-dependent initialisation."""
        return self._batches.initial()

    def test_batches(self, num_images: int | None, batch_size: int) -> Iterator[Tensor]:
        """Test images with fixed noise."""
        return self._batches.test_batches(num_images, batch_size)


def _compute_with_one_thread() -> None:
    """For the calling thread. torch has one setting for all threads that each takes over when it first asks for it."""
    torch.get_num_threads()
    torch.set_num_threads(1)


class SharedImages:
    """Training images for workers that share each batch: rank 0 draws the global batch and hands out the shares.

    They travel as uint8, with a byte behind them that says whether they are images or the run stops here; each worker adds
    its slice of the global batch's noise.
    """

    def __init__(
        self,
        batches: Batches | None,
        seed: int,
        batch_size: int,
        shape: Shape,
        control: Control,
        replicas: Replicas,
    ):
        """batches: on rank 0, the first of the replicas."""
        self._batches = batches
        self._seed = seed
        self._shape = (batch_size, *shape)
        self._control = control
        self._replicas = replicas
        self.is_origin = batches is not None

    def train(self, epoch: int, step: int) -> Tensor:
        """This worker's share of a global batch. Raises Stopped where rank 0 hands out none."""
        mine = self._replicas.share(self._shape[0])
        if self._batches is not None:
            images = self._batches.train_images(epoch, step)
            self._hand_out(images, goes_on=True)
            images = images[mine]
        else:
            shape = (mine.stop - mine.start, *self._shape[1:])
            received = self._control.receive(
                torch.empty(math.prod(shape) + 1, dtype=torch.uint8), 0, f"the images of epoch {epoch}, step {step}"
            )
            if not received[-1]:
                raise Stopped(step)
            images = received[:-1].view(shape)
        noise = dequantization_noise(self._seed, "train", epoch, step, self._shape)
        return dequantize(images, noise[mine])

    def stop(self, step: int) -> None:
        """Tells the others that the run stops before batch `step`."""
        self._hand_out(torch.zeros(self._shape, dtype=torch.uint8), goes_on=False)

    def _hand_out(self, images: Tensor, goes_on: bool) -> None:
        for index, target in enumerate(self._replicas.ranks):
            if index > 0:
                share = images[share_of(len(images), self._replicas.size, index)].flatten()
                self._control.send(torch.cat([share, share.new_tensor([goes_on])]), target, "images")

    def initial(self) -> Tensor:
        """The batch for the data-dependent initialisation, on rank 0."""
        return self._batches.initial()

    def test_batches(self, num_images: int | None, batch_size: int) -> Iterator[Tensor]:
        """Test images, on rank 0."""
        return self._batches.test_batches(num_images, batch_size)
