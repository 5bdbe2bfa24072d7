"""A flow: a list of layers with global names, and a prior of the last latent."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeflow.flow.labels import check_labels, common_num_classes, labels_for, with_labels
from pipeflow.flow.layers import Layer, Shape
from pipeflow.flow.priors import GaussianPrior, Prior
from pipeflow.flow.running import run_layers, sample_layers
from pipeflow.flow.values import Values

PRIOR = "prior"
"""Name of the top prior in a state dict. The name `heads` is reserved for the heads of parts, which the flow lacks."""


class Flow(nn.Module):
    """A normalizing flow whose log p(x) is one running sum over a list of layers.

    layers: by name (`{"blocks.0.squeeze": ...}`), or a list, whose layers are then called `layers.0`, `layers.1`, ...
    shape: of one image, without the batch.
    prior: density of the last latent; by default a learned Gaussian.

    Raises ValueError, with the layer's name, if a layer cannot take the output of the one before it, or if layers and prior
    take labels of different numbers of classes.
    """

    __call__: Callable[..., tuple[Tensor, Tensor, list[Tensor]]]

    def __init__(self, layers: Mapping[str, Layer] | Sequence[Layer], shape: Shape, prior: Prior | None = None):
        super().__init__()
        if not isinstance(layers, Mapping):
            layers = {f"layers.{index}": layer for index, layer in enumerate(layers)}
        if len({id(layer) for layer in layers.values()}) < len(layers):
            raise ValueError("a layer stands in the list twice: parts could not be told apart, make one for each place")
        if not layers:
            raise ValueError("a flow needs at least one layer")
        _check_nothing_is_shared(layers)
        self.shape = tuple(shape)
        self.values = Values(self.shape)
        """The data that the flow is trained on, 8-bit values of its own shape unless a run says otherwise."""
        self.names = list(layers)
        reserved = {PRIOR, "heads", "shapes", "num_classes", *dir(self)}
        for name, layer in layers.items():
            if not isinstance(layer, Layer):
                raise ValueError(f"layer {name!r} is a {type(layer).__name__}: layers derive from pipeflow.flow.Layer")
            if name.split(".")[0] in reserved:
                raise ValueError(f"layer {name!r}: names that begin with {name.split('.')[0]!r} are taken")
            _register(self, name, layer)
        self.shapes = self._compute_shapes()
        self.prior = GaussianPrior(self.shapes[-1]) if prior is None else prior
        self.num_classes = common_num_classes([*self._layers(), self.prior])
        """Number of classes of the labels that layers or the prior take; None where the density is given no label."""

    def _compute_shapes(self) -> list[Shape]:
        """Shapes of each layer's input and of the last latent."""
        shapes = [self.shape]
        for name, layer in self.named_layers():
            try:
                shapes.append(tuple(layer.output_shape(shapes[-1])))
            except ValueError as error:
                raise ValueError(f"layer {name!r} cannot take a latent of shape {shapes[-1]}: {error}") from None
        return shapes

    def named_layers(self) -> Iterator[tuple[str, Layer]]:
        """The layers in order, with their names."""
        for name in self.names:
            layer = self.get_submodule(name)
            assert isinstance(layer, Layer)
            yield name, layer

    def _layers(self) -> list[Layer]:
        return [layer for _, layer in self.named_layers()]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Returns the last latent, [batch, ...], the sum of contributions, [batch], float64, and the tensors factored out.

        labels: as for `log_prob`; only layers that take labels need them.
        """
        return run_layers(with_labels(self._layers(), labels), x)

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(x), or log p(x | label) where the flow takes labels, in nats: [batch], float64.

        x: [batch, *shape], in the units that the flow was trained on. For uint8 images these are those of
            `pipeflow.data.dequantize`: a flow that pipeflow trained knows values in [-0.5, 0.5), not in [0, 1].
        labels: int64, [batch], from 0 to num_classes - 1, on the device of x.

        Raises ValueError where x has another shape or whole numbers, or labels are not those.
        """
        if x.shape[1:] != self.shape or not x.is_floating_point():
            raise ValueError(
                f"x is {x.dtype} of shape {list(x.shape)}: the flow takes floating-point images of shape [num, "
                f"{', '.join(map(str, self.shape))}]; uint8 images are made so by pipeflow.data.dequantize."
            )
        check_labels(labels, len(x), self.num_classes)
        latent, total, _ = self(x, labels)
        return total + self.prior.log_prob(latent, **labels_for(self.prior, labels)).double()

    @torch.no_grad()
    def inverse(self, latent: Tensor, taken_out: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """The images that `forward` maps to this latent and these tensors."""
        halves = list(taken_out)
        for layer in reversed(self._layers()):
            first = len(halves) - layer.num_taken_out
            latent = layer.inverse(latent, *halves[first:], **labels_for(layer, labels))
            del halves[first:]
        return latent

    @torch.no_grad()
    def sample(
        self,
        num: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        labels: Tensor | None = None,
    ) -> Tensor:
        """`num` images, [num, *shape], float32, not clamped. The noise is drawn on the CPU, the same for every device.

        labels: int64, [num], from 0 to num_classes - 1. Raises ValueError where they are not those, or are none's.
        """
        check_labels(labels, num, self.num_classes)
        device = next(self.parameters()).device
        labels = None if labels is None else labels.to(device)
        latent = self.prior.sample(num, generator, temperature, **labels_for(self.prior, labels)).to(device)
        return sample_layers(self._layers(), latent, generator, temperature, labels)

    @torch.no_grad()
    def initialize(self, x: Tensor, labels: Tensor | None = None) -> None:
        """Data-dependent initialisation of all layers on one batch. Layers that are initialised already do not change."""
        for layer in self._layers():
            given = labels_for(layer, labels)
            layer.initialize(x, **given)
            x = layer(x, **given)[0]
        self.prior.initialize(x, **labels_for(self.prior, labels))

    def layer_multiply_adds(self) -> list[int]:
        """Multiply-adds of one forward of one image through each layer."""
        return [layer.multiply_adds(shape) for layer, shape in zip(self._layers(), self.shapes)]

    def multiply_adds(self) -> int:
        """Multiply-adds of one forward of one image through the whole flow."""
        return sum(self.layer_multiply_adds())


def _check_nothing_is_shared(layers: Mapping[str, Layer]) -> None:
    """Raises ValueError where two layers have a parameter in common: each of two parts would train it by itself."""
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        for parameter in layer.parameters() if isinstance(layer, nn.Module) else ():
            owner = owners.setdefault(id(parameter), name)
            if owner != name:
                raise ValueError(f"layers {owner!r} and {name!r} share a parameter: give each layer its own")


def _register(root: nn.Module, name: str, layer: Layer) -> None:
    """Makes `layer` reachable as `root.a.b.c`, so that its parameters are called `a.b.c...` in the state dict."""
    *path, last = name.split(".")
    for key in path:
        if key not in root._modules:
            root.add_module(key, nn.Module())
        root = root.get_submodule(key)
        if isinstance(root, Layer):
            raise ValueError(f"layer {name!r} stands inside another layer of the flow")
    if not last or last in root._modules:
        raise ValueError(f"layer {name!r}: that name is empty or used twice")
    root.add_module(last, layer)
