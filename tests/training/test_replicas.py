"""Replicas of parts: the run of one worker a part up to the rounding of sums, bit for bit however parts are spread."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from pipeflow import train
from pipeflow.config import Config
from pipeflow.plan.plan import make_plan
from pipeflow.plan.traffic import replica_bytes
from pipeflow.report.costs import bytes_by_phase
from pipeflow.rundir.reading import read_run
from pipeflow.workers.replicas import Replicas, share_of
from tests.small_runs import (
    assert_same_tensors,
    checkpoint_tensors,
    errors_in,
    finish,
    learned,
    options,
    read_until,
    small_config,
    train_in_turn,
)

CLOSE = 1e-4
"""By how much parameters and moments of a tensor may differ, of its norm: sums of gradients are rounded otherwise, and Adam
divides by their root. Measured: 3e-6."""


RUNS = {
    "concurrent": ({"mode": "concurrent"}, {}),
    "alternate_steps": ({"mode": "alternate", "alternate_every": "4 steps"}, {"memory": {"activations": "recompute"}}),
    "ddp": ({"mode": "concurrent"}, {"finetune": {"parallel": "ddp"}}),
    "int8": ({"mode": "concurrent"}, {"link": {"dtype": "int8"}}),
}
"""Schedule, and what else is changed, by name."""


def config_of(folder: Path, name: str, replicas: int) -> Config:
    """The configuration of one of them, in a folder of its name."""
    schedule, changed = RUNS[name]
    parts = {"parts": {"split": "across", "num": 3, "replicas": replicas}}
    return small_config(folder / name, schedule=schedule, **parts, **changed)


def long_enough_to_preempt(folder: Path) -> Config:
    return small_config(
        folder,
        data={"num_train": 384, "num_test": 40},
        schedule={"mode": "concurrent", "local_epochs": 3, "finetune_epochs": 0},
        parts={"split": "across", "num": 2, "replicas": 2},
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[tuple[int, int], Path]:
    """Folders of runs by number of workers and of replicas; 3 parts, but for the one that is to be preempted."""
    wanted = {(2, 2): ["concurrent", "alternate_steps", "ddp"], (4, 2): ["concurrent", "alternate_steps"]}
    wanted |= {(3, 3): ["concurrent", "int8"]}
    folders = {}
    for (workers, replicas), names in wanted.items():
        folder = folders[workers, replicas] = tmp_path_factory.mktemp(f"workers{workers}replicas{replicas}")
        configs = [config_of(folder, name, replicas) for name in names]
        if workers == 2:
            configs.append(long_enough_to_preempt(folder / "preempt"))
        train_in_turn(workers, configs)
    folders[1, 1] = tmp_path_factory.mktemp("alone")
    for name in RUNS:
        train(config_of(folders[1, 1], name, 1))
    return folders


@pytest.mark.parametrize("which, name", [((2, 2), "ddp"), ((4, 2), "concurrent"), ((1, 1), "concurrent")])
def test_every_byte_of_a_run_stands_in_the_figure_of_its_phases(runs, which, name):
    run = read_run(runs[which] / name).summary
    assert sum(counts.total() for counts in bytes_by_phase(run).values()) == run.bytes.total > 0


@pytest.mark.parametrize("name", ["concurrent", "alternate_steps"])
def test_how_parts_are_spread_does_not_change_the_run(runs, name):
    assert_same_tensors(runs[2, 2] / name, runs[4, 2] / name)
    assert learned(runs[2, 2] / name) == learned(runs[4, 2] / name)


@pytest.mark.parametrize("name", ["concurrent", "alternate_steps", "ddp"])
def test_two_replicas_learn_what_one_does(runs, name):
    assert_close(runs[2, 2] / name, runs[1, 1] / name)


def test_shares_of_different_size_are_weighted(runs):
    """32 images for three workers: 10, 11 and 11."""
    assert {share.stop - share.start for share in (share_of(32, 3, index) for index in range(3))} == {10, 11}
    assert_close(runs[3, 3] / "concurrent", runs[1, 1] / "concurrent")


def test_each_share_has_its_own_range_and_dither(runs):
    """So bytes are not those of one worker a part, but no less exact: the first part's loss knows of no link."""
    alone, shared = (learned(folder / "int8") for folder in (runs[1, 1], runs[3, 3]))
    assert abs(shared[0]["train_loss"]["0"] - alone[0]["train_loss"]["0"]) < 1e-5
    assert shared[0]["train_loss"]["1"] != alone[0]["train_loss"]["1"]
    assert abs(shared["test_bpd"] - alone["test_bpd"]) < 0.02


def assert_close(ours: Path, theirs: Path) -> None:
    """Two runs that differ in the order of sums."""
    left, right = checkpoint_tensors(ours), checkpoint_tensors(theirs)
    assert left.keys() == right.keys()
    apart = {}
    for name, value in left.items():
        difference, norm = (value.double() - right[name].double()).norm(), right[name].double().norm()
        if difference > CLOSE * norm + 1e-9:
            apart[name] = float(difference / norm)
    assert not apart
    one, other = (json.loads((path / "summary.json").read_text()) for path in (ours, theirs))
    assert abs(one["test_bpd"] - other["test_bpd"]) < 1e-5
    for record, expected in zip(one["epochs"], other["epochs"]):
        assert record["updates"] == expected["updates"]
        for part, loss in expected["train_loss"].items():
            assert abs(record["train_loss"][part] - loss) < 1e-5


@pytest.mark.parametrize(
    "workers, replicas, name", [(4, 2, "concurrent"), (3, 3, "concurrent"), (4, 2, "alternate_steps"), (3, 3, "int8")]
)
def test_bytes_are_those_of_the_parts_and_of_the_rings(runs, workers, replicas, name):
    """Links carry together what one carries alone; each update of a part sends its gradients around its own ring."""
    shared, alone = (
        json.loads((folder / name / "summary.json").read_text()) for folder in (runs[workers, replicas], runs[1, 1])
    )
    if name != "int8":  # each replica's share has its own ranges, which the plan knows
        assert shared["bytes"]["forward"] == alone["bytes"]["forward"]
    assert shared["bytes"]["backward"] == [0, 0]
    assert shared["bytes"]["eval"] == alone["bytes"]["eval"]
    sent = shared["bytes"]["replicas"]
    plan = make_plan(config_of(runs[workers, replicas], name, replicas))
    assert plan.forward_bytes == shared["bytes"]["forward"]
    for record, phase in zip(shared["epochs"], plan.phases):
        assert record["bytes"]["gradients"] == replica_bytes(phase, plan.parts, replicas)
    heads = [sum(value.numel() for value in part.head.parameters()) for part in plan.parts]
    ring = 2 * (replicas - 1) * 4
    by_hand = sum(ring * (part["parameters"] + head) for part, head in zip(shared["parts"], heads))
    updates = [shared["epochs"][0]["updates"][str(index)] for index in range(3)]
    if len(set(updates)) == 1:
        assert shared["epochs"][0]["bytes"]["gradients"] == by_hand * updates[0]
    assert sent["gradients"] == plan.replica_bytes
    assert sent["images"] == 0  # each replica of the first part loads its own
    assert sent["start"] > 0 and shared["bytes"]["finetune"] == 0 and shared["replicas"] == replicas


def test_a_checkpoint_goes_on_with_other_parts_and_replicas(runs, tmp_path):
    """Of 2 workers x 2 replicas: as 1 x 2 to the last bit, as one worker and as other parts up to rounding."""
    for name in ("two", "one", "cut"):
        folder = tmp_path / name / "concurrent"
        shutil.copytree(runs[4, 2] / "concurrent", folder)
        for path in ("summary.json", "model.safetensors", "checkpoints/epoch-000002", "checkpoints/epoch-000003"):
            shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()
    assert "resuming after 1 epoch from" in train_in_turn(2, [config_of(tmp_path / "two", "concurrent", 2)])
    assert_same_tensors(tmp_path / "two/concurrent", runs[4, 2] / "concurrent")
    train(config_of(tmp_path / "one", "concurrent", 1))
    assert_close(tmp_path / "one/concurrent", runs[1, 1] / "concurrent")
    other = small_config(tmp_path / "cut/concurrent", parts={"split": "blocks", "num": 2, "replicas": 2})
    assert "resuming after 1 epoch from" in train_in_turn(4, [other])
    assert (
        abs(learned(tmp_path / "cut/concurrent")["test_bpd"] - learned(tmp_path / "one/concurrent")["test_bpd"]) < 0.1
    )


def test_preempted_replicas_go_on_where_they_were(runs, tmp_path, launch):
    """The first of the first part's replicas stops handing out images, and its word follows the latents in each line."""
    config = long_enough_to_preempt(tmp_path / "run")
    process = launch(4, *options(config))
    seen = read_until(process, lambda line: line.startswith("epoch 0 ("))
    process.send_signal(signal.SIGTERM)
    output = seen + finish(process)
    assert "preempted (SIGTERM at worker" in output and "nothing that was trained is lost" in output, output
    train_in_turn(2, [config])
    assert learned(tmp_path / "run") == learned(runs[2, 2] / "preempt")


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Runs of two workers, each with a flow or with epochs that few have."""
    folder = tmp_path_factory.mktemp("two")
    no_epoch = {"schedule": {"finetune_epochs": 0}, "finetune": {"parallel": "ddp"}}
    train_in_turn(2, [theirs(folder / "theirs", 2), small_config(folder / "no_epoch", **no_epoch)])
    return folder


def theirs(folder: Path, replicas: int) -> Config:
    return small_config(
        folder,
        model={"name": "tests.training.own_flows:with_their_actnorm"},
        parts={"split": "balanced", "num": 2, "replicas": replicas},
    )


def test_a_layer_of_another_library_takes_its_values_from_the_images(two, tmp_path):
    """And from nothing that replicas run through it before."""
    train(theirs(tmp_path / "alone", 1))
    assert_close(two / "theirs", tmp_path / "alone")


def test_replicas_of_the_whole_flow_meet_only_where_it_trains(two):
    summary = read_run(two / "no_epoch").summary
    plan = make_plan(small_config(two / "no_epoch", schedule={"finetune_epochs": 0}, finetune={"parallel": "ddp"}))
    assert summary.bytes.gather == plan.gather_bytes


def test_shares_cover_a_batch_and_weigh_one():
    replicas = [Replicas((4, 5, 6), rank) for rank in (4, 5, 6)]
    shares = [torch.arange(8)[each.share(8)] for each in replicas]
    assert torch.equal(torch.cat(shares), torch.arange(8))
    assert sum(replicas[0].weight(8, rank) for rank in (0, 1, 2)) == pytest.approx(1)
    assert [each.is_first for each in replicas] == [True, False, False]


@pytest.mark.parametrize("how", [["--parts.replicas=2"], ["--schedule.mode=end_to_end", "--finetune.parallel=ddp"]])
def test_workers_that_share_batches_of_other_images_are_told(tmp_path, launch, how):
    """Each loads its own: one that is given others would train on other batches, without a word."""
    options = [f"--run.dir={tmp_path / 'run'}", "--model.num_blocks=2", "--model.width=8", "--parts.num=2", *how]
    process = launch(2, *options, entry="tests.training.programs.other_images:main")
    output = finish(process)
    (said,) = errors_in(output)
    assert process.returncode == 1 and "worker 1" in said and "not those of worker 0" in said, output
