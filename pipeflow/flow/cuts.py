"""Parts: where to cut a flow, what a part is trained on, and what it costs.

    layers   squeeze steps.0 steps.1 | steps.2 steps.3 factor_out squeeze ... | ...
    parts    ------- part 0 -------- | ------------- part 1 --------------- | part 2
    priors                     head 0                                  head 1   the flow's own top prior

A cut is written as the name of the layer it falls before, and the head of the part in front of it bears that name too.
"""

import difflib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from pipeflow.errors import ConfigError
from pipeflow.flow.costs import multiply_adds
from pipeflow.flow.flow import Flow
from pipeflow.flow.heads import PRIORS
from pipeflow.flow.part import Part


def split_flow(flow: Flow, cuts: Sequence[str], head: str = "gaussian", activations: str = "keep") -> list[Part]:
    """The flow's parts, cut before each of the named layers; no cuts give one part, the whole flow.

    activations: as of `Part`.

    Raises ConfigError for a cut that cannot be made.
    """
    _check_cuts(flow, cuts)
    bounds = [0, *(flow.names.index(cut) for cut in cuts), len(flow.names)]
    parts = []
    for index, (first, last) in enumerate(zip(bounds, bounds[1:])):
        is_last = last == len(flow.names)
        prior = None if is_last else PRIORS[head](flow.shapes[last])
        parts.append(Part(flow, index, first, last, prior, activations))
    return parts


def cut_names(
    flow: Flow, split: str | Sequence[str], num: int | None = None, costs: Sequence[float] | None = None
) -> list[str]:
    """The cuts of a kind of split (`blocks`, `across`, `balanced`) into `num` parts, or a list of names, checked.

    costs: of each layer, which `balanced` evens out; None: multiply-adds.

    Raises ConfigError saying which cut cannot be made and why.
    """
    if split == "blocks":
        cuts = _between_blocks(flow)
    elif split == "across":
        cuts = _across_blocks(flow, num or 1)
    elif split == "balanced":
        cuts = _balanced(flow, num or 1, multiply_adds(flow) if costs is None else costs)
    else:
        cuts = [split] if isinstance(split, str) else list(split)
    _check_cuts(flow, cuts)
    if num is not None and len(cuts) != num - 1:
        raise ConfigError(f"parts.num: {num} does not agree with parts.split, which gives {len(cuts) + 1} parts.")
    return cuts


def balance(costs: Sequence[float], num: int) -> list[int]:
    """First index of each of `num` runs of consecutive items whose most expensive run is as cheap as can be.

    Of several such ways, the one with the smallest sum of squared costs. E.g. `balance([3, 1, 1, 1], 2) == [0, 1]`.
    """
    total = [0]
    for cost in costs:
        total.append(total[-1] + cost)
    largest = _least_largest(total, num)
    # ways[end]: the least sum of squares of the runs so far, which end there, and where the last of them begins.
    ways: dict[int, tuple[float, int]] = {0: (0, 0)}
    by_run = []
    for run in range(num):
        longer: dict[int, tuple[float, int]] = {}
        for first, (value, _) in ways.items():
            for end in range(first + 1, len(costs) - (num - run - 1) + 1):
                cost = total[end] - total[first]
                if cost > largest:
                    break
                candidate = value + cost * cost
                if end not in longer or candidate < longer[end][0]:
                    longer[end] = (candidate, first)
        by_run.append(longer)
        ways = longer
    end, starts = len(costs), []
    for ways in reversed(by_run):
        end = ways[end][1]
        starts.append(end)
    return starts[::-1]


def _least_largest(total: Sequence[float], num: int) -> float:
    """Cost of the most expensive of `num` runs at best, by bisection; total: costs of the items before each."""
    candidates = sorted({last - first for index, first in enumerate(total) for last in total[index + 1 :]})

    def is_enough(bound: float) -> bool:
        """Whether runs that are filled up to the bound are no more than `num`: then there are `num` of them."""
        start = 0
        for _ in range(num):
            start = bisect_right(total, bound, lo=start + 1, key=lambda until, before=total[start]: until - before) - 1
            if start == len(total) - 1:
                return True
        return False

    return candidates[bisect_left(candidates, True, key=is_enough)]


def _blocks(flow: Flow) -> dict[str, list[str]]:
    """Names of layers by block, for layers called `blocks.B.*`."""
    blocks: dict[str, list[str]] = {}
    for name in flow.names:
        match = re.match(r"(blocks\.\d+)\.", name)
        if match is None:
            raise ConfigError(
                f"parts.split: 'blocks' and 'across' need layers called blocks.B.*, this flow has {name!r}: "
                f"use 'balanced' or names of layers."
            )
        blocks.setdefault(match[1], []).append(name)
    return blocks


def _between_blocks(flow: Flow) -> list[str]:
    return [names[0] for names in _blocks(flow).values()][1:]


def _across_blocks(flow: Flow, num: int) -> list[str]:
    """Cut i in the middle of block i, before step `num_steps // 2`."""
    blocks = list(_blocks(flow).values())
    if num - 1 > len(blocks):
        raise ConfigError(
            f"parts.num: {num} parts across blocks need {num - 1} blocks to cut in, this flow has {len(blocks)}."
        )
    steps = [[name for name in names if ".steps." in name] for names in blocks[: num - 1]]
    if not all(steps):
        raise ConfigError("parts.split: 'across' needs layers called blocks.B.steps.S: use 'balanced' or layer names.")
    return [names[len(names) // 2] for names in steps]


def _balanced(flow: Flow, num: int, costs: Sequence[float]) -> list[str]:
    starts = [index for index in range(len(flow.names)) if _obstacle(flow, index) is None]
    starts = [0, *starts]
    if num > len(starts):
        raise ConfigError(f"parts.num: {num} parts, but this flow can be cut into {len(starts)} at most.")
    groups = [sum(costs[first:last]) for first, last in zip(starts, [*starts[1:], len(costs)])]
    return [flow.names[starts[group]] for group in balance(groups, num)[1:]]


def _obstacle(flow: Flow, index: int) -> str | None:
    """Why no cut may fall before this layer, None where it may."""
    layers = list(flow.named_layers())
    name, layer = layers[index]
    if index == 0:
        return "nothing stands before it, the part would be empty"
    before_name, before = layers[index - 1]
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
