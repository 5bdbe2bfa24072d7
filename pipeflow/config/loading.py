"""Text and YAML into typed values, with errors that name the option: what `config` is filled from."""

import difflib
import typing
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal

from pipeflow import safe_files as untrusted
from pipeflow.errors import ConfigError
from pipeflow.safe_files import brief


def read_yaml(path: Path) -> dict:
    """The sections in a file. Raises ConfigError where there is none, or it is not YAML, or no mapping."""
    try:
        settings = untrusted.read_yaml(path)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}. See configs/ for the files that come along.") from None
    except ValueError as error:
        raise ConfigError(f"--config {path} is not YAML: {error}.") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"--config {path}: expected sections of options such as 'optim:', found {brief(settings)}.")
    return settings


def convert(name: str, hint: Any, value: Any) -> Any:
    """`value`, from YAML or as text from the command line, as the type of its field. Raises ConfigError naming both."""
    kinds = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if NoneType in kinds and (value is None or value in ("null", "none", "None")):
        return None
    listed = isinstance(value, str) and ("," in value or value.startswith("["))
    if listed and any(typing.get_origin(kind) is tuple for kind in kinds):
        kinds = tuple(kind for kind in kinds if kind is not str)
    for kind in kinds:
        converted = _as_kind(kind, value)
        if converted is not None:
            return converted
    advice = ""
    if str in kinds and value is not None and not isinstance(value, str | list | dict):
        advice = ": YAML does not read it as text, quote it as you mean it, '...'"
    wanted = " or ".join(_describe(kind) for kind in kinds if kind is not NoneType)
    raise ConfigError(f"{name}: expected {wanted}, got {brief(value)}{advice}.")


def _as_kind(kind: Any, value: Any) -> Any:
    """`value` as one type of a field, None where it is not of that type."""
    if typing.get_origin(kind) is Literal:
        return value if value in typing.get_args(kind) and isinstance(value, str) else None
    if typing.get_origin(kind) is tuple:
        return _as_tuple(typing.get_args(kind)[0], value)
    if kind is bool:
        return {"true": True, "false": False}.get(str(value).lower())
    if kind is str:
        return value if isinstance(value, str) and value and "\0" not in value else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = int(value) if kind is int and not isinstance(value, float) else kind(value) if kind is float else None
    except (ValueError, OverflowError):
        return None
    return None if kind is int and number is not None and abs(number) >= 2**64 else number


def _as_tuple(kind: Any, value: Any) -> tuple | None:
    if isinstance(value, str):
        value = [each.strip() for each in value.strip("[]").split(",")]
    if not isinstance(value, list | tuple):
        return None
    items = [_as_kind(kind, each) for each in value]
    return None if not items or None in items else tuple(items)


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"a list of {'numbers' if typing.get_args(kind)[0] is float else 'names'}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


def show(value: Any) -> str:
    """A value as it is written on the command line."""
    return "null" if value is None else ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def nearest(name: str, known: Any) -> str:
    """The end of a message about an unknown name: the one that was meant, or all there are."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
