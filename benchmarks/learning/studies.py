"""The arms and studies of runs.yaml: what is trained, and which tables compare it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A configuration that is trained at its own best rate, with several seeds."""

    name: str
    options: Mapping[str, Any]
    rate_of: str | None = None
    """Name of the arm whose best rate it takes, where only the number of epochs differs."""
    part_rates: Sequence[float] | None = None
    """Factor of each part's rate; None: all have the run's."""

    def at_rate(self, rate: float) -> dict[str, Any]:
        """Its options at a learning rate."""
        parts = {} if self.part_rates is None else {"optim.part_lr": [rate * factor for factor in self.part_rates]}
        return {**self.options, "optim.lr": rate, **parts}


@dataclass(frozen=True, kw_only=True)
class Study:
    """A table of arms that are compared."""

    name: str
    title: str
    arms: tuple[Arm, ...]
    """The first trains end to end."""
    workers: int = 3
    """That the planner has for an arm without parts."""


def read_studies(document: Mapping[str, Any]) -> list[Study]:
    """The studies of runs.yaml. Raises ValueError where one names an arm that there is not."""
    arms: dict[str, Arm] = {}
    for name, own in document["arms"].items():
        options = {**document["options"], **own}
        rate_of, part_rates = options.pop("rate_of", None), options.pop("part_rates", None)
        if rate_of is not None and rate_of not in arms:
            raise ValueError(f"arms: {name!r} takes the rate of {rate_of!r}, which does not stand before it")
        arms[name] = Arm(name=name, options=options, rate_of=rate_of, part_rates=part_rates)
    studies = []
    for name, each in document["studies"].items():
        if missing := [arm for arm in each["arms"] if arm not in arms]:
            raise ValueError(f"studies: {name} has no arm of the name {missing[0]!r}")
        studies.append(Study(name=name, title=each["title"], arms=tuple(arms[arm] for arm in each["arms"])))
    return studies
