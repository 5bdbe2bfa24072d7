"""A user's own function, which the configuration names as `module:function`."""

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from pipeflow.errors import ConfigError
from pipeflow.safe_files import brief


def load_function(option: str, name: str) -> Callable[..., Any]:
    """The function that `name`, `module:function`, refers to. Modules of the current directory are found, too.

    Raises ConfigError, which names the option, if there is no such module or function. Any other error in the import of
    the module is the user's and keeps its traceback.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ConfigError(f"{option}: expected module:function, got {brief(name)}.")
    # Unlike `python -m`, an installed command does not have the user's folder on the path. The folder stays there, since
    # the function may import more of the user's modules when it runs.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # If neither the module nor a package around it is missing, the module exists and lacks something itself.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"{option}: {name}: there is no module {module_name!r} in {os.getcwd()} or among the installed ones. "
            f"Run from the folder that holds it, or install it."
        ) from None
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{option}: {name}: {module} has no function {function_name!r}.")
    return _named(option, name, function)


def _named(option: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose errors say at the end of their traceback that the user named it."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            error.add_note(f"{option}: {name} raised this error.")
            raise

    return call


def needs_no_arguments(function: Callable[..., Any]) -> bool:
    """Whether a function can be called without arguments."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    return True
