"""The reference of the public interface: each name that `pipeflow` offers, at the place where it is defined."""

import pipeflow

_DEFINED = {"train": "pipeflow.training.train.train"}
"""Where a name of `pipeflow` is a wrapper: whose documentation says it all."""


def api() -> str:
    """A directive of mkdocstrings for each public name, those that most begin with first."""
    names = sorted(pipeflow.__all__, key=lambda name: (_FIRST + (name,)).index(name))
    return "\n\n".join(f"::: {_DEFINED.get(name) or _path(name)}{_OPTIONS.get(name, '')}" for name in names)


_OPTIONS = {"Summary": "\n    options:\n      show_if_no_docstring: true"}
"""Where more is shown than what has a docstring: the fields of a record."""
_FIRST = ("train", "Config", "load_flow", "TrainedFlow", "Latents", "evaluate", "Flow", "Layer", "ImageData", "Summary")


def _path(name: str) -> str:
    """The module and name of a public object."""
    defined = getattr(pipeflow, name)
    return f"{defined.__module__}.{defined.__qualname__}"
