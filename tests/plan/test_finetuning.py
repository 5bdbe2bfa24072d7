"""End-to-end epochs behind local ones: how long they take in each way, and the quickest whole run."""

import io
import math

import pytest
from rich.console import Console

from pipeflow.config import Config, load
from pipeflow.plan import make_plan, print_phases, print_plan
from pipeflow.plan.predict.finetune import QUICKEST
from pipeflow.plan.predict.machines import Machines
from pipeflow.plan.predict.predictor import Predictor
from pipeflow.plan.predict.recommend import recommend
from pipeflow.plan.traffic import gather_bytes

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
    assert way.finetune == f"{schedule} x{slices}"
    assert way.run_seconds < predictor.local("concurrent", cut, finetune="single").run_seconds


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
    assert "concurrent, balanced 3, then gpipe x16 is quickest" in text
    assert predictor.local("concurrent", predictor.cuts()[0]).finetune == "single"


def test_one_worker_has_one_way():
    predictor = predictor_of({**FREE, "workers": 1}, finetune={"parallel": "pipeline"})
    cut = predictor.cuts()[0]
    assert {predictor.local("concurrent", cut, finetune=how).finetune for how in (None, "ddp", QUICKEST)} == {"single"}


def test_a_plan_says_what_goes_back_and_that_nothing_is_gathered():
    plan = make_plan(Config.from_dict({**SECTIONS, "finetune": {"parallel": "pipeline"}}))
    console = Console(file=io.StringIO(), width=80)
    print_plan(plan, console)
    print_phases(plan, console)
    text = " ".join(console.file.getvalue().split())
    assert "in the epochs of the whole flow gather nothing: the parts stay where they are" in text
    assert "nothing backward" not in text and "'7.9+3.9' go forward and back" in text


def test_behind_local_epochs_a_pipeline_gathers_nothing_and_others_do():
    """8 local epochs and 2 end to end, of 20 batches."""
    config = {"parallel": "pipeline", "schedule": "gpipe", "micro_batches": 8, "gradient_dtype": "bfloat16"}
    predictor = predictor_of({**FREE, "bandwidth": 1e8}, finetune=config, link={"dtype": "int8"})
    cut = predictor.cuts()[0]
    alone, shared, piped = (predictor.local("concurrent", cut, finetune=how) for how in ("single", "ddp", "pipeline"))
    shapes = [part.output_shape for part in cut.parts[:-1]]
    there = sum(
        1280 * (math.prod(shape) + 8) + 20 * 8 * shape[0] * 8 for shape in shapes
    )  # a range a channel and slice
    back = sum(1280 * 2 * math.prod(shape) for shape in shapes)
    assert piped.run_bytes == 8 * piped.bytes + 2 * (there + back)
    gathered, whole = (
        sum(gather_bytes(cut.parts, owners, {0, 1, 2}, False).values()) for owners in ([0, 1, 2], [1] * 3)
    )
    assert alone.run_bytes == 8 * alone.bytes + gathered
    assert shared.run_bytes == 8 * shared.bytes + gathered + 2 * whole + 2 * predictor.data_parallel()[0].bytes
    assert piped.seconds == alone.seconds and piped.memory > alone.memory
    names = [each.describe() for each in (alone, shared, piped)]
    assert names == [f"concurrent, balanced 3{then}" for then in ("", ", then ddp", ", then gpipe x8")]


def test_a_worker_with_several_parts_has_them_as_one_stage():
    both = [predictor_of({**FREE, "workers": num}, finetune={"parallel": "pipeline"}) for num in (3, 2)]
    three, two = (each.local("concurrent", both[0].cuts()[0]) for each in both)
    assert two.finetune == three.finetune == "1f1b x4" and 0.3 < two.run_bytes / three.run_bytes < 0.8


def test_a_quicker_way_has_a_row_of_its_own_behind_the_configured_one():
    slow, fast = (predictor_of({**FREE, "bandwidth": bandwidth}).all(("concurrent",)) for bandwidth in (1e5, 1e18))
    assert all(each.finetune in ("", "single") for each in slow)
    configured, quicker = fast[1:3]
    assert configured.cut == quicker.cut == "balanced 3" and configured.finetune == "single"
    assert quicker.run_seconds < configured.run_seconds and quicker.seconds == configured.seconds


@pytest.mark.slow
def test_the_published_run_is_quickest_with_a_pipeline_behind_concurrent_parts():
    """On three workers with links of 1 Gbit/s; a pipeline in all epochs is slower."""
    plan = make_plan(load("cifar10/across3_lr1e-5"))
    predictor = Predictor(plan, Machines(workers=3, flops=10e12, bandwidth=1e9, latency=1e-4))
    predictions = predictor.all()
    named = " ".join(recommend(predictor, predictions).sentences)
    assert "configured epochs with fine-tuning: concurrent, balanced 3, then gpipe x16 is quickest" in named
    ours, rival = (min(each.run_seconds for each in predictions if each.is_ours == mine) for mine in (True, False))
    assert ours < 0.95 * rival


def test_heads_take_time_from_isolated_parts_alone():
    """Local epochs take as much longer as the slowest part has more to multiply; end-to-end ones have no heads."""
    epochs = {}
    for head in ("gaussian", "autoregressive"):
        predictor = predictor_of(FREE, parts={"split": "across", "num": 3, "head": head})
        cut = predictor.cuts()[0]
        way = predictor.local("concurrent", cut)
        epochs[head] = (max(part.multiply_adds() for part in cut.parts), way.seconds, way.run_seconds - 8 * way.seconds)
    plain, heads = epochs["gaussian"], epochs["autoregressive"]
    assert heads[0] > 1.1 * plain[0]
    assert heads[1] / plain[1] == pytest.approx(heads[0] / plain[0], rel=0.02)
    assert heads[2] == pytest.approx(plain[2], rel=1e-6)
