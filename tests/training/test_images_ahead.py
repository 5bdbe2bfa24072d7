"""Images that are made while the worker computes."""

import torch

from pipeflow.config import TimelineConfig
from pipeflow.data import Batches, ImageData, dequantize
from pipeflow.training.image_feed import ImageFeed
from pipeflow.workers.alarm import Alarm
from pipeflow.workers.control import Control
from pipeflow.workers.replicas import Replicas
from pipeflow.workers.timeline import Timeline
from pipeflow.workers.traffic import Traffic

CPU = torch.device("cpu")


class Seen(Batches):
    """Batches that note how many threads torch would compute them with."""

    threads: int

    def train_images(self, epoch: int, step: int, share: slice = slice(None)) -> torch.Tensor:
        self.threads = torch.get_num_threads()
        return super().train_images(epoch, step, share)


def make_batches() -> Seen:
    images = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Seen(ImageData(images, images, "noise"), seed=0, batch_size=4, flip=True)


def make_feed(batches: Batches, replicas: Replicas) -> ImageFeed:
    control = Control(1, None, Traffic(), Alarm())
    return ImageFeed(batches, CPU, Timeline(TimelineConfig(), CPU), replicas, control)


def test_they_are_made_with_one_thread_and_the_worker_keeps_its_own():
    """Else two teams of threads share the cores, and the computation waits for its threads at each operation."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        batches = make_batches()
        assert make_feed(batches, Replicas((0,), 0)).train(0, 0).shape == (4, 3, 4, 4)
        assert batches.threads == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_every_batch_is_that_of_its_epoch_and_step():
    batches = make_batches()
    feed = make_feed(batches, Replicas((0,), 0))
    for epoch, step in [(0, 0), (0, 1), (2, 1), (1, 0)]:  # an epoch may be left before its end
        expected = dequantize(batches.train_images(epoch, step), batches.train_noise(epoch, step))
        assert torch.equal(feed.train(epoch, step), expected)
