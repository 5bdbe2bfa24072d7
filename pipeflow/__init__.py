"""pipeflow trains a normalizing flow in gradient-isolated parts, one part per worker.

    from pipeflow import Config, train
    summary = train(Config.from_dict({"run": {"dir": "runs/mine"}, "schedule": {"mode": "concurrent"}}))

What needs torch is imported when it is first used, so that a mistyped option is reported at once.
"""

import importlib
import os
from pathlib import Path
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
    """Trains as the configuration says, then draws the run's figures; see `pipeflow.training.run.train`."""
    from pipeflow.training.run import train as run

    summary = run(config, flow, data, report)
    if config.run.figures and int(os.environ.get("RANK", 0)) == 0:
        _draw_figures(config.run.dir)
    return summary


def _draw_figures(run_dir: str) -> None:
    """Draws the figures of a run that has ended, unless they are there and not older than its summary."""
    from pipeflow.errors import CheckpointError
    from pipeflow.report.figures import plots

    figure, summary = Path(run_dir, "bytes_by_phase.png"), Path(run_dir, "summary.json")
    try:
        if not figure.exists() or figure.stat().st_mtime < summary.stat().st_mtime:
            plots(run_dir)
    except OSError as error:
        raise CheckpointError(
            f"run.dir: {run_dir}: the run has ended and is saved, but its figures cannot be written ({error.strerror}). "
            f"Free some space, then draw them with: pipeflow report {run_dir}"
        ) from None


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'pipeflow' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
