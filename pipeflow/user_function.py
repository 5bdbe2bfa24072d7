"""A user's own function, named `module:function` in the configuration."""

import importlib
import os
import sys
from collections.abc import Callable

from pipeflow.errors import ConfigError


def load_function(option: str, name: str) -> Callable:
    """The function that `module:function` names; modules of the current directory are found.

    Raises ConfigError naming the option where there is no such module or function. Whatever else importing the module
    raises is the user's to see, with its traceback.
    """
    module_name, _, function_name = name.partition(":")
    # An installed command does not have the user's folder on the path as `python -m` does. It stays there: the function
    # may import more of the user's modules when it runs.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # The module, or a package it is in, is missing; otherwise it is there and lacks something itself.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"{option}: {name}: there is no module {module_name!r} in {os.getcwd()} or among the installed ones. "
            f"Run from the folder that holds it, or install it."
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{option}: {name}: {module} has no function {function_name!r}.")
    return function
