"""The properties of a link that both of its ends share: the parts it joins, and how its latents are written."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeflow.data.random import generator
from pipeflow.errors import WorkerError
from pipeflow.flow.layers import Shape
from pipeflow.links.codec import Codec, WithDensity, make_codec

TRAINING, EVALUATION, INITIAL = "latents", "eval", "initial"
FORWARD, BACKWARD = "pipeline latents", "latent gradients"
"""A pipeline's: latents with the log-density so far of their images, and the gradients of these latents."""
KINDS = (TRAINING, EVALUATION, INITIAL, FORWARD, BACKWARD)

Label = tuple[str, int, int, int]
"""Kind, epoch and step of a latent, and the number of its micro-batch: 0 where a batch travels whole."""


def describe(label: Label) -> str:
    """`latents of epoch 0, step 3`, and the micro-batch behind the first."""
    kind, epoch, step, micro_batch = label
    return f"{kind} of epoch {epoch}, step {step}" + (f", micro-batch {micro_batch}" if micro_batch else "")


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
    micro_batches: int = 1
    """Slices in which a training batch travels, each with its own dither; all others travel whole."""
    pipeline_slices: int = 1
    """Slices in which a batch goes through a pipeline, forward and back."""
    is_backward: bool = False
    """Whether it carries gradients of latents, from part `index + 1` to part `index`."""

    @property
    def source(self) -> int:
        """The part that sends."""
        return self.index + self.is_backward

    @property
    def target(self) -> int:
        """The part that receives."""
        return self.index + (not self.is_backward)

    def messages(self, kind: str) -> int:
        """Latents in which a batch of this kind travels."""
        return {TRAINING: self.micro_batches, FORWARD: self.pipeline_slices, BACKWARD: self.pipeline_slices}.get(
            kind, 1
        )

    def codec(self, kind: str) -> Codec | WithDensity:
        """The codec that knows how a payload of this kind is laid out."""
        return WithDensity(self._latents(kind)) if kind == FORWARD else self._latents(kind)

    def _latents(self, kind: str) -> Codec:
        """The codec of latents of this kind."""
        return make_codec("float32" if kind in (EVALUATION, INITIAL) else self.dtype, self.shape)

    def encode(self, label: Label, latent: Tensor) -> Tensor:
        """The payload for a detached latent, [batch, *shape]."""
        assert not latent.requires_grad, "a latent on a link must be detached"
        codec = self._latents(label[0])
        return codec.encode(latent, self._dither(codec, label, latent.device))

    def encode_with_density(self, label: Label, latent: Tensor, log_density: Tensor) -> Tensor:
        """The payload of a pipeline, for a detached latent and the log-density so far, [batch], float64."""
        return WithDensity(self._latents(label[0])).join(log_density, self.encode(label, latent))

    def decode(self, label: Label, payload: Tensor) -> Tensor:
        """The latent that the next part gets, [batch, *shape], float32."""
        codec = self._latents(label[0])
        return codec.decode(payload, self._dither(codec, label, payload.device))

    def decode_with_density(self, label: Label, payload: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """The latent that the next part gets and the log-density so far. batch: number of images."""
        log_density, latents = WithDensity(self._latents(label[0])).split(payload, batch)
        return self.decode(label, latents), log_density

    def check_label(self, label: Label, expected: Label) -> None:
        """Raises WorkerError where another latent came than the one expected."""
        if label != expected:
            raise WorkerError(
                f"{self}: expected the {describe(expected)}, but the {describe(label)} came: the workers do not follow the "
                f"same schedule. Start all with the same configuration."
            )

    def _dither(self, codec: Codec, label: Label, device: torch.device) -> torch.Generator | None:
        if not codec.needs_generator:
            return None
        _, epoch, step, micro_batch = label
        # Zeros at the end are left out, as they were before there were replicas and micro-batches: the same seeds go on.
        share = (self.replica, micro_batch) if micro_batch else (self.replica,) if self.replica else ()
        return generator(self.seed, "dither", self.index, epoch, step, *share, device=device)

    def __str__(self) -> str:
        replica = f", replica {self.replica}" if self.replica else ""
        return f"link {self.index} (part {self.source} to part {self.target}{replica})"
