"""The arms and studies of runs.yaml: what is trained, and which tables compare it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeflow import safe_files


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A configuration that is trained at its own best rate, or another arm's, with several seeds."""

    name: str
    options: Mapping[str, Any]
    rate_of: str | None = None
    """Name of the arm whose best rate it takes; None: its own rates are tried."""
    part_rates: Sequence[float] | None = None
    """Factor of each part's rate; None: all have the run's."""

    def described(self) -> dict[str, Any]:
        """All that tells its runs, at a rate, from another arm's."""
        return {**self.options, **({} if self.part_rates is None else {"part_rates": list(self.part_rates)})}

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


def read_document(path: Path) -> dict[str, Any]:
    """runs.yaml, with `rates`, `seeds`, `options`, `arms` and `studies`. Raises ValueError for a file that is no such."""
    try:
        document = safe_files.read_yaml(path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    for key, kind in {"rates": list, "seeds": list, "options": dict, "arms": dict, "studies": dict}.items():
        value = document.get(key) if isinstance(document, dict) else None
        if not isinstance(value, kind) or (kind is list and not value):
            raise ValueError(
                f"{path}: {key}: expected {'values' if kind is list else 'names with values'}, got {value!r}"
            )
    for key, kind in {"rates": float, "seeds": int}.items():
        if wrong := [value for value in document[key] if type(value) is not kind]:
            raise ValueError(f"{path}: {key}: {wrong[0]!r} is none; a rate is written 1.0e-2, a seed 1")
    return document


def read_studies(document: Mapping[str, Any]) -> list[Study]:
    """The studies of runs.yaml. Raises ValueError where one names an arm that there is not."""
    arms: dict[str, Arm] = {}
    for name, own in document["arms"].items():
        options = {**document["options"], **(own or {})}
        rate_of, part_rates = options.pop("rate_of", None), options.pop("part_rates", None)
        if rate_of is not None and rate_of not in arms:
            raise ValueError(f"arms: {name!r} takes the rate of {rate_of!r}, which does not stand before it")
        arms[name] = Arm(name=name, options=options, rate_of=rate_of, part_rates=part_rates)
    studies = []
    for name, each in document["studies"].items():
        named = each.get("arms") if isinstance(each, dict) else None
        if not named:
            raise ValueError(f"studies: {name} has no arms")
        if missing := [arm for arm in named if arm not in arms]:
            raise ValueError(f"studies: {name} has no arm of the name {missing[0]!r}")
        studies.append(Study(name=name, title=each.get("title", name), arms=tuple(arms[arm] for arm in named)))
    return studies
