"""YAML and command lines as typed values, with errors that name the option."""

import difflib
import functools
import logging
import os
import typing
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Any, Literal, Union

from pipeflow import safe_files
from pipeflow.config.removed import REMOVED, removed_text
from pipeflow.errors import ConfigError
from pipeflow.safe_files import brief, in_full
from pipeflow.shipped_files import advice, configurations


def read_yaml(path: str) -> dict[str, Any]:
    """The sections in a file, or in the configuration that comes along under this name if there is no such file.

    Raises ConfigError where there is neither, or it is not YAML, or no mapping.
    """
    path = os.path.expanduser(path)
    named = configurations()
    is_name = path in named and (os.path.isdir(path) or not os.path.exists(path))
    if path in named and not is_name:
        _log_file_before_name(path)
    try:
        settings = safe_files.read_yaml(named[path] if is_name else path)
    except OSError as error:
        says = f"--config: {in_full(path)}: {error.strerror}"
        if isinstance(error, FileNotFoundError):
            says += f", nor is it the name of a configuration: {advice(path, named, 'pipeflow configs')}"
        raise ConfigError(says) from None
    except ValueError as error:
        raise ConfigError(f"--config {path} is not YAML: {error}.") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"--config {path}: expected sections of options such as 'optim:', found {brief(settings)}.")
    return settings


@functools.cache
def _log_file_before_name(path: str) -> None:
    """Says it once a process, and in a run of several workers by the first of them."""
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger("pipeflow").warning(
            "--config %s: reads the file %s, not the configuration of that name that comes along", path, in_full(path)
        )


def convert(name: str, hint: Any, value: Any) -> Any:
    """`value`, from YAML or as text from the command line, as the type of its field. Raises ConfigError naming both."""
    is_union = typing.get_origin(hint) in (UnionType, Union)  # of a Literal and None Python makes a typing.Union
    kinds = typing.get_args(hint) if is_union else (hint,)
    if NoneType in kinds and value in (None, "null", "none", "None"):
        return None
    kinds = tuple(kind for kind in kinds if kind is not NoneType)
    is_list = isinstance(value, str) and ("," in value or value.startswith("["))
    if is_list and any(typing.get_origin(kind) is tuple for kind in kinds):
        kinds = tuple(kind for kind in kinds if kind is not str)
    for kind in kinds:
        converted = _as_kind(kind, value)
        if converted is not None:
            return converted
    advice = ""
    if str in kinds and value is not None and not isinstance(value, str | list | dict):
        advice = ": YAML does not read it as text, quote it as you mean it, '...'"
    raise ConfigError(f"{name}: expected {' or '.join(map(_describe, kinds))}, got {brief(value)}{advice}.")


def _as_kind(kind: Any, value: Any) -> Any:
    """`value` as one type of a field, None where it is not of that type."""
    choices = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        as_text = str(value) if isinstance(value, str | int) else None
        return next((choice for choice in choices if str(choice) == as_text), None)
    if typing.get_origin(kind) is tuple:
        items = value.strip("[]").split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            return None
        converted = tuple(_as_kind(choices[0], each.strip() if isinstance(each, str) else each) for each in items)
        return None if not converted or None in converted else converted
    if kind is bool:
        return {"true": True, "false": False}.get(str(value).lower())
    if kind is str:
        return value if isinstance(value, str) and value and "\0" not in value else None
    # int(1.5) would be 1, and float(True) 1.0.
    if isinstance(value, bool) or not isinstance(value, int | str if kind is int else int | float | str):
        return None
    try:
        number = kind(value)
    except (ValueError, OverflowError):
        return None
    return None if kind is int and abs(number) >= 2**64 else number


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return f"a list of {'numbers' if typing.get_args(kind)[0] is float else 'names'}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


def show(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the one that was meant, or all there are."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


def unknown_option(name: str, known: list[str]) -> ConfigError:
    """The error for a `section.name` that is not among the known ones, with the one that was meant."""
    if name in REMOVED:
        return ConfigError(f"unknown option {name!r}: {removed_text(name)}. Leave it out.")
    section, _, key = name.rpartition(".")
    close = difflib.get_close_matches(name, known, n=1) or [each for each in known if each.endswith(f".{key}")]
    if close:
        return ConfigError(f"unknown option {name!r}: did you mean {close[0]!r}?")
    inside = [each for each in known if each.startswith(f"{section}.")]
    there = inside or dict.fromkeys(each.partition(".")[0] for each in known)
    return ConfigError(f"unknown option {name!r}: there are {', '.join(there)}.")
