"""Glow as a list of layers with global names, and the flow that a configuration describes."""

from collections.abc import Callable

import torch

from pipeflow.config import Config
from pipeflow.errors import ConfigError
from pipeflow.flow.coupling import Coupling, FlowStep
from pipeflow.flow.flow import Flow
from pipeflow.flow.layers import ActNorm, FactorOut, InvertibleConv1x1, Layer, Shape, Squeeze
from pipeflow.flow.priors import ClassPrior
from pipeflow.user_function import load_function, needs_no_arguments


def glow(
    shape: Shape,
    num_blocks: int = 3,
    num_steps: int = 32,
    width: int = 512,
    coupling: str = "affine",
    invconv: str = "lu",
    net_dtype: torch.dtype = torch.float32,
    fold: bool = False,
    num_classes: int | None = None,
) -> Flow:
    """Glow (Kingma and Dhariwal, 2018) for images of a shape (channels, height, width).

    The defaults are the published CIFAR-10 model. The layers are called `blocks.B.squeeze`, `blocks.B.steps.S` and, except
    in the last block, `blocks.B.factor_out`.

    width: channels of the hidden layers of the coupling nets.
    coupling: `affine` or `additive`, see `Coupling`.
    invconv: `lu` or `plain`, see `InvertibleConv1x1`.
    net_dtype: type that the coupling nets compute in; everything else is float32.
    fold: makes flow steps and coupling nets compute ActNorms as parts of their convolutions.
    num_classes: makes the top prior depend on the image's label, see `ClassPrior`; None: on nothing.

    Raises ValueError if height or width cannot be halved `num_blocks` times.
    """
    layers: dict[str, Layer] = {}
    channels = shape[0]
    for block in range(num_blocks):
        channels *= 4
        layers[f"blocks.{block}.squeeze"] = Squeeze()
        for step in range(num_steps):
            actnorm, mixing = ActNorm(channels), InvertibleConv1x1(channels, invconv)
            last = Coupling(channels, width, coupling, net_dtype, fold)
            layers[f"blocks.{block}.steps.{step}"] = FlowStep(actnorm, mixing, last, fold)
        if block < num_blocks - 1:
            layers[f"blocks.{block}.factor_out"] = FactorOut(channels)
            channels //= 2
    last_shape = (channels, shape[1] >> num_blocks, shape[2] >> num_blocks)
    return Flow(layers, shape, None if num_classes is None else ClassPrior(last_shape, num_classes))


def build_flow(config: Config, shape: Shape, function: Callable[..., object] | None = None) -> Flow:
    """The flow of a configuration, for images of a shape; its initial values depend on `run.seed` alone.

    `model.name: module:function` calls `function(config, shape)`, which returns a Flow or its layers.

    function: takes the place of the one that `model.name` names; it may also be one that needs no arguments.

    Raises ConfigError if the images do not fit the model or the function does not return a flow.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.run.seed)  # torch.manual_seed would also reseed the GPUs
        if function is None and config.model.name == "glow":
            return _build_glow(config, shape)
        if function is None:
            where = f"model.name: {config.model.name}"
            flow = load_function("model.name", config.model.name)(config, shape)
        else:
            where = f"flow: {getattr(function, '__name__', 'the function')}"
            flow = function() if needs_no_arguments(function) else function(config, shape)
        if isinstance(flow, list | tuple | dict):
            try:
                flow = Flow(flow, shape)
            except ValueError as error:
                raise ConfigError(f"{where}: {error}.") from None
        if not isinstance(flow, Flow):
            raise ConfigError(f"{where} returned a {type(flow).__name__}: return a list of layers or a Flow.")
        if flow.shape != tuple(shape):
            raise ConfigError(f"{where} returned a flow for images of shape {flow.shape}, but the data has {shape}.")
        check_num_classes(config, flow)
        return flow


def check_num_classes(config: Config, flow: Flow) -> None:
    """Raises ConfigError where a flow of one's own does not take the labels that `model.num_classes` asks for."""
    asked = config.model.num_classes
    if asked not in (None, flow.num_classes):
        takes = "no labels" if flow.num_classes is None else f"labels of {flow.num_classes} classes"
        raise ConfigError(
            f"model.num_classes: {asked}, but the flow takes {takes}: set it to null or {flow.num_classes or 'null'}, or "
            f"give the flow a prior or layers with that num_classes, such as pipeflow.flow.ClassPrior."
        )


def _build_glow(config: Config, shape: Shape) -> Flow:
    model = config.model
    multiple = 2**model.num_blocks
    if len(shape) != 3:
        raise ConfigError(
            f"model.name: glow takes images of [channels, height, width], but an item of the data has the shape "
            f"{list(shape)}: set model.name to a flow for them, or give grey images a channel, as images[:, None]."
        )
    if shape[1] % multiple or shape[2] % multiple:
        size = "x".join(map(str, shape[1:]))
        raise ConfigError(
            f"model.num_blocks: {model.num_blocks} blocks need height and width that are multiples of {multiple}, which "
            f"images of {size} pixels do not have: set data.pad to {multiple}, use fewer blocks, or other images."
        )
    net_dtype = torch.bfloat16 if config.precision.coupling == "bfloat16" else torch.float32
    fold = config.precision.step == "fast"
    sizes = model.num_blocks, model.num_steps, model.width
    flow = glow(shape, *sizes, model.coupling, model.invconv, net_dtype, fold, model.num_classes)
    if config.precision.compile:
        # Each block is compiled with and without gradients, and again for a smaller last batch. By default torch stops
        # compiling after 8 variants.
        torch._dynamo.config.recompile_limit = 64
        for _, layer in flow.named_layers():
            if isinstance(layer, FlowStep):
                layer.compile(dynamic=False)  # by itself, so that the steps of a block share one compilation
    return flow
