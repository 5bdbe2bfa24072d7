"""The message of a refused configuration."""

from collections.abc import Callable

import pytest

from pipeflow.config import Config
from pipeflow.errors import ConfigError, PipeflowError


def message_of(function: Callable, *arguments, **named) -> str:
    """The one line of the ConfigError that a call raises."""
    with pytest.raises(ConfigError) as error:
        function(*arguments, **named)
    assert isinstance(error.value, PipeflowError) and isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)
    return str(error.value)


def refused(name: str, value: object) -> str:
    """The message about one option with this value."""
    section, _, key = name.partition(".")
    return message_of(Config.from_dict, {section: {key: value}})
