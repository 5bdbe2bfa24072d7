"""The page of options, from the configuration's typed options: what `pipeflow train --help` prints, as tables."""

import dataclasses
import types
import typing
from typing import Any

from pipeflow.config.config import SECTIONS
from pipeflow.config.loading import show

_BOUNDS = {"at_least": "at least {}", "above": "above {}", "at_most": "at most {}", "below": "below {}"}


def options() -> str:
    """A heading and a table for each section of options."""
    blocks = []
    for name, section in SECTIONS.items():
        rows = "\n".join(_row(name, each) for each in dataclasses.fields(section))
        blocks.append(f"## {name}\n\n{section.__doc__}\n\n| option | default | what it sets |\n|---|---|---|\n{rows}")
    return "\n\n".join(blocks)


def _row(section: str, option: dataclasses.Field[Any]) -> str:
    about = option.metadata["help"]
    bounds = [words.format(_number(option.metadata[key])) for key, words in _BOUNDS.items() if key in option.metadata]
    details = ", ".join([_kind(option.type), *bounds])
    lines = [f"{about[0].upper()}{about[1:]} *({details})*"]
    lines += [f"`{choice}`: {meaning}" for choice, meaning in option.metadata["choices"].items()]
    text = "<br>".join(lines).replace("|", "\\|")
    return f"| `{section}.{option.name}` | `{show(option.default)}` | {text} |"


def _kind(kind: Any) -> str:
    """The type of an option's value, in words."""
    if typing.get_origin(kind) is typing.Literal:
        return "one of these" if all(isinstance(each, str) for each in typing.get_args(kind)) else "a whole number"
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        (first, *_) = (each for each in typing.get_args(kind) if each is not types.NoneType)
        return _kind(first)
    if typing.get_origin(kind) is tuple:
        return "a list of numbers" if typing.get_args(kind)[0] is float else "a list of names"
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and value < 10**9 else f"{value:g}"
