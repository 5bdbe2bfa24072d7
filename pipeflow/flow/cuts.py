"""Where a flow is cut into parts.

    layers   squeeze steps.0 steps.1 | steps.2 steps.3 factor_out squeeze ... | ...
    parts    ------- part 0 -------- | ------------- part 1 --------------- | part 2
    priors                     head 0                                  head 1   the flow's own top prior

A cut is written as the name of the layer it falls before, and the head of the part in front of it bears that name too.
"""

import difflib
import re
from bisect import bisect_left
from collections.abc import Sequence

from pipeflow.config import Config
from pipeflow.errors import ConfigError
from pipeflow.flow.balance import balance
from pipeflow.flow.flow import Flow
from pipeflow.flow.heads import HeadMaker, local_heads
from pipeflow.flow.layers import Layer
from pipeflow.flow.part import Part
from pipeflow.flow.priors import GaussianPrior, NoHead, Prior
from pipeflow.units import count_text


def split_flow(
    flow: Flow, cuts: Sequence[str], head: HeadMaker | None = GaussianPrior, activations: str = "keep"
) -> list[Part]:
    """The flow's parts, cut before each of the named layers; without cuts, one part that is the whole flow.

    head: makes the heads, see `head_maker`; None for parts that train together, of which the last has the flow's prior.
    activations: see `Part`.

    Raises ConfigError for a cut that cannot be made.
    """
    _check_cuts(flow, cuts)
    bounds = [0, *(flow.names.index(cut) for cut in cuts), len(flow.names)]

    def make_head(index: int, last: int) -> Prior | None:
        if index == len(cuts):
            return None
        return NoHead() if head is None else head(flow.shapes[last])

    return [
        Part(flow, index, first, last, make_head(index, last), activations)
        for index, (first, last) in enumerate(zip(bounds, bounds[1:]))
    ]


def configured_cuts(flow: Flow, config: Config, costs: Sequence[float] | None = None) -> list[str]:
    """The cuts that `parts` asks for, fewer where a balanced split names no number and the flow is too short.

    A run that trains the whole flow alone needs none, and does without those that cannot be made.

    costs: see `cut_names`.

    Raises ConfigError as `cut_names` does.
    """
    split, num = config.parts.split, config.num_parts
    if split == "balanced" and config.parts.num is None and num is not None:
        num = min(num, len(possible_starts(flow)))
    try:
        head = local_heads(config)
        return cut_names(flow, split, num, costs, head, head is not None and runs_twice(config))
    except ConfigError:
        if config.needs_parts:
            raise
        return []


def runs_twice(config: Config) -> bool:
    """Whether a part in front runs with averaged weights too on a batch that trains it: where all train at once."""
    return config.parts.latents == "averaged" and config.schedule.mode not in ("alternate", "sequential")


def cut_names(
    flow: Flow,
    split: str | Sequence[str],
    num: int | None = None,
    costs: Sequence[float] | None = None,
    head: HeadMaker | None = None,
    is_averaged: bool = False,
) -> list[str]:
    """The cuts of a kind of split (`blocks`, `across`, `balanced`) into `num` parts, or a list of names, checked.

    costs: cost of each layer, which `balanced` evens out; multiply-adds if None.
    head: makes the parts' heads, whose multiply-adds count with the layers'; each is as dear as one of the layers'. None:
        of parts without heads, or whose heads have none.
    is_averaged: whether averaged weights make the latents, in another forward of each part but the last, where all train.

    Raises ConfigError saying which cut cannot be made and why.
    """
    if split == "blocks":
        cuts = [names[0] for names in _blocks(flow)[1:]]
    elif split == "across":
        cuts = _across_blocks(flow, _number(split, num))
    elif split == "balanced":
        cuts = _balanced(flow, _number(split, num), costs, head, is_averaged)
    else:
        cuts = [split] if isinstance(split, str) else list(split)
    _check_cuts(flow, cuts)
    if num is not None and len(cuts) != num - 1:
        raise ConfigError(
            f"parts.num: {num} does not agree with parts.split, which gives {count_text(len(cuts) + 1, 'part')}: set "
            f"parts.num to {len(cuts) + 1} or null."
        )
    return cuts


def _number(split: str, num: int | None) -> int:
    if num is None:
        raise ConfigError(f"parts.num: a split {split!r} needs the number of parts, such as 3.")
    return num


def _blocks(flow: Flow) -> list[list[str]]:
    """Names of the layers of each block, for layers called `blocks.B.*`."""
    blocks: dict[str, list[str]] = {}
    for name in flow.names:
        match = re.match(r"(blocks\.\d+)\.", name)
        if match is None:
            raise ConfigError(
                f"parts.split: 'blocks' and 'across' need layers called blocks.B.*, this flow has {name!r}: set "
                f"parts.split to balanced, or to names of layers to cut before."
            )
        blocks.setdefault(match[1], []).append(name)
    return list(blocks.values())


def _across_blocks(flow: Flow, num: int) -> list[str]:
    """Cut i falls in the middle of block i, before step `num_steps // 2`."""
    blocks = _blocks(flow)
    if num - 1 > len(blocks):
        raise ConfigError(
            f"parts.num: {num} parts across blocks need {num - 1} blocks to cut in, this flow has {len(blocks)}: set "
            f"parts.num to {len(blocks) + 1} or less."
        )
    steps = [[name for name in names if ".steps." in name] for names in blocks[: num - 1]]
    cuts = [names[len(names) // 2] for names in steps if len(names) > 1]
    if len(cuts) < num - 1:
        raise ConfigError(
            "parts.split: 'across' cuts between two of a block's layers blocks.B.steps.S, and some block has fewer: set "
            "parts.split to balanced, or to names of layers to cut before."
        )
    return cuts


def _balanced(
    flow: Flow, num: int, costs: Sequence[float] | None, head: HeadMaker | None, is_averaged: bool
) -> list[str]:
    """The cuts that make the most expensive part as cheap as possible."""
    macs, starts = flow.layer_multiply_adds(), possible_starts(flow)
    costs = macs if costs is None else costs
    cost_of_one = sum(costs) / sum(macs) if any(macs) else 0  # where no layer has any, no time tells what one costs
    heads = [0 if head is None else head(flow.shapes[start]).multiply_adds() * cost_of_one for start in starts[1:]]
    if num > len(starts):
        raise ConfigError(
            f"parts.num: {num} parts, but this flow can be cut into {len(starts)} at most: set it to that."
        )
    groups = [sum(costs[first:last]) for first, last in zip(starts, [*starts[1:], len(costs)])]
    # A backward is two forwards, as all counts of multiply-adds have it, and parts in front make a fourth one.
    share_of_last = 3 / 4 if is_averaged else 1
    return [flow.names[starts[group]] for group in balance(groups, num, [*heads, 0], share_of_last)[1:]]


def possible_starts(flow: Flow) -> list[int]:
    """Indices of the layers that a part may begin with."""
    layers = list(flow.named_layers())
    return [0, *(index for index in range(len(layers)) if _obstacle(layers, index) is None)]


def _obstacle(layers: Sequence[tuple[str, Layer]], index: int) -> str | None:
    """Reason why no cut may fall before layer `index`; None if one may."""
    if index == 0:
        return "nothing stands before it, the part would be empty"
    (before_name, before), (name, layer) = layers[index - 1 : index + 1]
    if before.stays_with_next:
        return f"{before_name!r} belongs to the layer behind it"
    if layer.stays_with_previous:
        return f"{name!r} belongs to the layer before it"
    return None


def _instead(flow: Flow, index: int) -> str:
    """Where a flow may be cut that cannot be cut before layer `index`: the nearest places, one on each side."""
    possible = possible_starts(flow)[1:]
    behind = bisect_left(possible, index)
    nearest = [*possible[:behind][-1:], *possible[behind:][:1]]
    if not nearest:
        return "this flow cannot be cut at all: set parts.num to 1 and parts.split to balanced"
    return f"cut before {' or '.join(repr(flow.names[other]) for other in nearest)}"


def _check_cuts(flow: Flow, cuts: Sequence[str]) -> None:
    layers, last = list(flow.named_layers()), 0
    for cut in cuts:
        if cut not in flow.names:
            close = difflib.get_close_matches(cut, flow.names, n=3)
            near = f"near it are {', '.join(close)}" if close else f"they are {flow.names[0]} to {flow.names[-1]}"
            raise ConfigError(f"parts.split: cannot cut before {cut!r}: there is no such layer; {near}.")
        index = flow.names.index(cut)
        obstacle = _obstacle(layers, index)
        if obstacle is not None:
            raise ConfigError(f"parts.split: cannot cut before {cut!r}: {obstacle}; {_instead(flow, index)}.")
        if index <= last:
            raise ConfigError(f"parts.split: cannot cut before {cut!r} again or behind a later cut: go in layer order.")
        last = index
