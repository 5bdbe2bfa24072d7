"""The labels of a batch are those of its images, known without the images."""

import torch

from pipeflow.data import Batches, ImageData
from pipeflow.data.labels import LabelBatches


def test_labels_come_in_the_order_of_the_images():
    """Each image has its label as its values."""
    train, test = (torch.arange(num) % 7 for num in (50, 23))
    images = [labels.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous() for labels in (train, test)]
    batches = Batches(ImageData(*images, "own"), seed=3, batch_size=8, flip=True)
    labels = LabelBatches(train, test, seed=3, batch_size=8)
    for epoch, step in [(0, 0), (1, 2), (0, 5)]:
        assert torch.equal(batches.train_images(epoch, step)[:, 0, 0, 0].long(), labels.train(epoch, step))
    assert torch.equal(values_of(batches.initial()), labels.initial())
    for step, images in enumerate(batches.test_batches(20, 8)):
        assert torch.equal(values_of(images), labels.test(step, 8, 20))


def values_of(images: torch.Tensor) -> torch.Tensor:
    return ((images[:, 0, 0, 0] + 0.5) * 256).floor().long()
