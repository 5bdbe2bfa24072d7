"""pipeflow trains a normalizing flow in gradient-isolated parts, one part per worker.

    from pipeflow import Config, train
    summary = train(Config.from_dict({"run": {"dir": "runs/mine"}, "schedule": {"mode": "concurrent"}}))

What needs torch is imported when it is first used, so that a mistyped option is reported at once.
"""

import importlib
from typing import Any

from pipeflow.workers import parent  # noqa: F401 - looks at its parent now

__version__ = "0.2.0"

_PLACES = {
    "Config": "pipeflow.config",
    "Flow": "pipeflow.flow",
    "ImageData": "pipeflow.data",
    "Layer": "pipeflow.flow",
    "PipeflowError": "pipeflow.errors",
    "glow": "pipeflow.flow",
    "load_flow": "pipeflow.rundir.model",
}
__all__ = [*_PLACES, "train"]


def train(config: Any, flow: Any = None, data: Any = None, report: Any = None) -> dict:
    """Trains as the configuration says; see `pipeflow.training.run.train`."""
    from pipeflow.training.run import train as run

    return run(config, flow, data, report)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'pipeflow' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
