"""The studies of runs.yaml: tables of arms that are compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Study:
    """A table of arms."""

    name: str
    title: str
    arms: Mapping[str, Mapping[str, Any]]
    """Options of each; the first trains end to end."""
    workers: int = 3
    """That the planner has for an arm without parts."""


def read_studies(document: Mapping[str, Any]) -> list[Study]:
    """The studies of runs.yaml."""
    studies = []
    for name, each in document["studies"].items():
        common = {**document["options"], **each.get("options", {})}
        arms = {arm: {**common, **options} for arm, options in each["arms"].items()}
        studies.append(Study(name=name, title=each["title"], arms=arms))
    return studies
