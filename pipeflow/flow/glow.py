"""Glow as one flat list of layers with global names, and the flow that a configuration asks for."""

import torch

from pipeflow.config import Config
from pipeflow.errors import ConfigError
from pipeflow.flow.coupling import Coupling, FlowStep
from pipeflow.flow.flow import Flow
from pipeflow.flow.layers import ActNorm, FactorOut, InvertibleConv1x1, Layer, Shape, Squeeze
from pipeflow.user_function import load_function


def glow(
    shape: Shape,
    num_blocks: int = 3,
    num_steps: int = 32,
    width: int = 512,
    coupling: str = "affine",
    invconv: str = "lu",
    net_dtype: torch.dtype = torch.float32,
    fold: bool = False,
) -> Flow:
    """Glow for images of this shape, (channels, height, width); the defaults are the published CIFAR-10 model.

    fold: as of `FlowStep`, with the coupling nets folded too.
    Layers are `blocks.B.squeeze`, `blocks.B.steps.S` and, but in the last block, `blocks.B.factor_out`.
    Raises ValueError where height or width cannot be halved `num_blocks` times.
    """
    layers: dict[str, Layer] = {}
    channels = shape[0]
    for block in range(num_blocks):
        channels *= 4
        layers[f"blocks.{block}.squeeze"] = Squeeze()
        for step in range(num_steps):
            layers[f"blocks.{block}.steps.{step}"] = FlowStep(
                ActNorm(channels),
                InvertibleConv1x1(channels, invconv),
                Coupling(channels, width, coupling, net_dtype, fold),
                fold,
            )
        if block < num_blocks - 1:
            layers[f"blocks.{block}.factor_out"] = FactorOut(channels)
            channels //= 2
    return Flow(layers, shape)


def build_flow(config: Config, shape: Shape) -> Flow:
    """The flow of a configuration, with initial values that derive from `run.seed` alone.

    `model.name: module:function` calls `function(config, shape)`, which returns a Flow or a list of layers.
    Raises ConfigError where the images do not fit the model or the function does not give a flow.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.run.seed)  # torch.manual_seed would reseed the GPUs too
        if config.model.name == "glow":
            return _build_glow(config, shape)
        function = load_function("model.name", config.model.name)
        flow = function(config, shape)
        if isinstance(flow, list | tuple | dict):
            try:
                flow = Flow(flow, shape)
            except ValueError as error:
                raise ConfigError(f"model.name: {config.model.name}: {error}.") from None
        if not isinstance(flow, Flow):
            raise ConfigError(
                f"model.name: {config.model.name} returned a {type(flow).__name__}: return a list of layers or a Flow."
            )
        if flow.shape != tuple(shape):
            raise ConfigError(
                f"model.name: {config.model.name} returned a flow for images of shape {flow.shape}, "
                f"but the data has {tuple(shape)}."
            )
        return flow


def _build_glow(config: Config, shape: Shape) -> Flow:
    model = config.model
    if len(shape) != 3 or shape[1] % 2**model.num_blocks or shape[2] % 2**model.num_blocks:
        size = "x".join(map(str, shape[1:]))
        raise ConfigError(
            f"model.num_blocks: {model.num_blocks} blocks squeeze an image {model.num_blocks} times, which images of "
            f"{size} pixels cannot be: height and width must be multiples of {2**model.num_blocks}. "
            f"Use fewer blocks or other images."
        )
    net_dtype = torch.bfloat16 if config.precision.coupling == "bfloat16" else torch.float32
    fold = config.precision.step == "fast"
    flow = glow(shape, model.num_blocks, model.num_steps, model.width, model.coupling, model.invconv, net_dtype, fold)
    if config.precision.compile:
        _compile_steps(flow)
    return flow


def _compile_steps(flow: Flow) -> None:
    """Each flow step by itself: those of a block share their code, which is compiled once and not for every step."""
    # One for each block, with and without gradients, and for a last smaller batch: torch gives up after 8.
    torch._dynamo.config.recompile_limit = 64
    for _, layer in flow.named_layers():
        if isinstance(layer, FlowStep):
            layer.compile(dynamic=False)
