"""A trained flow as one uses it: likelihoods, latents, samples and interpolations, in one process without a trainer."""

import itertools
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from pipeflow.data import dequantized_batches
from pipeflow.data.batches import TEST_NOISE_SEED
from pipeflow.device import choose_device
from pipeflow.errors import DataError
from pipeflow.flow import Flow
from pipeflow.rundir.saved_flow import GivenFlow, SavedFlow, open_flow
from pipeflow.use.labels import Labels, each_label, sampled_labels
from pipeflow.use.latents import Latents, join
from pipeflow.use.sample import draw_samples, to_data

BATCH_SIZE = 64


def load_flow(path: str | Path, flow: GivenFlow = None, device: str = "auto") -> "TrainedFlow":
    """Loads the trained flow of a run, with the weights that the run evaluates: averaged ones where it keeps averages.

    Args:
        path: a run folder (its `model.safetensors`, or the newest good checkpoint of a run that has not ended), a
            checkpoint such as `runs/mine/checkpoints/epoch-000003`, or a `model.safetensors`, moved anywhere.
        flow: for a run whose flow was given from Python. The same flow untrained, whose parameters are replaced; a function
            that builds it, called with (config, shape) or, if it needs none, without arguments; or `module:function`.
        device: auto (a GPU if there is one), cpu or cuda.

    Raises:
        CheckpointError: there is no such flow, it is damaged or of another model, or `flow` is needed.
        ConfigError: `flow` is no flow or one for other images, or there is no such device.
    """
    return TrainedFlow(open_flow(path, flow), choose_device(device))


class TrainedFlow:
    """A trained flow on one device. Inputs may be on any device; results are on the CPU and have no gradients.

    Images are uint8, [num, *shape]. Where `x` is meant, it is a dequantized image, `v/256 - 1/2 + u` with v the 8-bit value
    and u in [0, 1/256): float32 in [-0.5, 0.5), with the padding of `data.pad`. Images are processed in batches of
    `batch_size`. Results depend on it only by rounding, except for samples.

    A flow that was trained on floats takes and returns float32 in place of images, unchanged; `x` is the same there.

    labels: the class of each image, by number or name, for a flow whose density is given the label (`num_classes`): a
    tensor or a list, or a single one for all images. An impossible label raises DataError.
    """

    def __init__(self, saved: SavedFlow, device: torch.device):
        self.flow: Flow = saved.flow.to(device)
        """The flow itself, a torch module; it computes with gradients."""
        self.source = saved.source
        """The model file, or the folder of the checkpoint, that the weights are from."""
        self.device = device
        self.classes = saved.classes
        """Names of the labels 0, 1, ... that the flow's density is given, where they have names."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes, if the flow's density is given the label; else None."""
        return self.flow.num_classes

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, without padding."""
        return self.flow.values.shape

    def __repr__(self) -> str:
        numbers = sum(parameter.numel() for parameter in self.flow.parameters())
        about = f"images {list(self.shape)}, {numbers:,} parameters"
        return f"<TrainedFlow of {self.source} on {self.device.type}: {about}>"

    @torch.no_grad()
    def log_prob(self, x: Tensor, batch_size: int = BATCH_SIZE, labels: Labels | None = None) -> Tensor:
        """log p(x), or log p(x | label), of dequantized images, or of floats, in nats: [num], float64.

        Raises DataError where x has another shape or type, or values outside of [-0.5, 0.5), or floats that are not finite.
        """
        self._check_dequantized(x)
        return self._log_prob(x.split(batch_size), self._labels(labels, len(x), batch_size))

    def _log_prob(self, batches: Iterable[Tensor], labels: Iterable[Tensor | None]) -> Tensor:
        log_probs = [self.flow.log_prob(batch.to(self.device), its).cpu() for batch, its in zip(batches, labels)]
        return torch.cat(log_probs)

    def _labels(self, labels: Labels | None, num: int, batch_size: int) -> Iterable[Tensor | None]:
        """The labels of each batch, on the device."""
        each = each_label(labels, num, self.num_classes, self.classes)
        return itertools.repeat(None) if each is None else each.to(self.device).split(batch_size)

    @torch.no_grad()
    def bits_per_dim(
        self,
        images: Tensor,
        seed: int = TEST_NOISE_SEED,
        batch_size: int = BATCH_SIZE,
        labels: Labels | None = None,
    ) -> Tensor:
        """Bits per dimension of each of some images, as `Values.bits_per_dim` defines them: [num], float64.

        They are given the label where the flow takes labels.

        seed: of the uniform noise that dequantizes them; an image's noise depends on the seed and its place among them.
        With the default, the mean over a run's test images is the run's test bits/dim, up to rounding.

        Raises DataError if the images have another type or shape than the flow's.
        """
        self._check_images(images)
        values = self.flow.values
        batches = dequantized_batches(images.cpu(), values, batch_size, seed)
        return values.bits_per_dim(self._log_prob(batches, self._labels(labels, len(images), batch_size)))

    @torch.no_grad()
    def encode(self, images: Tensor, batch_size: int = BATCH_SIZE, labels: Labels | None = None) -> Latents:
        """Latents of uint8 images, each value in the middle of its bin, or of dequantized images x.

        labels: needed only if layers take labels, as for `decode` and `interpolate`; a top prior plays no part here.

        Raises DataError for other images.
        """
        _check_tensor(images)
        (self._check_images if images.dtype == torch.uint8 else self._check_dequantized)(images)
        batches = []
        for batch, its in zip(images.split(batch_size), self._layer_labels(labels, len(images), batch_size)):
            x = batch.to(self.device)
            x = (self.flow.values.pad(x).float() + 0.5) / 256 - 0.5 if x.dtype == torch.uint8 else x
            last, _, taken_out = self.flow(x, its)
            batches.append(Latents(last, tuple(taken_out)).to("cpu"))
        return join(batches)

    def decode(
        self, latents: Latents, as_images: bool = True, batch_size: int = BATCH_SIZE, labels: Labels | None = None
    ) -> Tensor:
        """The images that `encode` maps to these latents: uint8, [num, *shape], the ones that were encoded.

        They are the same unless the flow's rounding exceeds half a bin, 1/512. `as_images=False` gives x, float32, without
        rounding it to a bin, clamping it, or cutting off its padding.

        Raises DataError for latents of another flow, NoInverse where a layer has no inverse.
        """
        if not isinstance(latents, Latents):
            raise DataError(f"decode takes what encode gives, Latents, not {type(latents).__name__}.")
        expected = self.flow.shapes[-1], sum(layer.num_taken_out for _, layer in self.flow.named_layers())
        found = tuple(latents.last.shape[1:]), len(latents.taken_out)
        if found != expected:
            raise DataError(
                f"latents have the shape {list(found[0])} and {found[1]} tensors taken out, those of this flow "
                f"{list(expected[0])} and {expected[1]}: they are of another flow."
            )
        decoded = []
        starts = range(0, len(latents), batch_size)
        for start, its in zip(starts, self._layer_labels(labels, len(latents), batch_size)):
            batch = latents[start : start + batch_size].to(self.device)
            x = self.flow.inverse(batch.last, batch.taken_out, its)
            decoded.append(to_data(x, self.flow.values) if as_images else x.cpu())
        return torch.cat(decoded)

    def _layer_labels(self, labels: Labels | None, num: int, batch_size: int) -> Iterable[Tensor | None]:
        """As `_labels`, but they may be left out where only the top prior takes them."""
        if labels is None and all(layer.num_classes is None for _, layer in self.flow.named_layers()):
            return itertools.repeat(None)
        return self._labels(labels, num, batch_size)

    def sample(
        self,
        num: int,
        temperature: float = 0.7,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        labels: Labels | None = None,
    ) -> Tensor:
        """Samples, uint8, [num, *shape]; see `draw_samples`.

        With the run's seed and batches of 64 the first 64 are those of its `samples.png`; another `batch_size` draws other
        samples. temperature: scale of the noise, >= 0. labels: classes that samples are of in turn; all classes if None.

        Raises DataError for an impossible num or temperature, NoInverse if a layer has no inverse or the prior no samples.
        """
        if num < 1 or not 0 <= temperature < math.inf:
            raise DataError(
                f"num: {num}, temperature: {temperature}: give 1 or more samples, of a temperature from 0 on."
            )
        chosen = sampled_labels(labels, num, self.num_classes, self.classes)
        return draw_samples(self.flow, num, temperature, seed, batch_size, chosen)

    def interpolate(
        self, a: Tensor, b: Tensor, num: int = 8, batch_size: int = BATCH_SIZE, label: int | str | None = None
    ) -> Tensor:
        """Images from `a` to `b`, both included, in equal steps on the straight line between their latents.

        All latents take part, also those factored out. They are not unit Gaussians (each has learned means and scales,
        which depend on the latents after it), so a great circle, as `slerp` takes it, means nothing for them.

        Args:
            a: uint8, [*shape].
            b: as `a`.
            num: images in the result, 2 or more.
            label: of all of them, needed only where layers take labels.

        Returns:
            uint8, [num, *shape].

        Raises:
            DataError: a or b is no image of the flow's shape, or num is below 2.
            NoInverse: a layer has no inverse.
        """
        if num < 2:
            raise DataError(f"num: {num} images cannot go from one image to another: 2 or more.")
        for image in (a, b):
            self._check_images(image[None])
        ends = self.encode(torch.stack([a, b]), labels=label)
        steps = torch.linspace(0, 1, num)

        def line(latent: Tensor) -> Tensor:
            return torch.lerp(latent[:1], latent[1:], steps.view(-1, *[1] * (latent.ndim - 1)))

        between = Latents(line(ends.last), tuple(map(line, ends.taken_out)))
        return self.decode(between, batch_size=batch_size, labels=label)

    def _check_images(self, images: Tensor) -> None:
        _check_tensor(images)
        if self.flow.values.is_float:
            self._check_dequantized(images)
            return
        if images.dtype != torch.uint8:
            raise DataError(
                f"images are {images.dtype}: give uint8 values 0 to 255, or to log_prob and encode float32 in [-0.5, 0.5)."
            )
        self._check_shape(images, self.shape)

    def _check_dequantized(self, x: Tensor) -> None:
        _check_tensor(x)
        if self.flow.values.is_float and x.dtype != torch.float32:
            raise DataError(f"x is {x.dtype}, this flow was trained on floats: use x.float().")
        if x.dtype != torch.float32:
            advice = "bits_per_dim takes uint8 images" if x.dtype == torch.uint8 else "use x.float()"
            raise DataError(f"x is {x.dtype}, this takes float32 in [-0.5, 0.5): {advice}.")
        self._check_shape(x, self.flow.shape)
        if self.flow.values.is_float:
            if not x.isfinite().all():
                raise DataError("x has values that are NaN or infinite: give finite ones.")
            return
        least, most = x.min().item(), x.max().item()
        if not (least >= -0.5 and most < 0.5):  # NaN is neither
            raise DataError(
                f"x has values from {least:g} to {most:g}, this takes [-0.5, 0.5), which is v/256 - 1/2 + u for a value v "
                f"of 0 to 255 and u in [0, 1/256): bits_per_dim takes uint8 images and does that by itself."
            )

    def _check_shape(self, images: Tensor, shape: tuple[int, ...]) -> None:
        if images.shape[1:] != shape or not len(images):
            advice = ": give one image as images[None]" if images.shape == shape else ""
            raise DataError(
                f"images have the shape {list(images.shape)}, this flow takes [num, {str(list(shape))[1:]}{advice}."
            )


def _check_tensor(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise DataError(f"images are a {type(images).__name__}: give a torch tensor, such as torch.from_numpy(array).")
