"""Workers that hold the same layers and share each batch."""

from dataclasses import dataclass

import torch.distributed as dist


def share_of(batch_size: int, num_replicas: int, index: int) -> slice:
    """The images of a global batch that are one replica's; sizes differ by one at most."""
    return slice(index * batch_size // num_replicas, (index + 1) * batch_size // num_replicas)


@dataclass(frozen=True)
class Replicas:
    """Who shares the batches of this worker; a worker with all of them is alone here."""

    ranks: tuple[int, ...]
    rank: int
    """This worker's."""
    group: dist.ProcessGroup | None = None
    """For gradients, where there is more than one."""

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.ranks)

    @property
    def index(self) -> int:
        """This worker's number among them."""
        return self.ranks.index(self.rank)

    @property
    def is_first(self) -> bool:
        """Whether this worker initialises, evaluates and saves for all of them."""
        return self.index == 0

    def share(self, batch_size: int) -> slice:
        """This worker's images of a global batch."""
        return share_of(batch_size, self.size, self.index)

    def weight(self, batch_size: int, rank: int) -> float:
        """What part of a global batch is the share of the worker `rank`, of whichever replicas as many as these."""
        share = share_of(batch_size, self.size, rank % self.size)
        return (share.stop - share.start) / batch_size
