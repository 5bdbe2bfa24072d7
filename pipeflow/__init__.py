"""pipeflow trains a normalizing flow in gradient-isolated parts, one part per worker.

    from pipeflow import Config, load_flow, train
    summary = train(Config.from_dict({"run": {"dir": "runs/mine"}, "schedule": {"mode": "concurrent"}}))
    samples = load_flow("runs/mine").sample(64)

What needs torch is imported when it is first used, so that a mistyped option is reported at once.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeflow.workers import parent  # noqa: F401 - looks at its parent now

if TYPE_CHECKING:
    from pipeflow.config import Config
    from pipeflow.data import ImageData
    from pipeflow.data.given import GivenData
    from pipeflow.errors import PipeflowError
    from pipeflow.flow import Flow, Layer, from_normflows, from_zuko
    from pipeflow.flow.glow import glow
    from pipeflow.rundir.records import Summary
    from pipeflow.use.evaluate import evaluate
    from pipeflow.use.importing import import_glow
    from pipeflow.use.latents import Latents
    from pipeflow.use.trained_flow import TrainedFlow, load_flow

__version__ = "0.2.0"
__all__ = [
    "Config", "Flow", "ImageData", "Latents", "Layer", "PipeflowError", "Summary", "TrainedFlow", "evaluate",
    "from_normflows", "from_zuko", "glow", "import_glow", "load_flow", "train",
]  # fmt: skip

_PLACES = {
    "Config": "pipeflow.config",
    "Flow": "pipeflow.flow",
    "ImageData": "pipeflow.data",
    "Latents": "pipeflow.use.latents",
    "Layer": "pipeflow.flow",
    "PipeflowError": "pipeflow.errors",
    "Summary": "pipeflow.rundir.records",
    "TrainedFlow": "pipeflow.use.trained_flow",
    "evaluate": "pipeflow.use.evaluate",
    "import_glow": "pipeflow.use.importing",
    "from_normflows": "pipeflow.flow",
    "from_zuko": "pipeflow.flow",
    "glow": "pipeflow.flow",
    "load_flow": "pipeflow.use.trained_flow",
}


def train(
    config: Config,
    flow: Flow | None = None,
    data: GivenData | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Summary:
    """Trains the run, then writes its page; see `pipeflow.training.train.train`."""
    from pipeflow.training.train import train as run

    summary = run(config, flow, data, report, stop)
    if config.run.figures and int(os.environ.get("RANK", 0)) == 0:
        from pipeflow.report.command import update_page

        update_page(config.run.dir)
    return summary


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


if not TYPE_CHECKING:  # a type checker takes the names from above, and finds misspelt ones

    def __getattr__(name: str) -> Any:
        if name not in _PLACES:
            raise AttributeError(f"module 'pipeflow' has no attribute {name!r}")
        return getattr(importlib.import_module(_PLACES[name]), name)
