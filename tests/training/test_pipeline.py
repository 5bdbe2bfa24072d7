"""End-to-end epochs as a pipeline: one device's run up to the rounding of sums, bit for bit however parts are spread."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeflow import Config, Layer, load_flow, train
from pipeflow.flow import glow
from pipeflow.plan.plan import make_plan
from pipeflow.report.costs import bytes_by_phase
from pipeflow.rundir.reading import read_run
from pipeflow.workers.timeline import COMPUTE, RECEIVE, SEND, WAIT
from tests.small_runs import (
    assert_same_tensors,
    checkpoint_tensors,
    finish,
    options,
    train_in_turn,
)
from tests.training.pipeline_runs import RUNS, config_of

CLOSE = 1e-5
"""By how much all parameters may differ, of their norm, after two epochs: slices change the order of sums."""

REPLICAS = {
    "plain": {"split": "across", "num": 3, "replicas": 2},
    "end_to_end": {"split": "across", "num": 2, "replicas": 2},  # with a part for each place in line
}
EXACT = [name for name in RUNS if name not in ("bfloat16", "int8")]
SPREAD = ["plain", "end_to_end", "invert"]
"""Runs that two workers make as well."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Folders of the runs: one device alone; pipelines of 2, of 3 and of 2 workers with 2 replicas."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("alone", "two", "three", "replicas")}
    train_in_turn(2, [config_of(folders["two"], name) for name in SPREAD])
    train_in_turn(3, [config_of(folders["three"], name) for name in RUNS])
    train_in_turn(4, [config_of(folders["replicas"], name, parts=REPLICAS[name]) for name in REPLICAS])
    for name in EXACT:
        train(config_of(folders["alone"], name, "single"))
    return folders


def model_of(run: Path) -> torch.Tensor:
    """All parameters and buffers of the last checkpoint, one after the other, in the order of their names."""
    tensors = checkpoint_tensors(run)
    newest = max(name.split()[0] for name in tensors if name.startswith("epoch"))
    return torch.cat(
        [tensors[name].double().flatten() for name in sorted(tensors) if name.startswith(f"{newest} model/")]
    )


def assert_close(ours: Path, theirs: Path) -> None:
    """Two runs that differ in the order of sums."""
    left, right = model_of(ours), model_of(theirs)
    assert (left - right).norm() < CLOSE * right.norm()
    one, other = (json.loads((path / "summary.json").read_text()) for path in (ours, theirs))
    assert abs(one["test_bpd"] - other["test_bpd"]) < 1e-5
    for record, expected in zip(one["epochs"], other["epochs"], strict=True):
        assert record["phase"] == expected["phase"] and {*record["updates"].values()} == {3}
        assert record["train_loss"] == pytest.approx(expected["train_loss"], abs=1e-5)


@pytest.mark.parametrize("name", EXACT)
def test_a_pipeline_learns_what_one_device_does(runs, name):
    assert_close(runs["three"] / name, runs["alone"] / name)


@pytest.mark.parametrize("name", ["plain", "end_to_end"])
def test_replicas_of_a_pipeline_learn_what_one_device_does(runs, name):
    assert_close(runs["replicas"] / name, runs["alone"] / name)


@pytest.mark.parametrize("name", SPREAD)
def test_how_parts_are_spread_does_not_change_the_run(runs, name):
    assert_same_tensors(runs["two"] / name, runs["three"] / name)


def test_the_order_of_forwards_and_backwards_does_not_change_the_run(runs):
    assert_same_tensors(runs["three"] / "plain", runs["three"] / "gpipe")


def test_clipping_is_by_the_norm_of_the_whole_flow(runs, tmp_path):
    """It bites here: without it, the run is another one."""
    train(config_of(tmp_path, "plain", "single", optim={"clip_norm": 0.0}))
    left, right = model_of(tmp_path / "plain"), model_of(runs["alone"] / "plain")
    assert (left - right).norm() > 100 * CLOSE * right.norm()


@pytest.mark.parametrize("name", ["plain", "bfloat16", "int8"])
def test_bytes_are_counted_by_link_and_direction(runs, name):
    summary = json.loads((runs["three"] / name / "summary.json").read_text())
    values = [math.prod(shape) for shape in ((12, 16, 16), (24, 8, 8))]
    channels = (12, 24)
    value, ranges = {"plain": (4, 0), "bfloat16": (2, 0), "int8": (1, 8)}[name]
    back = 2 if name == "bfloat16" else 4
    images, slices, batches = 96, 4, 3
    forward = [images * (value * each + 8) + batches * slices * ranges * num for each, num in zip(values, channels)]
    backward = [images * back * each for each in values]
    for record in summary["epochs"][1:]:
        assert record["bytes"]["latents"] == [[link, link + 1, count] for link, count in enumerate(forward)]
        assert record["bytes"]["backward"] == [[link + 1, link, count] for link, count in enumerate(backward)]
        assert record["bytes"]["gradients"] == 0
    local = [count for _, _, count in summary["epochs"][0]["bytes"]["latents"]]
    assert summary["bytes"]["forward"] == [before + 2 * count for before, count in zip(local, forward)]
    assert summary["bytes"]["backward"] == [2 * count for count in backward]
    assert sum(summary["bytes"]["gather"].values()) == 0


@pytest.mark.parametrize(
    "which, name",
    [("three", name) for name in ("plain", "bfloat16", "int8", "end_to_end")] + [("replicas", "end_to_end")],
)
def test_a_plan_knows_the_bytes(runs, which, name):
    parts = REPLICAS[name] if which == "replicas" else {"split": "across", "num": 3}
    plan, sent = make_plan(config_of(runs[which], name, parts=parts)), read_run(runs[which] / name).summary.bytes
    assert (plan.forward_bytes, plan.backward_bytes) == ([*sent.forward], [*sent.backward])
    assert plan.evaluation_bytes == sent.eval
    assert (plan.gradient_bytes, plan.replica_bytes) == (sent.finetune, sent.replicas.gradients)
    assert sum(plan.gather_bytes.values()) == sum(sent.gather.values()) == 0


@pytest.mark.parametrize("which, name", [("three", "plain"), ("replicas", "plain"), ("two", "end_to_end")])
def test_every_byte_of_a_run_stands_in_the_figure_of_its_phases(runs, which, name):
    run = read_run(runs[which] / name).summary
    assert sum(counts.total() for counts in bytes_by_phase(run).values()) == run.bytes.total > 0


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
def test_links_of_other_types_train_about_as_well(runs, name):
    summaries = [json.loads((runs["three"] / each / "summary.json").read_text()) for each in ("plain", name)]
    assert 0 < abs(summaries[0]["test_bpd"] - summaries[1]["test_bpd"]) < 0.02


@pytest.mark.parametrize("name", ["plain", "reference"])
def test_the_model_is_put_together_on_the_disk(runs, name):
    """With averaged weights where there are any; and samples are drawn from it."""
    ours, theirs = runs["three"] / name, runs["alone"] / name
    flow, expected = (load_flow(path / "model.safetensors").flow.state_dict() for path in (ours, theirs))
    assert flow.keys() == expected.keys()
    together, alone = (torch.cat([value.double().flatten() for value in each.values()]) for each in (flow, expected))
    assert (together - alone).norm() < CLOSE * alone.norm()
    pixels, others = (torch.tensor(list(Image.open(path / "samples.png").tobytes())) for path in (ours, theirs))
    assert (pixels != others).double().mean() < 0.01


def one_way(config: Config, shape: tuple[int, ...]) -> list[Layer]:
    """A Glow whose last layer has no inverse."""
    return [*(layer for _, layer in glow(shape, 1, 2, 4).named_layers()), OneWay()]


class OneWay(Layer):
    def forward(self, x):
        return x, x.new_zeros(len(x))


def test_a_flow_without_an_inverse_leaves_no_samples(tmp_path):
    """The worker that has no inverse is not the one that says so."""
    about = {"model": {"name": "tests.training.test_pipeline:one_way"}, "parts": {"split": "balanced", "num": 2}}
    output = train_in_turn(2, [config_of(tmp_path, "plain", **about)])
    assert output.count("no samples: OneWay has no inverse") == 1
    assert (tmp_path / "plain/model.safetensors").exists() and not list(tmp_path.glob("plain/samples*"))


RESUMED = {
    "single": (1, {}),
    "ddp": (2, {}),
    "pipeline cut otherwise": (2, {"parts": {"split": "blocks", "num": 2}}),
}


@pytest.mark.parametrize("how, epoch", [("single", 1), ("ddp", 1), ("pipeline cut otherwise", 2)])
def test_what_three_workers_saved_goes_on_as_anything(runs, tmp_path, how, epoch):
    """After the local epoch, and after an end-to-end one."""
    workers, sections = RESUMED[how]
    copy_until(runs["three"] / "plain", tmp_path / "plain", epoch)
    assert f"resuming after {epoch} epoch" in train_in_turn(
        workers, [config_of(tmp_path, "plain", how.split()[0], **sections)]
    )
    assert_close(tmp_path / "plain", runs["three"] / "plain")


def test_what_replicas_saved_goes_on_as_a_pipeline(runs, tmp_path):
    copy_until(runs["replicas"] / "plain", tmp_path / "plain", 2)
    assert "resuming after 2 epochs" in train_in_turn(3, [config_of(tmp_path, "plain")])
    assert_close(tmp_path / "plain", runs["three"] / "plain")


def copy_until(run: Path, copy: Path, epoch: int) -> None:
    """A run folder as it was after so many epochs."""
    shutil.copytree(run, copy)
    for path in [copy / "summary.json", copy / "model.safetensors"]:
        path.unlink()
    for path in copy.glob("checkpoints/epoch-*"):
        if int(path.name[6:12]) > epoch:
            shutil.rmtree(path)


def test_one_worker_by_itself_is_a_single_device(runs, tmp_path):
    config = config_of(tmp_path, "plain", schedule={"mode": "concurrent", "local_epochs": 1, "finetune_epochs": 1})
    output = train_in_turn(1, [config])
    assert (
        "finetune.parallel pipeline: a single place in line trains the whole flow end to end, on its device" in output
    )
    assert json.loads((tmp_path / "plain/summary.json").read_text())["num_epochs"] == 2


@pytest.mark.slow
def test_the_timeline_has_forwards_and_backwards_of_all_slices(launch, tmp_path):
    about = {"schedule": {"mode": "end_to_end", "local_epochs": 0, "finetune_epochs": 1}, "data": {"num_train": 320}}
    process = launch(3, *options(config_of(tmp_path, "plain", timeline={"steps": 2, "first_step": 3}, **about)))
    output = finish(process)
    assert process.returncode == 0, output
    events = json.loads((tmp_path / "plain/timeline.json").read_text())["traceEvents"]
    computed = {(span["pid"], span["name"]) for span in events if span.get("cat") == COMPUTE}
    for rank in range(3):
        for step in (3, 4):
            slices = {(rank, f"{what} {step}.{each}") for what in ("forward", "backward") for each in range(4)}
            assert slices | {(rank, f"update {step}")} <= computed
    assert {(span["pid"], span.get("cat")) for span in events} >= {(0, SEND), (0, RECEIVE), (2, SEND), (1, WAIT)}
