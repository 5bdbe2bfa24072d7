"""One option as a field of its section."""

from collections.abc import Mapping
from dataclasses import field
from typing import TypeVar

T = TypeVar("T")


def option(default: T, help: str, choices: Mapping[str, str] | None = None, **bounds: float) -> T:
    """A field with its default, what `--help` prints of it, and its bounds.

    Args:
        choices: the values to choose from, each with what it means.
        bounds: at_least, at_most, above, below; checked by `checks.check`, for a list on each of its values.
    """
    return field(default=default, metadata={"help": help, "choices": choices or {}, **bounds})
