"""Latents of images, and their file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeflow.errors import DataError
from pipeflow.rundir.model import write_tensors


@dataclass(frozen=True, eq=False)
class Latents:
    """The latents of a batch of images: all that the flow needs to get the images back."""

    last: Tensor
    """Output of the last layer: float32, [batch, ...]."""
    taken_out: tuple[Tensor, ...] = ()
    """Tensors that layers factored out, in their order: float32, each [batch, ...]."""

    def __len__(self) -> int:
        return len(self.last)

    def __getitem__(self, images: slice) -> "Latents":
        """The latents of some of the images."""
        return self._each(lambda latent: latent[images])

    def to(self, device: torch.device | str) -> "Latents":
        """The latents on a device."""
        return self._each(lambda latent: latent.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Latents":
        return Latents(change(self.last), tuple(map(change, self.taken_out)))

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file with the tensors `last`, `taken_out.0`, `taken_out.1`, ..."""
        named = {"last": self.last, **{f"taken_out.{index}": each for index, each in enumerate(self.taken_out)}}
        write_tensors(Path(path), {name: latent.contiguous() for name, latent in named.items()})

    @classmethod
    def load(cls, path: str | Path) -> "Latents":
        """Reads what `save` wrote. Raises DataError."""
        try:
            named = load_file(path)
            return cls(named.pop("last"), tuple(named[f"taken_out.{index}"] for index in range(len(named))))
        except (OSError, SafetensorError, KeyError) as error:
            raise DataError(f"{path}: is no file of latents, as Latents.save writes it ({error}).") from None


def join(latents: list[Latents]) -> Latents:
    """The latents of several batches, one after the other."""
    taken_out = zip(*(each.taken_out for each in latents))
    return Latents(torch.cat([each.last for each in latents]), tuple(torch.cat(same) for same in taken_out))
