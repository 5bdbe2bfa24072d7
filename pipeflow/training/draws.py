"""Latents of frozen parts, kept where they are received, so that they need not be computed and sent in every epoch.

While one part trains for several epochs in a row, what the parts before it make of an image changes only with its noise and
flip. `link.cache_draws` n keeps the latents of the turn's first n epochs, each one a draw of noise and flips; the epochs
after them go through the draws in turn, the images in a new order each time, and the parts in front rest. The trained part
then sees n noisy copies of an image instead of a new one in each epoch: with few images or many epochs it learns them by
heart, as it would images without dequantization noise. Hence the default of none.
"""

import math
import os
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from pipeflow.config import LinkConfig
from pipeflow.data.random import generator
from pipeflow.errors import ConfigError
from pipeflow.flow import Part
from pipeflow.training.schedule import Phase


class Draws:
    """The draws that one worker keeps, of the part that trains in this turn."""

    def __init__(self, config: LinkConfig, seed: int, num_images: int):
        """num_images: in the batches of an epoch."""
        self._config = config
        self._seed = seed
        self._num_images = num_images
        self._draws: dict[tuple[int, int], Tensor] = {}
        self._kept: dict[tuple[int, int], int] = {}
        """Images of each draw that are there: of an epoch that was resumed in its middle not all come."""
        self._order_epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def begin(self, phase: Phase) -> None:
        """Forgets what belongs to a turn that is over; one of its epochs may neither keep nor use a draw."""
        trained = phase.trained[0] if phase.is_local and len(phase.trained) == 1 else None
        self._draws = {key: draw for key, draw in self._draws.items() if key[0] == trained and self.has(*key)}
        self._kept = {key: self._kept[key] for key in self._draws}

    def has(self, part: int, epoch: int) -> bool:
        """Whether the part's latents of this epoch are here."""
        return self._kept.get((part, epoch), 0) >= self._num_images

    def keep(self, part: int, epoch: int, step: int, latent: Tensor) -> None:
        """Keeps the latents that came for batch `step`."""
        key = (part, epoch)
        if key not in self._draws:
            self._draws[key] = self._allocate(key, (self._num_images, *latent.shape[1:]))
        self._draws[key][step * len(latent) : (step + 1) * len(latent)].copy_(latent)
        self._kept[key] = self._kept.get(key, 0) + len(latent)

    def take(self, part: int, draw_epoch: int, epoch: int, step: int, batch_size: int) -> Tensor:
        """Batch `step` of `epoch`, out of the draw of `draw_epoch`, in an order of its own."""
        if epoch != self._order_epoch:
            self._order = torch.randperm(self._num_images, generator=generator(self._seed, "order of draws", epoch))
            self._order_epoch = epoch
        chosen = self._order[step * batch_size : (step + 1) * batch_size]
        return self._draws[part, draw_epoch][chosen].float()

    def _allocate(self, key: tuple[int, int], shape: Sequence[int]) -> Tensor:
        dtype = _stored_as(self._config.dtype)
        if self._config.cache_dir is None:
            return torch.empty(shape, dtype=dtype)
        return _on_disk(self._config.cache_dir, f"part{key[0]}_epoch{key[1]}_", shape, dtype)


def _on_disk(folder: str, prefix: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor in a file of this folder. Raises ConfigError where there is no such place, or no room in it."""
    size = math.prod(shape)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        file, path = tempfile.mkstemp(dir=folder, prefix=prefix)
        try:
            # Asked for at once, a full disk is an error here; asked for page by page it would kill the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, size * dtype.itemsize)
            return torch.from_file(path, shared=True, size=size, dtype=dtype).view(shape)
        finally:
            os.close(file)
            os.unlink(path)  # without a name the file goes with the process, however that ends
    except OSError as error:
        raise ConfigError(
            f"link.cache_dir: {folder} has no place for {size * dtype.itemsize / 1e9:.3g} GB of kept latents "
            f"({error.strerror}): choose another folder, or keep fewer draws (link.cache_draws)."
        ) from None


def _stored_as(link_dtype: str) -> torch.dtype:
    """What came as bfloat16 is bfloat16; everything else is kept in full, dithered bytes too."""
    return torch.bfloat16 if link_dtype == "bfloat16" else torch.float32


def check_room(config: LinkConfig, phases: Sequence[Phase], parts: Sequence[Part], num_images: int) -> None:
    """Raises ConfigError where the draws of a turn would take more than `link.cache_gb`, or have no place."""
    turns = groupby(phases, key=lambda phase: phase.trained if phase.is_local else None)
    kept = [(trained, len({phase.draw_epoch for phase in turn} - {None})) for trained, turn in turns]
    kept = [(trained[0], num_draws) for trained, num_draws in kept if num_draws]
    if not kept:
        return
    part, num_draws = max(kept, key=lambda each: each[1] * math.prod(parts[each[0]].input_shape))
    values = math.prod(parts[part].input_shape)
    needed = num_draws * num_images * values * _stored_as(config.dtype).itemsize
    if needed > config.cache_gb * 1e9:
        raise ConfigError(
            f"link.cache_draws: {num_draws} draws of {num_images:,} latents of {values:,} values take "
            f"{needed / 1e9:.2f} GB, link.cache_gb allows {config.cache_gb:g}: keep fewer draws, or raise it (with "
            f"link.cache_dir on a disk)."
        )
    if config.cache_dir is not None:
        _on_disk(config.cache_dir, "try_", (1,), torch.uint8)  # now, not in an epoch hours from now
