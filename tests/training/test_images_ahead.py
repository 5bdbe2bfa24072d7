"""Images that are made while the worker computes."""

import torch

from pipeflow.config import TimelineConfig
from pipeflow.data import Batches, ImageData
from pipeflow.training.image_feed import ImagesAhead
from pipeflow.workers.timeline import Timeline


class Seen(Batches):
    """Batches that note how many threads torch would compute them with."""

    threads: int

    def train(self, epoch: int, step: int) -> torch.Tensor:
        self.threads = torch.get_num_threads()
        return super().train(epoch, step)


def test_they_are_made_with_one_thread_and_the_worker_keeps_its_own():
    """Else two teams of threads share the cores, and the computation waits for its threads at each operation."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        images = torch.zeros(8, 3, 4, 4, dtype=torch.uint8)
        batches = Seen(ImageData(images, images, "zeros"), 0, 4, False)
        cpu = torch.device("cpu")
        assert ImagesAhead(batches, cpu, Timeline(TimelineConfig(), cpu)).train(0, 0).shape == (4, 3, 4, 4)
        assert batches.threads == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
