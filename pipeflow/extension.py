"""A user's own function, named `module:function` in the configuration."""

import importlib
import os
import sys
from collections.abc import Callable

from pipeflow.errors import ConfigError


def load_function(option: str, name: str) -> Callable:
    """The function that `module:function` names; modules of the current directory are found.

    Raises ConfigError naming the option where there is no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{option}: {name}: {error}. Run from the folder that holds it, or install it.") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{option}: {name}: module {module_name} has no function {function_name!r}.")
    return function
