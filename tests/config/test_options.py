"""The options themselves: their bounds, their defaults in `--help`, and the way into a run folder and back."""

import dataclasses
import math
import re
import typing
from typing import Literal

import pytest
import yaml

from pipeflow.config import Config, ScheduleConfig, describe_options, option_names
from pipeflow.config.config import SECTIONS
from pipeflow.errors import ConfigError
from tests.config.errors import refused

OPTIONS = {f"{name}.{each.name}": each for name, section in SECTIONS.items() for each in dataclasses.fields(section)}
BOUNDS = [
    (name, bound, option.metadata[bound])
    for name, option in OPTIONS.items()
    for bound in ("at_least", "at_most", "above", "below")
    if bound in option.metadata
]


@pytest.mark.parametrize("name, bound, limit", BOUNDS)
def test_values_beyond_a_bound_are_refused(name, bound, limit):
    beyond = {"at_least": limit - 1, "at_most": limit + 1, "above": limit, "below": limit}[bound]
    message = refused(name, [1, beyond, 1] if name == "optim.part_lr" else beyond)
    assert re.match(rf"{name}: must be .*{limit:,}.*, got {beyond}", message)
    if bound in ("at_least", "at_most"):  # the bound itself is allowed, if not always by the other options
        section, _, key = name.partition(".")
        try:
            Config.from_dict({section: {key: limit}})
        except ConfigError as error:
            assert f"{name}: must be" not in str(error)


def test_every_number_has_a_lower_bound_and_is_one():
    """A new option must not come without a bound."""
    for name, option in OPTIONS.items():
        if isinstance(option.default, int | float) and not isinstance(option.default, bool):
            assert refused(name, -1).startswith(f"{name}: must be ")
        if isinstance(option.default, float) or name == "finetune.lr":
            assert refused(name, math.nan).startswith(f"{name}: must be ")
    for name in ("optim.lr", "link.timeout_s"):
        assert refused(name, math.inf) == f"{name}: must be a number above 0, got inf."


def test_forms_of_a_turn():
    turns = {
        "1 epoch": (1, "epochs"),
        "3 epochs": (3, "epochs"),
        "1 step": (1, "steps"),
        " 200  steps ": (200, "steps"),
    }
    assert {text: ScheduleConfig(alternate_every=text).turn for text in turns} == turns


@pytest.mark.parametrize("text", ["epoch", "1", "0 steps", "-1 steps", "1.5 epochs", "1epoch", "2 days", "² steps"])
def test_other_forms_of_a_turn(text):
    message = f"schedule.alternate_every: expected '1 epoch' or '200 steps', got {text!r}."
    assert refused("schedule.alternate_every", text) == message


def test_a_configuration_with_everything_changed_comes_back():
    config = Config.from_dict(
        {
            "run": {"dir": "runs/'quoted', \"twice\"", "seed": 2**63 - 1, "resume": "must", "device": "cpu"},
            "data": {"name": "mine:images", "path": "1.10", "channels": 3, "num_train": 7, "num_test": 8, "flip": True},
            "model": {"name": "mine:flow", "coupling": "additive", "invconv": "plain"},
            "parts": {"split": ["a.b", "c.d"], "num": 3, "head": "standard"},
            "schedule": {"mode": "alternate", "local_epochs": 1, "finetune_epochs": 0, "alternate_every": "9 steps"},
            "optim": {"name": "adamax", "lr": 1e-5, "part_lr": [1e-5, 1e-300, 0.1 + 0.2], "decay": "none", "ema": 0.9},
            "precision": {"coupling": "bfloat16", "compile": True},
            "link": {"backend": "gloo", "dtype": "bfloat16", "depth": 1, "timeout_s": 1e9},
            "finetune": {"parallel": "ddp", "lr": 1e-5},
            "eval": {"every_epochs": 2, "num_images": None},
            "checkpoint": {"every_epochs": 3, "keep": 4},
        }
    )
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict(), sort_keys=False))) == config
    assert isinstance(config.parts.split, tuple) and isinstance(config.to_dict()["parts"]["split"], list)


def test_to_dict_and_help_have_every_option_with_its_default_and_its_choices():
    defaults = {
        f"{section}.{key}": value for section, values in Config().to_dict().items() for key, value in values.items()
    }
    assert list(defaults) == option_names() == list(OPTIONS)
    text = describe_options()
    assert max(map(len, text.splitlines())) <= 120
    about = dict(re.findall(r"^  --(\S+) +(.*(?:\n {5,}.*)*)", text, re.MULTILINE))
    for name, value in defaults.items():
        about_it, option = " ".join(about[name].split()), OPTIONS[name]
        shown = {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
        assert f"[{shown}]" in about_it and len(about_it.split()) > 2
        kinds = [option.type, *typing.get_args(option.type)]
        assert bool not in kinds or "true or false" in about_it
        assert type(None) not in kinds or "null" in about_it.partition(f"[{shown}]")[0] + about_it.partition("]")[2]
        for kind in kinds:
            if typing.get_origin(kind) is Literal:
                assert set(map(str, typing.get_args(kind))) == option.metadata["choices"].keys() - {"null"}, name
        for choice, meaning in option.metadata["choices"].items():
            assert f"{choice} {meaning}" in about_it
