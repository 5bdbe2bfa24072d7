"""The command line `--config FILE --section.option VALUE`: what it says becomes a `Config`, and `--help` describes it."""

import dataclasses
from collections.abc import Mapping, Sequence

from pipeflow.config.loading import read_yaml, show, unknown_option
from pipeflow.config.options import SECTIONS, Config, option_names
from pipeflow.errors import ConfigError
from pipeflow.safe_files import brief


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
                raise ConfigError(f"--{name} has no value: write --{name} VALUE.")
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
    for name, text in (overrides or {}).items():
        section, _, key = name.partition(".")
        values = settings.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {section}: has {brief(values)} where its options should be.")
        values[key] = text
    return Config.from_dict(settings)


def describe_options() -> str:
    """A line for each option, with its default: the text that `--help` prints."""
    lines = []
    for name, section in SECTIONS.items():
        lines.append(f"\n{name}: {section.__doc__}")
        for each in dataclasses.fields(section):
            lines.append(f"  --{f'{name}.{each.name}':<25} {each.metadata['help']}  [{show(each.default)}]")
    return "\n".join(lines).lstrip("\n")
