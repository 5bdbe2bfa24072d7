"""Seconds that a worker takes for each layer of a flow: forward, backward, and the optimizer's update.

Without a measurement: two FLOPs for each multiply-add, a backward as much as two forwards, and nothing for the rest.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from pipeflow.errors import ConfigError
from pipeflow.flow import Flow
from pipeflow.plan.predict.machines import Machines, StepSeconds

RELATIVE_FLOPS = 2e12
"""FLOP/s where none are given: a second is the time of 1e12 multiply-adds."""


@dataclass(frozen=True)
class Curve:
    """Seconds as a function of the images in a batch: straight lines through what was measured."""

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, num_images: float) -> float:
        """Seconds for this many images, never below 0; proportional to them where one size was measured."""
        if len(self.sizes) == 1:
            return self.seconds[0] * num_images / self.sizes[0]
        right = min(max(1, bisect_left(self.sizes, num_images)), len(self.sizes) - 1)
        (x0, x1), (y0, y1) = self.sizes[right - 1 : right + 1], self.seconds[right - 1 : right + 1]
        return max(0.0, y0 + (y1 - y0) * (num_images - x0) / (x1 - x0))


@dataclass(frozen=True)
class LayerWork:
    """Seconds of one layer: its share of the curves of a run of layers."""

    curves: tuple[Curve, Curve]
    """Forward, and forward with backward, of the measured run of layers."""
    share: float
    """This layer's share of the run's seconds."""
    update: float
    recomputed: int = 0
    """Forwards, or inverses, that a backward computes on its way."""

    def forward(self, num_images: float) -> float:
        """Seconds for this many images."""
        return self.share * self.curves[0].at(num_images)

    def backward(self, num_images: float) -> float:
        """Seconds for this many images, beside the forward."""
        forward = self.forward(num_images)
        return max(0.0, self.share * self.curves[1].at(num_images) - forward) + forward * self.recomputed


@dataclass(frozen=True)
class Work:
    """Seconds of several layers."""

    layers: Sequence[LayerWork]

    def forward(self, num_images: float) -> float:
        """Seconds of a forward of this many images."""
        return sum(layer.forward(num_images) for layer in self.layers)

    def backward(self, num_images: float) -> float:
        """Seconds of a backward."""
        return sum(layer.backward(num_images) for layer in self.layers)

    @property
    def update(self) -> float:
        """Seconds of an update."""
        return sum(layer.update for layer in self.layers)


RECOMPUTED = {"keep": 0, "recompute": 1, "invert": 2}
"""Forwards and inverses that a backward computes, by `memory.activations`."""


def layer_work(flow: Flow, machines: Machines, activations: str = "keep") -> dict[str, LayerWork]:
    """The work of each layer, by name; `activations` as for `Part`.

    Raises ConfigError where step times are of layers that this flow does not have, or its multiply-adds tell no time.
    """
    macs = dict(zip(flow.names, flow.layer_multiply_adds()))
    if machines.step_seconds is None:
        if not any(macs.values()):
            raise ConfigError(
                "this flow has no matrix products or convolutions, so its time cannot be told from multiply-adds: measure "
                "it with --probe, or give its layers a method multiply_adds(self, shape)."
            )
        flops = machines.flops or RELATIVE_FLOPS
        forward = {name: 2 * count / flops for name, count in macs.items()}
        return {
            name: LayerWork((Curve((1,), (each,)), Curve((1,), (3 * each,))), 1.0, 0.0, RECOMPUTED[activations])
            for name, each in forward.items()
        }
    return _measured(flow, macs, machines.step_seconds, RECOMPUTED[activations])


def _measured(flow: Flow, macs: dict[str, int], measured: StepSeconds, recomputed: int) -> dict[str, LayerWork]:
    starts = list(measured.train)
    unknown = [name for name in starts if name not in flow.names]
    if unknown or starts[0] != flow.names[0] or starts != sorted(starts, key=flow.names.index):
        wrong = f"there is no layer {unknown[0]!r}" if unknown else f"they begin at {starts[0]!r} or are out of order"
        raise ConfigError(
            f"step_seconds.train: {wrong} in this configuration's flow, which goes from {flow.names[0]!r} to "
            f"{flow.names[-1]!r}: times must be of the same model, measure them with --probe."
        )
    if measured.multiply_adds not in (None, sum(macs.values())):
        raise ConfigError(
            f"step_seconds.multiply_adds: the times are of a flow with {measured.multiply_adds:,} multiply-adds an image, "
            f"this one has {sum(macs.values()):,}: measure it with --probe."
        )
    parameters = {
        name: sum(parameter.numel() for parameter in layer.parameters()) for name, layer in flow.named_layers()
    }
    all_parameters = max(1, sum(parameters.values()))
    bounds = [*(flow.names.index(name) for name in starts), len(flow.names)]
    work = {}
    for start, first, last in zip(starts, bounds, bounds[1:]):
        train = Curve(measured.batch_size, measured.train[start])
        third = tuple(seconds / 3 for seconds in train.seconds)
        forward = Curve(measured.batch_size, measured.forward[start] if measured.forward is not None else third)
        names = flow.names[first:last]
        whole = sum(macs[name] for name in names)
        for name in names:
            share = macs[name] / whole if whole else 1 / len(names)
            update = measured.update * parameters[name] / all_parameters
            work[name] = LayerWork((forward, train), share, update, recomputed)
    return work
