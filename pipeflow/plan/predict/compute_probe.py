"""Measures how long a flow computes in one process: each layer, the whole training step, the update, an image's noise."""

import functools
import time
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any, TypeVar

import torch
from torch import Tensor

from pipeflow.config import Config
from pipeflow.data.batches import dequantization_noise, dequantize
from pipeflow.flow import Flow, Layer, split_flow
from pipeflow.flow.labels import labels_for
from pipeflow.training.trainer import PartTrainer

Result = TypeVar("Result")

_MOST_ROUNDS = 15
_MOST_STEPS_ALONE = 5


def combine(several: Sequence[Any], how: Callable[[Sequence[float]], float]) -> Any:
    """Nests of dictionaries and lists of numbers, all of the same form, as one, number by number."""
    if isinstance(several[0], dict):
        return {key: combine([each[key] for each in several], how) for key in several[0]}
    if isinstance(several[0], list):
        return [combine(each, how) for each in zip(*several)]
    return how(several)


class ComputeProbe:
    """Times one flow; its weights do not change."""

    def __init__(self, flow: Flow, config: Config, device: torch.device):
        self.flow, self.device = flow, device
        # A learning rate of 0 keeps the weights: a diverged flow computes with other numbers.
        self.trainer = PartTrainer(split_flow(flow, [])[0], device, config, 0.0, 1)
        self.trainer.part.initialize(self._images(8), labels=self._labels(8))

    def measure(self, sizes: Sequence[int], seconds: float) -> Any:
        """Medians over as many rounds as fit into `seconds`, of which there is at least one.

        Returns:
            Seconds by name of layer and batch size for `forward` and `train`, by batch size for the `whole` step with its
            `update`, and of an `image`'s preparation.
        """
        return combine(_repeat(lambda: self._round(sizes), seconds, _MOST_ROUNDS), median)

    def whole_step(self, size: int, seconds: float) -> float:
        """Seconds of a training step of the whole flow: the median of what fits into `seconds`."""
        return median(_repeat(lambda: sum(self._step(size)), seconds, _MOST_STEPS_ALONE))

    def _round(self, sizes: Sequence[int]) -> dict[str, Any]:
        forward: dict[str, list[float]] = {name: [] for name in self.flow.names}
        train: dict[str, list[float]] = {name: [] for name in self.flow.names}
        whole = []
        for size in sizes:
            images = self._images(size)
            layers = self._layers(images)
            step, update = self._step(size)
            run = self._timed(functools.partial(self.trainer.run, images, self._labels(size)))
            # Layers one by one keep nothing warm for each other: their sums are scaled to what the whole flow takes.
            scale_forward = run / sum(seconds for seconds, _ in layers.values())
            scale_train = step / sum(seconds for _, seconds in layers.values())
            for name, (of_forward, of_train) in layers.items():
                forward[name].append(of_forward * scale_forward)
                train[name].append(of_train * scale_train)
            whole.append(step + update)
        return {"forward": forward, "train": train, "whole": whole, "update": update, "image": self._image(sizes[-1])}

    def _images(self, size: int) -> Tensor:
        return torch.rand(size, *self.flow.shape, device=self.device) - 0.5

    def _labels(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.int64, device=self.device)

    def _layers(self, latent: Tensor) -> dict[str, list[float]]:
        """Seconds of each layer's forward, and of its forward with backward.

        Each kind of layer is timed at most twice, in its place in the flow; others of the kind take the mean.
        """
        kinds: dict[object, list[list[float]]] = {}
        kind_of = {}
        for (name, layer), shape in zip(self.flow.named_layers(), self.flow.shapes):
            kind_of[name] = (type(layer), shape, tuple(parameter.shape for parameter in layer.parameters()))
            times = kinds.setdefault(kind_of[name], [])
            if len(times) < 2:
                times.append(self._layer(layer, latent, needs_gradient=name != self.flow.names[0]))
            with torch.no_grad():
                latent = layer(latent, **labels_for(layer, self._labels(len(latent))))[0]
        return {name: combine(kinds[kind], fmean) for name, kind in kind_of.items()}

    def _layer(self, layer: Layer, latent: Tensor, needs_gradient: bool) -> list[float]:
        given = labels_for(layer, self._labels(len(latent)))

        def run() -> None:
            with torch.no_grad():
                layer(latent, **given)

        def train() -> None:
            latent_out, contribution, *_ = layer(latent.detach().requires_grad_(needs_gradient), **given)
            total = latent_out.sum() + contribution.sum()
            if total.requires_grad:
                torch.autograd.backward(total)

        return [self._timed(run), self._timed(train)]

    def _step(self, size: int) -> tuple[float, float]:
        """Seconds of the whole flow's forward and backward, and of its update."""
        images, labels, trainer = self._images(size), self._labels(size), self.trainer
        update = 0.0

        def step() -> None:
            nonlocal update
            _, loss = trainer.forward(images, labels=labels)
            trainer.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self._wait()
            begin = time.perf_counter()
            trainer.optimizer.step()
            self._wait()
            update = time.perf_counter() - begin

        whole = self._timed(step)
        return whole - update, update

    def _image(self, size: int) -> float:
        """Seconds an image of a batch that is made as `Batches` makes it of decoded images."""
        pixels = torch.zeros(size, *self.flow.shape, dtype=torch.uint8)
        noise_of = 0, "train", 0, 0, tuple(pixels.shape)
        return self._timed(lambda: dequantize(pixels, dequantization_noise(*noise_of)).to(self.device)) / size

    def _timed(self, run: Callable[[], object]) -> float:
        """Seconds of the second of two calls."""
        run()
        self._wait()
        begin = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _repeat(measure: Callable[[], Result], seconds: float, most: int) -> list[Result]:
    """Results of at least one call, and of more while there is time: a slow processor makes few."""
    begun = time.perf_counter()
    results = [measure()]
    while len(results) < most and time.perf_counter() - begun < seconds:
        results.append(measure())
    return results
