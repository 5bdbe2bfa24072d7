"""What an arm would take on several workers, by the planner, beside the quickest system that trains end to end there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeflow.config import Config
from pipeflow.config.command_line import put_over
from pipeflow.plan import make_plan
from pipeflow.plan.predict.machines import Machines
from pipeflow.plan.predict.prediction import PIPELINES
from pipeflow.plan.predict.predictor import Predictor

FLOPS = 40e9
"""FLOP/s of a worker: about what a core does in this flow."""
RATES = {"free links": 1e15, "100 Mbit/s": 1e8}
"""Bits a second of a link."""


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Of all of an arm's epochs, on workers and links that do nothing else."""

    own: float
    end_to_end: float
    """Of as many epochs of the quickest system that trains end to end: one worker, a pipeline, or data parallelism."""
    system: str
    """Which that is."""


def predicted(options: Mapping[str, Any], workers: int) -> dict[str, Seconds]:
    """By the name of the links' rate. An arm that trains end to end has the quickest such system itself."""
    # The planner reads no images, and the number that is evaluated does not matter to it.
    plan = make_plan(Config.from_dict(put_over({}, {**options, "data.num_test": 100})))
    found = {}
    for name, rate in RATES.items():
        predictor = Predictor(plan, Machines(workers=workers, flops=FLOPS, bandwidth=rate))
        cuts = [cut for cut in predictor.cuts() if len(cut.parts) == workers]
        rivals = [predictor.end_to_end(), predictor.data_parallel()[0]]
        rivals += [predictor.pipeline(kind, cut) for kind in PIPELINES for cut in cuts]
        best = min(rivals, key=lambda each: each.run_seconds)
        mode = plan.config.schedule.mode
        own = best if mode == "end_to_end" else predictor.local(mode, predictor.cuts()[0])
        found[name] = Seconds(own=own.run_seconds, end_to_end=best.run_seconds, system=best.describe())
    return found
