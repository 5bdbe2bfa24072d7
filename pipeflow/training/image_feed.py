"""The images of the first part, made by a thread while the worker computes."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from pipeflow.data import Batches
from pipeflow.links.link import Stopped
from pipeflow.workers.control import Control
from pipeflow.workers.replicas import Replicas
from pipeflow.workers.timeline import LOAD, WAIT, Timeline

AHEAD = 2
"""Training batches made while the worker computes."""


class ImageFeed:
    """Training images picked, flipped, dequantized and brought to the device, in the order of an epoch.

    Workers that share a batch each make their own share of it. The first of them tells the others before each batch that
    the run goes on, so that all stop before the same one.
    """

    def __init__(
        self, batches: Batches, device: torch.device, timeline: Timeline, replicas: Replicas, control: Control
    ):
        self._batches = batches
        self._device = device
        self._timeline = timeline
        self._replicas = replicas
        self._control = control
        self._share = replicas.share(batches.batch_size)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pipeflow-images")
        # With as many threads as the computation it would take the cores from it, at every batch for some milliseconds:
        # on two cores a flow of width 64 trains 290 images/s then, and 460 with one thread.
        num_threads = torch.get_num_threads()
        self._thread.submit(_compute_with_one_thread).result()
        torch.set_num_threads(num_threads)
        self._coming: dict[tuple[int, int], Future[tuple[Tensor, torch.cuda.Event | None]]] = {}

    @property
    def is_origin(self) -> bool:
        """Whether this worker decides that a batch is trained on: the others follow it."""
        return self._replicas.is_first

    def train(self, epoch: int, step: int) -> Tensor:
        """This worker's share of a training batch, on the device. Raises Stopped where the run stops before it."""
        self._agree(epoch, step, goes_on=True)
        last = min(step + AHEAD, self._batches.steps_per_epoch - 1)
        wanted = [(epoch, each) for each in range(step, last + 1)]
        # An epoch that ended before its time leaves batches that nobody wants.
        self._coming = {key: self._coming.get(key) or self._thread.submit(self._load, *key) for key in wanted}
        with self._timeline.span(WAIT, f"for images {step}"):
            images, event = self._coming.pop((epoch, step)).result()
        if event is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(event)
            images.record_stream(stream)
        return images

    def stop(self, epoch: int, step: int) -> None:
        """Tells the workers that share the batch that the run stops before it."""
        self._agree(epoch, step, goes_on=False)

    def _agree(self, epoch: int, step: int, goes_on: bool) -> None:
        first, *others = self._replicas.ranks
        what = f"the word to go on with epoch {epoch}, step {step}"
        if self.is_origin:
            for other in others:
                self._control.send(torch.tensor([goes_on]), other, "control", what)
        elif not self._control.receive(torch.empty(1, dtype=torch.bool), first, what):
            raise Stopped(step)

    def _load(self, epoch: int, step: int) -> tuple[Tensor, torch.cuda.Event | None]:
        with self._timeline.span(LOAD, f"images {step}"):
            images = self._batches.train(epoch, step, self._share)
            if self._stream is None:
                return images, None
            torch.cuda.set_device(self._device)
            with torch.cuda.stream(self._stream):
                return images.pin_memory().to(self._device, non_blocking=True), self._stream.record_event()

    def initial(self) -> Tensor:
        """The whole batch that layers are initialised on."""
        return self._batches.initial()

    def test_batches(self, num_images: int, batch_size: int) -> Iterator[Tensor]:
        """Test images with fixed noise."""
        return self._batches.test_batches(num_images, batch_size)

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _compute_with_one_thread() -> None:
    """Makes the calling thread compute with one. torch's one setting is taken over by each thread when it first asks."""
    torch.get_num_threads()
    torch.set_num_threads(1)
