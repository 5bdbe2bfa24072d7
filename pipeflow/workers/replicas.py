"""Workers that hold the same layers and share each batch."""

from dataclasses import dataclass

import torch.distributed as dist


def share_of(batch_size: int, num_replicas: int, index: int) -> slice:
    """The images of a global batch that belong to one replica; shares differ by one image at most."""
    return slice(index * batch_size // num_replicas, (index + 1) * batch_size // num_replicas)


@dataclass(frozen=True)
class Replicas:
    """The workers that share this worker's batches, itself included."""

    ranks: tuple[int, ...]
    rank: int
    """This worker's rank."""
    group: dist.ProcessGroup | None = None
    """The process group of their gradients; None for a single worker."""

    @property
    def size(self) -> int:
        """Number of replicas."""
        return len(self.ranks)

    @property
    def index(self) -> int:
        """This worker's position among them."""
        return self.ranks.index(self.rank)

    @property
    def is_first(self) -> bool:
        """Whether this worker initialises, evaluates and saves for all of them."""
        return self.index == 0

    def share(self, batch_size: int) -> slice:
        """This worker's images of a global batch."""
        return share_of(batch_size, self.size, self.index)

    def weight(self, batch_size: int, rank: int) -> float:
        """Fraction of the global batch that worker `rank` trains on; weights its loss in the mean over replicas."""
        share = share_of(batch_size, self.size, rank % self.size)
        return float((share.stop - share.start) / batch_size)
