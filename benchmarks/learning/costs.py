"""What an arm would take on several workers, by the planner."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from pipeflow.config import Config
from pipeflow.config.command_line import put_over
from pipeflow.plan import make_plan
from pipeflow.plan.predict.finetune import QUICKEST
from pipeflow.plan.predict.machines import Machines
from pipeflow.plan.predict.prediction import PIPELINES
from pipeflow.plan.predict.predictor import Predictor

FLOPS = 40e9
"""FLOP/s of a worker: about what a core does in this flow."""
RATES = {"free links": 1e15, "100 Mbit/s": 1e8}
"""Bits a second of a link."""


def predicted(options: Mapping[str, Any], workers: int) -> dict[str, float]:
    """Seconds of all of an arm's epochs by the name of the links' rate, with nothing else to do for workers and links.

    An arm that trains end to end has those of the quickest system that does: one worker, a pipeline, or data parallelism.
    One whose last epochs are end to end makes them on one worker, in a pipeline or data-parallel, whichever is quickest.
    """
    settings = {
        **options,
        "data.num_test": 100,
    }  # the planner reads no images; how many are evaluated it does not count
    return _predicted(Config.from_dict(put_over({}, settings)), workers)


@cache
def _predicted(config: Config, workers: int) -> dict[str, float]:
    plan, found = make_plan(config), {}
    for name, rate in RATES.items():
        predictor = Predictor(plan, Machines(workers=workers, flops=FLOPS, bandwidth=rate))
        mode, cuts = config.schedule.mode, predictor.cuts()
        if mode == "end_to_end":
            ways = [predictor.end_to_end(), predictor.data_parallel()[0]]
            ways += [predictor.pipeline(kind, cut) for kind in PIPELINES for cut in cuts if len(cut.parts) == workers]
        else:
            ways = [predictor.local(mode, cuts[0], finetune=QUICKEST)]
        found[name] = min(way.run_seconds for way in ways)
    return found
