"""The properties of a link that both of its ends share: the parts it joins, and how its latents are written."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeflow.data.random import generator
from pipeflow.errors import WorkerError
from pipeflow.flow.layers import Shape
from pipeflow.links.codec import Codec, make_codec

TRAINING, EVALUATION, INITIAL = "latents", "eval", "initial"
KINDS = (TRAINING, EVALUATION, INITIAL)

Label = tuple[str, int, int]
"""Kind, epoch and step of a latent."""


@dataclass(frozen=True)
class Channel:
    """A link without its ends."""

    index: int
    """Index of the part in front; the link goes to part `index + 1`."""
    shape: Shape
    """Shape of one latent, without the batch."""
    dtype: str = "float32"
    """Type in which training latents travel, as in `link.dtype`; all others travel as float32."""
    seed: int = 0
    """The run's seed, from which both ends draw the same dither."""
    replica: int = 0
    """Index of the replicas at its ends; each share of a batch has its own dither."""

    def codec(self, kind: str) -> Codec:
        """The codec of latents of this kind."""
        return make_codec(self.dtype if kind == TRAINING else "float32", self.shape)

    def encode(self, kind: str, epoch: int, step: int, latent: Tensor) -> Tensor:
        """The payload for a detached latent, [batch, *shape]."""
        assert not latent.requires_grad, "a latent on a link must be detached"
        codec = self.codec(kind)
        return codec.encode(latent, self._dither(codec, epoch, step, latent.device))

    def decode(self, kind: str, epoch: int, step: int, payload: Tensor) -> Tensor:
        """The latent that the next part gets, [batch, *shape], float32."""
        codec = self.codec(kind)
        return codec.decode(payload, self._dither(codec, epoch, step, payload.device))

    def check_label(self, label: Label, expected: Label) -> None:
        """Raises WorkerError where another latent came than the one expected."""
        if label != expected:
            raise WorkerError(
                f"{self}: expected the {expected[0]} of epoch {expected[1]}, step {expected[2]}, but the {label[0]} of "
                f"epoch {label[1]}, step {label[2]} came: the workers do not follow the same schedule. Start all with the "
                f"same configuration."
            )

    def _dither(self, codec: Codec, epoch: int, step: int, device: torch.device) -> torch.Generator | None:
        if not codec.needs_generator:
            return None
        replica = (self.replica,) if self.replica else ()
        return generator(self.seed, "dither", self.index, epoch, step, *replica, device=device)

    def __str__(self) -> str:
        replica = f", replica {self.replica}" if self.replica else ""
        return f"link {self.index} (part {self.index} to part {self.index + 1}{replica})"
