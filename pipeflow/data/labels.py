"""The labels of batches, in the order of their images: a worker needs no images to know them."""

from torch import Tensor

from pipeflow.data.order import Order


class LabelBatches:
    """The labels of one run's batches.

    Args:
        train, test: labels of all training and test images, int64, [images].
        seed, batch_size: of the run, as for `Batches`.
    """

    def __init__(self, train: Tensor, test: Tensor, seed: int, batch_size: int) -> None:
        self._train_labels = train
        self._test_labels = test
        self._order = Order(len(train), seed, batch_size)

    def train(self, epoch: int, step: int) -> Tensor:
        """Labels of training batch `step` of `epoch`: int64, [batch]."""
        return self._train_labels[self._order.batch(epoch, step)]

    def initial(self) -> Tensor:
        """Labels of the batch that layers are initialised on: int64, [batch]."""
        return self._train_labels[self._order.initial()]

    def test(self, step: int, batch_size: int, num_images: int) -> Tensor:
        """Labels of batch `step` of the first `num_images` test images: int64, [<= batch]."""
        return self._test_labels[step * batch_size : min((step + 1) * batch_size, num_images)]
