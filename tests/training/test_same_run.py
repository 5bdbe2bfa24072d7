"""Any number of processes is the same run: parameters, optimizer states, losses and bits/dim, bit for bit (CPU)."""

from pathlib import Path

import pytest

from pipeflow import Config, train
from pipeflow.plan.plan import make_plan
from pipeflow.report.figures import bytes_by_phase
from pipeflow.rundir.reading import read_run
from tests.small_runs import assert_same_tensors, checkpoint_tensors, learned, small_config, train_in_turn

SCHEDULES = {
    "sequential": {"mode": "sequential", "local_epochs": 3},
    "alternate": {"mode": "alternate"},
    "alternate_steps": {"mode": "alternate", "alternate_every": "2 steps"},
    "concurrent": {"mode": "concurrent"},
    "concurrent_int8": {"mode": "concurrent"},
    "concurrent_reference": {"mode": "concurrent"},
    "concurrent_invert": {"mode": "concurrent"},
    "concurrent_autoregressive": {"mode": "concurrent"},
    "labels": {"mode": "concurrent"},
    "end_to_end": {"mode": "end_to_end"},
}
CHANGED = {
    "concurrent_int8": {"link": {"dtype": "int8"}},
    "concurrent_reference": {"precision": {"step": "reference"}},
    "concurrent_invert": {"memory": {"activations": "invert"}},
    "concurrent_autoregressive": {
        "parts": {"head": "autoregressive", "head_width": 8},
        "memory": {"activations": "recompute", "micro_batches": 2},
        "link": {"dtype": "int8"},
    },
    "labels": {
        "data": {"name": "tests.labelled:images"},
        "model": {"name": "tests.labelled:shifted_glow"},
        "parts": {"split": ["blocks.0.steps.1", "blocks.1.squeeze"]},
        "memory": {"micro_batches": 2},
    },
}

TWO_WORKERS = ["alternate_steps", "concurrent_autoregressive", "labels"]
"""Those that two workers train as well as three."""


def config_of(folder: Path, name: str) -> Config:
    """The configuration of one of them, in a folder of its name."""
    return small_config(folder / name, schedule=SCHEDULES[name], **CHANGED.get(name, {}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[int, Path]:
    """Run folders of all schedules by number of workers."""
    folders = {num: tmp_path_factory.mktemp(f"workers{num}") for num in (1, 2, 3)}
    for num, names in ((2, TWO_WORKERS), (3, SCHEDULES)):
        train_in_turn(num, [config_of(folders[num], name) for name in names])
    for name in SCHEDULES:
        train(config_of(folders[1], name))
    return folders


@pytest.mark.parametrize(
    "name, num_workers", [*((name, 2) for name in TWO_WORKERS), *((name, 3) for name in SCHEDULES)]
)
def test_workers_do_not_change_the_run(runs, name, num_workers):
    assert_same_tensors(runs[1] / name, runs[num_workers] / name)
    assert learned(runs[1] / name) == learned(runs[num_workers] / name)


@pytest.mark.parametrize("name", SCHEDULES)
def test_optimizer_and_averages_are_among_what_is_compared(runs, name):
    sections = {key.split()[1].split("/")[0] for key in checkpoint_tensors(runs[1] / name) if "/" in key}
    assert sections == {"model", "ema", "optim.exp_avg", "optim.exp_avg_sq"}


def test_another_seed_is_another_run(runs, tmp_path):
    train(small_config(tmp_path, run={"seed": 1}, schedule=SCHEDULES["concurrent"]))
    assert learned(runs[1] / "concurrent") != learned(tmp_path)


def test_dithered_bytes_are_another_run_of_a_quarter_of_the_bytes(runs):
    full, bytes_ = learned(runs[1] / "concurrent"), learned(runs[1] / "concurrent_int8")
    assert full[0]["train_loss"]["0"] == bytes_[0]["train_loss"]["0"], "the first part has no link before it"
    assert full[0]["train_loss"]["1"] != bytes_[0]["train_loss"]["1"]
    assert full["initial_bpd"] == bytes_["initial_bpd"], "evaluation is of full latents"
    for four, one in zip(full["forward"], bytes_["forward"]):
        assert four / 4 < one < four / 4 * 1.01


def test_labels_are_sent_once_to_the_worker_whose_parts_take_them(runs):
    """Those of the first part are its images'; with two workers the other has both parts behind it."""
    for num_workers, sent in ((1, 0), (2, 8 * (96 + 40)), (3, 8 * (96 + 40))):
        summary = read_run(runs[num_workers] / "labels").summary
        assert summary.bytes.labels == sent and summary.given_label.num_classes == 3
        phases = bytes_by_phase(summary)
        assert phases.get("outside\nepochs", {}).get("labels", 0) == sent
        assert sum(counts.total() for counts in phases.values()) == summary.bytes.total
    assert make_plan(config_of(runs[3], "labels")).label_bytes == sent


def test_each_class_learns(runs):
    tensors = checkpoint_tensors(runs[1] / "labels")
    before, after = (tensors[f"epoch-00000{epoch} model/prior.embedding"] for epoch in (1, 2))
    assert before.abs().sum(dim=1).min() > 0 and ((after - before).abs().sum(dim=1) > 0).all()
