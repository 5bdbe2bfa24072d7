"""Where a flow is cut into parts.

    layers   squeeze steps.0 steps.1 | steps.2 steps.3 factor_out squeeze ... | ...
    parts    ------- part 0 -------- | ------------- part 1 --------------- | part 2
    priors                     head 0                                  head 1   the flow's own top prior

A cut is written as the name of the layer it falls before, and the head of the part in front of it bears that name too.
"""

import difflib
import re
from collections.abc import Sequence

from pipeflow.errors import ConfigError
from pipeflow.flow.balance import balance
from pipeflow.flow.flow import Flow
from pipeflow.flow.heads import HEADS
from pipeflow.flow.part import Part


def split_flow(flow: Flow, cuts: Sequence[str], head: str = "gaussian", activations: str = "keep") -> list[Part]:
    """The flow's parts, cut before each of the named layers; without cuts, one part that is the whole flow.

    head: kind of the heads, see `HEADS`.
    activations: see `Part`.

    Raises ConfigError for a cut that cannot be made.
    """
    _check_cuts(flow, cuts)
    bounds = [0, *(flow.names.index(cut) for cut in cuts), len(flow.names)]
    return [
        Part(flow, index, first, last, None if index == len(cuts) else HEADS[head](flow.shapes[last]), activations)
        for index, (first, last) in enumerate(zip(bounds, bounds[1:]))
    ]


def cut_names(
    flow: Flow, split: str | Sequence[str], num: int | None = None, costs: Sequence[float] | None = None
) -> list[str]:
    """The cuts of a kind of split (`blocks`, `across`, `balanced`) into `num` parts, or a list of names, checked.

    costs: cost of each layer, which `balanced` evens out; multiply-adds if None.

    Raises ConfigError saying which cut cannot be made and why.
    """
    if split == "blocks":
        cuts = [names[0] for names in _blocks(flow)[1:]]
    elif split == "across":
        cuts = _across_blocks(flow, num or 1)
    elif split == "balanced":
        cuts = _balanced(flow, num or 1, flow.layer_multiply_adds() if costs is None else costs)
    else:
        cuts = [split] if isinstance(split, str) else list(split)
    _check_cuts(flow, cuts)
    if num is not None and len(cuts) != num - 1:
        raise ConfigError(f"parts.num: {num} does not agree with parts.split, which gives {len(cuts) + 1} parts.")
    return cuts


def _blocks(flow: Flow) -> list[list[str]]:
    """Names of the layers of each block, for layers called `blocks.B.*`."""
    blocks: dict[str, list[str]] = {}
    for name in flow.names:
        match = re.match(r"(blocks\.\d+)\.", name)
        if match is None:
            raise ConfigError(
                f"parts.split: 'blocks' and 'across' need layers called blocks.B.*, this flow has {name!r}: "
                f"use 'balanced' or names of layers."
            )
        blocks.setdefault(match[1], []).append(name)
    return list(blocks.values())


def _across_blocks(flow: Flow, num: int) -> list[str]:
    """Cut i falls in the middle of block i, before step `num_steps // 2`."""
    blocks = _blocks(flow)
    if num - 1 > len(blocks):
        raise ConfigError(
            f"parts.num: {num} parts across blocks need {num - 1} blocks to cut in, this flow has {len(blocks)}."
        )
    steps = [[name for name in names if ".steps." in name] for names in blocks[: num - 1]]
    if not all(steps):
        raise ConfigError("parts.split: 'across' needs layers called blocks.B.steps.S: use 'balanced' or layer names.")
    return [names[len(names) // 2] for names in steps]


def _balanced(flow: Flow, num: int, costs: Sequence[float]) -> list[str]:
    """The cuts that make the most expensive part as cheap as possible."""
    starts = [0, *(index for index in range(len(flow.names)) if _obstacle(flow, index) is None)]
    if num > len(starts):
        raise ConfigError(f"parts.num: {num} parts, but this flow can be cut into {len(starts)} at most.")
    groups = [sum(costs[first:last]) for first, last in zip(starts, [*starts[1:], len(costs)])]
    return [flow.names[starts[group]] for group in balance(groups, num)[1:]]


def _obstacle(flow: Flow, index: int) -> str | None:
    """Reason why no cut may fall before layer `index`; None if one may."""
    if index == 0:
        return "nothing stands before it, the part would be empty"
    layers = list(flow.named_layers())
    (before_name, before), (name, layer) = layers[index - 1 : index + 1]
    if before.stays_with_next:
        return f"{before_name!r} belongs to the layer behind it, cut before {before_name!r}"
    if layer.stays_with_previous:
        behind = f", cut before {layers[index + 1][0]!r}" if index + 1 < len(layers) else ""
        return f"{name!r} belongs to the layer before it{behind}"
    return None


def _check_cuts(flow: Flow, cuts: Sequence[str]) -> None:
    last = 0
    for cut in cuts:
        if cut not in flow.names:
            close = difflib.get_close_matches(cut, flow.names, n=3)
            near = f"near it are {', '.join(close)}" if close else f"they are {flow.names[0]} to {flow.names[-1]}"
            raise ConfigError(f"parts.split: cannot cut before {cut!r}: there is no such layer; {near}.")
        index = flow.names.index(cut)
        obstacle = _obstacle(flow, index)
        if obstacle is not None:
            raise ConfigError(f"parts.split: cannot cut before {cut!r}: {obstacle}.")
        if index <= last:
            raise ConfigError(f"parts.split: cannot cut before {cut!r} again or behind a later cut: go in layer order.")
        last = index
