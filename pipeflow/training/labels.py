"""The labels of a run's images: whether they fit the flow, and how they come to the workers whose parts take them.

A worker that loads images has their labels too. Any other gets all of them once, from worker 0, and picks those of each
batch by the order of the images, which it knows by itself: so nothing is added to a latent on a link.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeflow.data.labels import LabelBatches
from pipeflow.errors import ConfigError, DataError
from pipeflow.flow import Flow, Part
from pipeflow.rundir.records import GivenLabel
from pipeflow.safe_files import printable
from pipeflow.training.opening import Images, ImagesInfo
from pipeflow.workers.replicas import Replicas
from pipeflow.workers.world import World


def given_label(flow: Flow, info: ImagesInfo) -> GivenLabel | None:
    """The record of the label that a flow's density is given; None for a flow that takes none.

    Raises:
        DataError: the images have no labels.
        ConfigError: they have other classes than the flow.
    """
    num, labels = flow.num_classes, info.labels
    if num is None:
        return None
    if labels is None:
        raise DataError(
            f"model.num_classes: the flow takes labels of {num} classes, but the images have none: use images in folders "
            f"train/<class>/, arrays train_labels and test_labels in an .npz file, or ImageData(..., train_labels=..., "
            f"test_labels=...); or set it to null."
        )
    found = len(labels.classes) or labels.largest + 1
    if not labels.classes and (labels.smallest, labels.largest) == (1, num):
        raise DataError(
            f"model.num_classes: the flow takes labels of {num} classes, which count from 0, but the images' labels are "
            f"from 1 to {num}: subtract 1 from each."
        )
    if found > num or (labels.classes and found < num):
        names = f" ({', '.join(labels.classes[:12])}{', ...' * (found > 12)})" if labels.classes else ", counted from 0"
        raise ConfigError(
            f"model.num_classes: the flow takes labels of {num} classes, but the images have {found}{names}: set it to "
            f"{found}."
        )
    classes = tuple(map(printable, labels.classes))
    return GivenLabel(num_classes=num, classes=classes, fingerprint=labels.fingerprint)


class Labels:
    """The labels of all images of a run, where they are needed."""

    def __init__(self, world: World, images: Images, seed: int, batch_size: int):
        self._world = world
        self._images = images
        self._order = seed, batch_size
        self._received: Tensor | None = None
        self._is_handed_out = False

    def hand_out(self, parts: Sequence[Part], owners: Sequence[int]) -> None:
        """Sends them, once in a run, to the workers behind the first place whose parts take labels.

        All workers call this together. owners: the place that holds each part.
        """
        world, control = self._world, self._world.control
        places = {owner for part, owner in zip(parts, owners) if part.num_classes is not None} - {0}
        if self._is_handed_out or not places:
            return
        self._is_handed_out = True
        what = "the labels of the images"
        for rank in (rank for rank in range(world.size) if rank // world.num_replicas in places):
            if world.rank == 0:
                control.send(torch.cat(self._loaded()), rank, "labels", what)
            elif world.rank == rank:
                num = self._images.info.num_train + self._images.info.num_test
                self._received = control.receive(torch.empty(num, dtype=torch.int64), 0, what)

    def feed(self, replicas: Replicas) -> "LabelFeed":
        """Returns the labels of each batch, on a worker that loads the images or has received the labels."""
        if self._received is None:
            train, test = self._loaded()
        else:
            train, test = self._received.split([self._images.info.num_train, self._images.info.num_test])
        _, batch_size = self._order
        return LabelFeed(LabelBatches(train, test, *self._order), replicas.share(batch_size), self._world.device)

    def _loaded(self) -> tuple[Tensor, Tensor]:
        data = self._images.batches().data
        assert data.train_labels is not None and data.test_labels is not None, "given_label has seen them"
        return data.train_labels, data.test_labels


class LabelFeed:
    """The labels of a worker's share of each batch, on its device."""

    def __init__(self, batches: LabelBatches, share: slice, device: torch.device):
        self._batches = batches
        self._share = share
        self._device = device

    def train(self, epoch: int, step: int) -> Tensor:
        """Labels of this worker's share of a training batch: int64, [share]."""
        return self._moved(self._batches.train(epoch, step)[self._share])

    def initial(self) -> Tensor:
        """Labels of the whole batch that layers are initialised on: int64, [batch]."""
        return self._moved(self._batches.initial())

    def test(self, step: int, batch_size: int, num_images: int) -> Tensor:
        """Labels of batch `step` of the first `num_images` test images: int64, [<= batch]."""
        return self._moved(self._batches.test(step, batch_size, num_images))

    def _moved(self, labels: Tensor) -> Tensor:
        """Labels on the device. A copy from pageable memory would wait for all that the GPU has to do."""
        return labels.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else labels
