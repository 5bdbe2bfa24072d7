"""A flow: a flat list of layers with global names, and a prior behind the last."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeflow.flow.layers import Layer, Shape
from pipeflow.flow.priors import GaussianPrior, Prior

PRIOR = "prior"
"""The top prior's name in a state dict. `heads` is kept for the heads of parts, which are no part of the flow."""


class Flow(nn.Module):
    """log p(x) as one running sum over a list of layers.

    layers: by name (`{"blocks.0.squeeze": ...}`), or a list, whose layers are then called `layers.0`, `layers.1`, ...
    shape: of one image, without the batch.
    prior: density of the last latent; a learned Gaussian where none is given.
    Raises ValueError where a layer cannot take what the one before it gives, naming the layer.
    """

    def __init__(self, layers: Mapping[str, Layer] | Sequence[Layer], shape: Shape, prior: Prior | None = None):
        super().__init__()
        if not isinstance(layers, Mapping):
            layers = {f"layers.{index}": layer for index, layer in enumerate(layers)}
        if len({id(layer) for layer in layers.values()}) < len(layers):
            raise ValueError("a layer stands in the list twice: parts could not be told apart, make one for each place")
        if not layers:
            raise ValueError("a flow needs at least one layer")
        self.shape = tuple(shape)
        self.names = list(layers)
        reserved = {PRIOR, "heads", "shapes", *dir(self)}
        for name, layer in layers.items():
            if not isinstance(layer, Layer):
                raise ValueError(f"layer {name!r} is a {type(layer).__name__}: layers derive from pipeflow.flow.Layer")
            if name.split(".")[0] in reserved:
                raise ValueError(f"layer {name!r}: names that begin with {name.split('.')[0]!r} are taken")
            _register(self, name, layer)
        self.shapes = _shapes(self.named_layers(), self.shape)
        self.prior = GaussianPrior(self.shapes[-1]) if prior is None else prior

    def named_layers(self) -> Iterator[tuple[str, Layer]]:
        """The layers in order, with their names."""
        for name in self.names:
            yield name, self.get_submodule(name)

    @property
    def num_dims(self) -> int:
        """D, the number of values in an image."""
        return math.prod(self.shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The last latent, the sum of all contributions ([batch], float64), and what was taken out on the way."""
        total = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        taken_out: list[Tensor] = []
        for _, layer in self.named_layers():
            x, contribution, *taken = layer(x)
            total = total + contribution.double()
            taken_out += taken
        return x, total, taken_out

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, [batch], float64."""
        latent, total, _ = self(x)
        return total + self.prior.log_prob(latent).double()

    @torch.no_grad()
    def inverse(self, latent: Tensor, taken_out: Sequence[Tensor]) -> Tensor:
        """The images that `forward` takes to this latent and these halves."""
        halves = list(taken_out)
        for _, layer in reversed(list(self.named_layers())):
            first = len(halves) - layer.num_taken_out
            latent = layer.inverse(latent, *halves[first:])
            del halves[first:]
        return latent

    @torch.no_grad()
    def sample(self, num: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """`num` images, [num, *shape], float32, not clamped. Drawn on the CPU: any device gives the same noise."""
        latent = self.prior.sample(num, generator, temperature).to(next(self.parameters()).device)
        for _, layer in reversed(list(self.named_layers())):
            latent = layer.sample_inverse(latent, generator, temperature)
        return latent

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Data-dependent initialisation of all layers on one batch; what is initialised already stays as it is."""
        for _, layer in self.named_layers():
            layer.initialize(x)
            x = layer(x)[0]
        self.prior.initialize(x)

    def multiply_adds(self) -> int:
        """Multiply-adds of one forward of one image."""
        return sum(layer.multiply_adds(shape) for (_, layer), shape in zip(self.named_layers(), self.shapes))


def _register(root: nn.Module, name: str, layer: Layer) -> None:
    """Makes `layer` reachable as `root.a.b.c`, so that its parameters are called `a.b.c...` in the state dict."""
    *path, last = name.split(".")
    for key in path:
        if key not in root._modules:
            root.add_module(key, nn.Module())
        root = root._modules[key]
        if isinstance(root, Layer):
            raise ValueError(f"layer {name!r} stands inside another layer of the flow")
    if not last or last in root._modules:
        raise ValueError(f"layer {name!r}: that name is empty or used twice")
    root.add_module(last, layer)


def _shapes(named_layers: Iterator[tuple[str, Layer]], shape: Shape) -> list[Shape]:
    """Shape of the input of each layer, and of the last output."""
    shapes = [shape]
    for name, layer in named_layers:
        try:
            shapes.append(tuple(layer.output_shape(shapes[-1])))
        except ValueError as error:
            raise ValueError(f"layer {name!r} cannot take a latent of shape {shapes[-1]}: {error}") from None
    return shapes
