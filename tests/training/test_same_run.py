"""Any number of processes is the same run: parameters, optimizer states, losses and bits/dim, bit for bit (CPU)."""

from pathlib import Path

import pytest

from pipeflow import Config, train
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
}

TWO_WORKERS = ["sequential", "alternate_steps", "concurrent", "concurrent_autoregressive", "end_to_end"]
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
