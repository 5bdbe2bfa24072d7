"""End-to-end epochs behind local ones: how long they take in each way, and the quickest whole run."""

import io

import pytest
from rich.console import Console

from pipeflow.config import Config
from pipeflow.plan import make_plan, print_phases, print_plan
from pipeflow.plan.predict.machines import Machines
from pipeflow.plan.predict.predictor import Predictor
from pipeflow.plan.predict.recommend import recommend

SECTIONS = {"data": {"num_train": 1280, "num_test": 100}, "parts": {"split": "balanced", "num": 3}}
FREE = {"workers": 3, "flops": 2e9, "bandwidth": 1e18}


def predictor_of(machines: dict, **sections: dict) -> Predictor:
    return Predictor(make_plan(Config.from_dict({**SECTIONS, **sections})), Machines(**machines))


@pytest.mark.parametrize("schedule, slices", [("gpipe", 4), ("1f1b", 4), ("gpipe", 16)])
def test_on_free_links_a_pipeline_takes_its_share_and_the_slices_that_fill_it(schedule, slices):
    finetune = {"parallel": "pipeline", "schedule": schedule, "micro_batches": slices}
    predictor = predictor_of(FREE, finetune=finetune)
    cut = predictor.cuts()[0]
    macs = [part.multiply_adds() for part in cut.parts]
    way = predictor.local("concurrent", cut)
    epoch = (way.run_seconds - 8 * way.seconds) / 2
    ideal = 3 * 1280 * max(macs) / 1e9
    assert ideal < epoch < 1.01 * ideal * (slices + 2) / slices
    assert way.run_seconds == way.run_seconds_by_finetune["pipeline"] < way.run_seconds_by_finetune["single"]


def test_what_goes_back_counts_on_a_slow_link():
    machines = {**FREE, "bandwidth": 1e6}
    seconds = []
    for types in ("float32", "bfloat16"):
        finetune = {"parallel": "pipeline", "gradient_dtype": types}
        predictor = predictor_of(machines, finetune=finetune, link={"dtype": "bfloat16"})
        way = predictor.local("concurrent", predictor.cuts()[0])
        seconds.append(way.run_seconds - 8 * way.seconds)
    assert seconds[1] < 0.8 * seconds[0]


def test_replicas_of_a_pipeline_share_the_batch():
    predictor = predictor_of({**FREE, "workers": 6}, finetune={"parallel": "pipeline"})
    cut = predictor.cuts()[0]
    one, two = (predictor.local("concurrent", cut, replicas).run_seconds for replicas in (1, 2))
    assert two == pytest.approx(one / 2, rel=0.02)


def test_the_quickest_whole_run_is_found_with_any_way_to_fine_tune():
    """Where a pipeline is quicker than rank 0 alone, though it is not configured."""
    predictor = predictor_of({**FREE, "flops": 1e13, "bandwidth": 1e9}, model={"num_steps": 16, "width": 512})
    predictions = predictor.all()
    (text,) = (line for line in recommend(predictor, predictions).sentences if line.startswith("All configured epochs"))
    assert "balanced 3" in text and "(finetune.parallel pipeline, gpipe x16)" in text
    configured = predictor.local("concurrent", predictor.cuts()[0])
    assert configured.run_seconds == configured.run_seconds_by_finetune["single"]


def test_one_worker_has_one_way():
    predictor = predictor_of({**FREE, "workers": 1}, finetune={"parallel": "pipeline"})
    way = predictor.local("concurrent", predictor.cuts()[0])
    assert [*way.run_seconds_by_finetune] == ["single"] and way.run_seconds == way.run_seconds_by_finetune["single"]


def test_a_plan_says_what_goes_back_and_that_nothing_is_gathered():
    plan = make_plan(Config.from_dict({**SECTIONS, "finetune": {"parallel": "pipeline"}}))
    console = Console(file=io.StringIO(), width=80)
    print_plan(plan, console)
    print_phases(plan, console)
    text = " ".join(console.file.getvalue().split())
    assert "in the epochs of the whole flow gather nothing: the parts stay where they are" in text
    assert "nothing backward" not in text and "'7.9+3.9' go forward and back" in text
