"""Any number of processes is the same run: parameters, optimizer states, losses and bits/dim, bit for bit (CPU)."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeflow import Config, load_flow, train
from pipeflow.data import load_data
from pipeflow.data.random import generator
from pipeflow.plan.plan import make_plan
from pipeflow.report.costs import bytes_by_phase
from pipeflow.rundir.reading import read_config, read_run
from pipeflow.training.schedule import training_macs
from pipeflow.use.sample import grid, to_data
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
    "concurrent_averaged": {"mode": "concurrent"},
    "alternate_averaged": {"mode": "alternate", "alternate_every": "2 steps"},
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
    "concurrent_averaged": {"parts": {"latents": "averaged"}, "memory": {"activations": "invert", "micro_batches": 2}},
    "alternate_averaged": {"parts": {"latents": "averaged"}},
    "labels": {
        "data": {"name": "tests.labelled:images"},
        "model": {"name": "tests.labelled:shifted_glow"},
        "parts": {"split": ["blocks.0.steps.1", "blocks.1.squeeze"]},
        "memory": {"micro_batches": 2},
    },
}

TWO_WORKERS = ["alternate_steps", "concurrent_averaged", "concurrent_autoregressive", "labels"]
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
    assert samples_of(runs[1] / name) == samples_of(runs[num_workers] / name)


def samples_of(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run_dir / "samples").iterdir()}


@pytest.mark.parametrize("num_workers", [1, 3])
def test_samples_of_the_last_epoch_are_those_of_the_model(runs, num_workers):
    """On three workers they come through all parts; with the averaged weights, beside the first test images."""
    folder = runs[num_workers] / "sequential"
    flow, data = load_flow(folder, device="cpu").flow, load_data(read_config(folder).data)
    samples = to_data(flow.sample(16, generator(0, "samples"), 0.7), flow.values)
    num_epochs = read_run(folder).summary.num_epochs
    assert sorted(samples_of(folder)) == ["data.png", *(f"epoch-{epoch:06d}.png" for epoch in range(num_epochs))]
    for name, images in ((f"epoch-{num_epochs - 1:06d}", samples), ("data", data.test[:16])):
        with Image.open(folder / "samples" / f"{name}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(grid(images, columns=4, scale=1)))


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


def test_the_latents_of_averaged_weights_are_another_run_behind_the_first_part(runs):
    plain, averaged = learned(runs[1] / "concurrent_invert"), learned(runs[1] / "concurrent_averaged")
    assert abs(plain[0]["train_loss"]["0"] - averaged[0]["train_loss"]["0"]) < 1e-4, "nothing is in front of it"
    assert abs(plain[0]["train_loss"]["1"] - averaged[0]["train_loss"]["1"]) > 1e-3
    for name in ("concurrent", "concurrent_averaged", "alternate_averaged"):
        summary, plan = read_run(runs[3] / name).summary, make_plan(config_of(runs[3], name))
        macs = [training_macs(phase, plan.parts, 32) for phase in plan.phases]
        assert macs == [epoch.macs for epoch in summary.epochs], name


def test_labels_are_sent_once_to_the_worker_whose_parts_take_them(runs):
    """Those of the first part are its images'; with two workers the other has both parts behind it."""
    for num_workers, sent in ((1, 0), (2, 8 * (96 + 40)), (3, 8 * (96 + 40))):
        summary = read_run(runs[num_workers] / "labels").summary
        assert summary.bytes.labels == sent and summary.given_label.num_classes == 3
        phases = bytes_by_phase(summary)
        assert phases.get("outside epochs", {}).get("labels", 0) == sent
        assert sum(counts.total() for counts in phases.values()) == summary.bytes.total
    assert make_plan(config_of(runs[3], "labels")).label_bytes == sent


def test_each_class_learns(runs):
    tensors = checkpoint_tensors(runs[1] / "labels")
    before, after = (tensors[f"epoch-00000{epoch} model/prior.embedding"] for epoch in (1, 2))
    assert before.abs().sum(dim=1).min() > 0 and ((after - before).abs().sum(dim=1) > 0).all()
