"""The ways to cut a flow that are predicted: the configured one, by blocks, across blocks, and balanced."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeflow.flow import Part, cut_names, head_maker, split_flow
from pipeflow.flow.cuts import possible_starts, runs_twice
from pipeflow.plan.plan import Plan
from pipeflow.plan.without_memory import build_without_memory

_NUMBERS_OF_PARTS = (2, 3, 4, 8, 16, 32, 64, 128, 256)
"""Balanced cuts that are tried, beside one for each worker."""


@dataclass(frozen=True)
class Cut:
    """A way to cut the flow, with a worker for each part where there are enough."""

    name: str
    parts: list[Part]

    @property
    def starts(self) -> tuple[str, ...]:
        """Name of each part's first layer."""
        return tuple(part.names[0] for part in self.parts)


class Cuts:
    """The cuts of one plan; each is made once, whatever the number of workers."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self._made: dict[tuple[str, bool], Cut] = {}

    def for_workers(self, workers: int, are_isolated: bool = True) -> list[Cut]:
        """Cuts into as many parts as there are workers or fewer, the configured one first.

        are_isolated: whether parts train by themselves, so that heads count where cuts are balanced, and averaged weights
            under the configured schedule; False: of the stages of a pipeline, which has neither.
        """
        plan = self._plan
        is_theirs = are_isolated or plan.config.parts.split != "balanced"  # a balanced one is another for a pipeline
        cuts = [Cut(self._configured_name(), plan.parts)] if len(plan.parts) > 1 and is_theirs else []
        for name, split, num in self._splits(workers):
            if (name, are_isolated) not in self._made:
                parts = plan.config.parts
                head = head_maker(parts) if are_isolated else None
                is_averaged = are_isolated and runs_twice(plan.config)
                names = cut_names(plan.flow, split, num, head=head, is_averaged=is_averaged)
                self._made[name, are_isolated] = Cut(name, self.split(names))
            cut = self._made[name, are_isolated]
            if 1 < len(cut.parts) <= workers and cut.starts not in [other.starts for other in cuts]:
                cuts.append(cut)
        return cuts

    def split(self, names: Sequence[str]) -> list[Part]:
        """The flow's parts, cut before these layers."""
        config = self._plan.config
        return build_without_memory(config, lambda: split_flow(self._plan.flow, names, head_maker(config.parts)))

    def _splits(self, workers: int) -> Iterator[tuple[str, str, int | None]]:
        limit = min(workers, len(possible_starts(self._plan.flow)))
        configured = [len(self._plan.parts)] if self._plan.config.parts.split == "balanced" else []
        for num in sorted({limit, *(num for num in (*_NUMBERS_OF_PARTS, *configured) if num <= limit)}):
            if num > 1:
                yield f"balanced {num}", "balanced", num
        model = self._plan.config.model
        if model.name == "glow":
            if 1 < model.num_blocks <= workers:
                yield "blocks", "blocks", None
            if model.num_steps > 1:  # there is no cut in the middle of a single step
                yield from (
                    (f"across {num}", "across", num) for num in range(2, min(workers, model.num_blocks + 1) + 1)
                )

    def _configured_name(self) -> str:
        split, num = self._plan.config.parts.split, self._plan.config.num_parts
        name = split if isinstance(split, str) else "configured"
        return name if split == "blocks" or num is None else f"{name} {num}"
