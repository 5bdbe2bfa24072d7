"""The command line `--config FILE --section.option VALUE`: what it says becomes a `Config`, and `--help` describes it."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from pipeflow.config.config import SECTIONS, Config, option_names
from pipeflow.config.loading import read_yaml, show, unknown_option
from pipeflow.errors import ConfigError


def parse_arguments(arguments: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """Splits `--config FILE --optim.lr 1e-4 --run.seed=1` into the file and the overrides.

    Raises ConfigError for an option without a value, given twice, or an argument that is no option.
    """
    values: dict[str, str] = {}
    names = ["config", *option_names()]
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            raise ConfigError(f"{argument!r} is not an option: options are written --section.name value.")
        name, has_value, text = argument[2:].partition("=")
        if name not in names:
            raise unknown_option(name, names[1:])
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{name} has no value: write --{name} {_example(name)}.")
            text = rest.pop(0)
        if name in values:
            raise ConfigError(f"--{name} is given twice ({values[name]!r} and {text!r}): keep one.")
        values[name] = text
    return values.pop("config", None), values


def load(path: str | None, overrides: Mapping[str, str] | None = None) -> Config:
    """The configuration in a YAML file (None: the defaults) with `{"optim.lr": "1e-4"}` put over it.

    Raises ConfigError for a file that is not there or is not YAML, and for what `Config.from_dict` rejects.
    """
    settings = {} if path is None else read_yaml(path)
    return Config.from_dict(put_over(settings, overrides or {}))


def put_over(settings: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of options with `{"optim.lr": 1e-4}` put over them. A section that is none stays, for `from_dict`."""
    sections = {name: dict(values) if isinstance(values, dict) else values for name, values in settings.items()}
    for name, value in options.items():
        section, _, key = name.partition(".")
        values = sections.setdefault(section, {})
        if isinstance(values, dict):
            values[key] = value
    return sections


def describe_options() -> str:
    """All options, each with its default and the values to choose from: the text that `--help` prints."""
    lines = _entry(
        "--config FILE",
        "YAML file with options by section, or the name of a configuration that comes along (`pipeflow configs`); "
        "a file goes before a name, and the command line goes over both",
    )
    for name, section in SECTIONS.items():
        lines += ["", f"{name}: {section.__doc__}"]
        for each in dataclasses.fields(section):
            about = each.metadata["help"] + " (true or false)" * (each.type is bool)
            lines += _entry(f"--{name}.{each.name}", f"{about}  [{show(each.default)}]")
            choices = each.metadata["choices"]
            indent = _COLUMN + 2 + max(map(len, choices), default=0)
            for choice, meaning in choices.items():
                lines += _filled(f"{'':{_COLUMN}}{choice}", indent, meaning)
    return "\n".join(lines)


_WIDTH, _COLUMN = 120, 33
"""Columns of the text, and where what is said of an option begins."""


def _entry(name: str, about: str) -> list[str]:
    return _filled(f"  {name}", _COLUMN - 2, about)


def _filled(head: str, indent: int, text: str) -> list[str]:
    """Lines of text in a column of its own, the first behind `head`."""
    first, *more = textwrap.wrap(text, _WIDTH - indent)
    return [f"{head:{indent}}{first}", *(f"{'':{indent}}{line}" for line in more)]


def _example(name: str) -> str:
    """A value of an option, for a message."""
    section, _, key = name.partition(".")
    (option,) = [each for each in dataclasses.fields(SECTIONS[section]) if each.name == key] if key else [None]
    if option is None:
        return "FILE"
    choices = option.metadata["choices"] or (("true", "false") if option.type is bool else ())
    return " or ".join(choices) or "VALUE"
