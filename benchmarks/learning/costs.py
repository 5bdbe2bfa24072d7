"""What an arm would take on several workers, by the planner."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

from pipeflow.config import Config
from pipeflow.config.command_line import put_over
from pipeflow.plan import make_plan
from pipeflow.plan.predict.finetune import QUICKEST
from pipeflow.plan.predict.machines import Machines
from pipeflow.plan.predict.pipelines import MICRO_BATCHES, Wire
from pipeflow.plan.predict.prediction import PIPELINES, Prediction
from pipeflow.plan.predict.predictor import Predictor

FLOPS = 40e9
"""FLOP/s of a worker: about what a core does in this flow."""
RATES = {"free links": 1e15, "100 Mbit/s": 1e8}
"""Bits a second of a link."""
SENT = {"float32": 1.0, "bfloat16": 2.0, "PowerSGD": 232.0 / 18.8}
"""What end-to-end systems send, and how many times fewer bytes than float32; PowerSGD: as counted in benchmarks/links."""


def predicted(options: Mapping[str, Any], workers: int) -> dict[str, float]:
    """Seconds of all of an arm's epochs by the name of the links' rate, with nothing else to do for workers and links.

    An arm that trains end to end has those of the quickest system that does: one worker, or a pipeline or data
    parallelism that sends bfloat16. One whose last epochs are end to end makes them on one worker, in a pipeline or
    data-parallel, whichever is quickest.
    """
    return _predicted(_config(options), workers)


def end_to_end_by_wire(options: Mapping[str, Any], workers: int) -> dict[str, float]:
    """Seconds over 100 Mbit/s of the quickest system that trains an arm end to end, by what it sends."""
    return _end_to_end_by_wire(_config(options), workers)


def _config(options: Mapping[str, Any]) -> Config:
    """The planner reads no images, and does not count how many are evaluated."""
    return Config.from_dict(put_over({}, {**options, "data.num_test": 100}))


@cache
def _end_to_end_by_wire(config: Config, workers: int) -> dict[str, float]:
    rate = RATES["100 Mbit/s"]
    predictor = Predictor(make_plan(config), Machines(workers=workers, flops=FLOPS, bandwidth=rate))
    return {sent: min(way.run_seconds for way in _end_to_end(predictor, rate, sent)) for sent in SENT}


@cache
def _predicted(config: Config, workers: int) -> dict[str, float]:
    plan, found, predictor = make_plan(config), dict[str, float](), None
    for name, rate in RATES.items():
        predictor = Predictor(plan, Machines(workers=workers, flops=FLOPS, bandwidth=rate), shared=predictor)
        if config.schedule.mode == "end_to_end":
            found[name] = min(way.run_seconds for way in _end_to_end(predictor, rate, "bfloat16"))
        else:
            found[name] = predictor.local(config.schedule.mode, predictor.cuts()[0], finetune=QUICKEST).run_seconds
    return found


def _end_to_end(predictor: Predictor, rate: float, sent: str) -> Iterator[Prediction]:
    """Every way to train end to end on its workers; PowerSGD is for data parallelism alone."""
    yield predictor.end_to_end()
    machines = replace(predictor.machines, reduce_bandwidth=SENT[sent] * rate)
    yield Predictor(predictor.plan, machines, shared=predictor).data_parallel()[0]
    for cut in predictor.cuts() if sent != "PowerSGD" else ():
        if len(cut.parts) == machines.workers:
            for kind, num_micro in product(PIPELINES, MICRO_BATCHES):
                yield predictor.pipeline_at(kind, cut, num_micro, Wire(latents=sent, gradients=sent))
