"""The options of the flow and of the parts that it is cut into."""

import os
from dataclasses import dataclass
from typing import Literal

from pipeflow.config.option import option

NUM_PARTS = 3
"""Parts of a split that gives no number of its own."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The flow."""

    name: str = option(
        "glow",
        "kind of flow",
        {
            "glow": "Glow, as the options below say",
            "module:function": "your function(config, shape), which returns layers",
        },
    )
    # Beyond these sizes there is only a slip of the finger: the published flow has 3, 32 and 512.
    num_blocks: int = option(3, "blocks: squeeze, flow steps, factor-out", at_least=1, at_most=16)
    num_steps: int = option(2, "flow steps in each block", at_least=1, at_most=1024)
    width: int = option(32, "channels inside the coupling nets", at_least=1, at_most=16_384)
    coupling: Literal["affine", "additive"] = option(
        "affine", "kind of coupling", {"affine": "scale and shift", "additive": "shift only"}
    )
    invconv: Literal["lu", "plain"] = option(
        "lu",
        "form of the invertible 1x1 convolution",
        {"lu": "its LU factors, whose log-determinant is a sum", "plain": "the matrix itself"},
    )
    num_classes: int | None = option(
        None,
        "number of classes, if the top prior is to depend on the image's label (null: labels are not used)",
        at_least=1,
        at_most=100_000,
    )
    init: str | None = option(
        None,
        "trained flow whose parameters a new run starts from: a run folder, a checkpoint in it, or a model.safetensors "
        "(null: random ones)",
    )

    def __post_init__(self) -> None:
        if self.init is not None:
            object.__setattr__(self, "init", os.path.expanduser(self.init))


@dataclass(frozen=True, kw_only=True)
class PartsConfig:
    """The parts that the flow is cut into."""

    split: str | tuple[str, ...] = option(
        "across",
        "where to cut",
        {
            "across": "in the middle of each of the first blocks",
            "blocks": "between the blocks",
            "balanced": "so that the slowest part is as fast as possible",
            "a,b": "before the layers of these names, which `pipeflow plan` shows",
        },
    )
    num: int | None = option(
        None,
        f"number of parts (null: what blocks or names give; {NUM_PARTS} for across and balanced, fewer in a small flow)",
        at_least=1,
        at_most=16_384,
    )
    balance: Literal["macs", "time"] = option(
        "macs",
        "what a balanced split makes equal",
        {"macs": "multiply-adds", "time": "seconds of the layers, measured before the run"},
    )
    head: Literal["gaussian", "standard", "autoregressive"] = option(
        "gaussian",
        "local prior of a part that is not the last",
        {
            "gaussian": "normal, with a learned mean and scale for each channel",
            "standard": "standard normal",
            "autoregressive": "normal for each value given those before it, by masked convolutions",
        },
    )
    head_width: int = option(
        64, "autoregressive: channels of its hidden layers, if head_depth has any", at_least=1, at_most=16_384
    )
    head_depth: int = option(0, "autoregressive: hidden layers (0: a linear map)", at_least=0, at_most=64)
    latents: Literal["trained", "averaged"] = option(
        "trained",
        "weights that make the latents which a part hands on",
        {
            "trained": "those that it trains",
            "averaged": "their average (optim.ema), for another forward: parts behind learn on what moves less",
        },
    )
    replicas: int = option(1, "workers on each part, which share its batches", at_least=1, at_most=16_384)

    def __post_init__(self) -> None:
        if isinstance(self.split, str) and "." in self.split:  # one cut, written as a name by itself
            object.__setattr__(self, "split", (self.split,))
