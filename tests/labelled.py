"""Images of three classes, dark, grey and light, and flows that take their labels."""

import torch

from pipeflow.config import Config
from pipeflow.data import ImageData
from pipeflow.flow import ClassPrior, ConditionalLayer, Flow, glow

CLASSES = ("dark", "grey", "light")


def images(options: object = None, shuffled: bool = False) -> ImageData:
    """96 and 40 images of 3x8x8. shuffled: the same images with other labels."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for num in (96, 40):
        labels = torch.arange(num) % 3
        noise = torch.randint(-30, 30, (num, 3, 8, 8), generator=generator)
        made.append((torch.tensor([60, 128, 200])[labels].view(-1, 1, 1, 1) + noise).to(torch.uint8))
        made.append(labels[torch.randperm(num, generator=torch.Generator().manual_seed(1))] if shuffled else labels)
    train, train_labels, test, test_labels = made
    return ImageData(train, test, "labelled", (), train_labels, test_labels, CLASSES)


class ClassShift(ConditionalLayer):
    """`y = (x + shift) * exp(log_scale)` per channel, by class; the first batch's images get means of zero."""

    def __init__(self, num_channels: int, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.shift = torch.nn.Parameter(torch.zeros(num_classes, num_channels))
        self.log_scale = torch.nn.Parameter(torch.zeros(num_classes, num_channels))

    def _of(self, table, labels):
        return torch.nn.functional.embedding(labels, table)[:, :, None, None]

    def forward(self, x, labels):
        log_scale = self._of(self.log_scale, labels)
        logdet = log_scale.sum(dim=(1, 2, 3)) * x.shape[2] * x.shape[3]
        return (x + self._of(self.shift, labels)) * log_scale.exp(), logdet

    def inverse(self, y, labels):
        return y * (-self._of(self.log_scale, labels)).exp() - self._of(self.shift, labels)

    @torch.no_grad()
    def initialize(self, x, labels):
        for label in labels.unique():
            self.shift[label] = -x[labels == label].mean(dim=(0, 2, 3))


def shifted_glow(config: Config, shape: tuple[int, ...]) -> Flow:
    """A Glow in which the first layer and the last one, and the top prior, take the label."""
    plain = glow(shape, 2, 2, 8)
    layers = {"first": ClassShift(3, 3), **dict(plain.named_layers()), "last": ClassShift(24, 3)}
    return Flow(layers, shape, ClassPrior((24, 2, 2), 3))
