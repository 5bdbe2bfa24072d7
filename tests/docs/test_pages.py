"""The code in README.md and in the pages, executed as it is written; trainings are made small (tests/docs/blocks.py)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import pipeflow
from pipeflow import ImageData
from pipeflow.config import Config
from pipeflow.data import dead_leaves
from tests.docs.blocks import blocks, run_page

SMALL = Config.from_dict({
    "data": {"num_train": 40, "num_test": 20}, "model": {"width": 8}, "optim": {"batch_size": 20},
    "schedule": {"local_epochs": 1, "finetune_epochs": 1}, "run": {"device": "cpu"},
})  # fmt: skip
README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder, which the page is read in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def quickstart(folder) -> Path:
    """A finished run in runs/quickstart, and two pictures."""
    for index, image in enumerate(dead_leaves(2, seed=1)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{'ab'[index]}.png")
    pipeflow.train(Config.from_dict({**SMALL.to_dict(), "run": {"dir": "runs/quickstart"}}))
    return folder / "runs/quickstart"


def test_the_readme_is_short():
    assert README.count("\n") <= 150
    (example,) = [block.code for block in blocks("README.md") if block.language == "python"]
    assert example.count("\n") <= 15


@pytest.mark.slow
def test_the_readme(folder, capsys):
    run_page("README.md", folder)
    assert 4 < float(capsys.readouterr().out.splitlines()[-1].split()[0]) < 8, "bits/dim"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_getting_started(folder):
    said = run_page("docs/start.md", folder)
    assert said.count("done: test ") == 2
    assert len(list((folder / "photos").iterdir())) == 1500
    assert (folder / "runs/photos/samples_t0.7_seed0.png").stat().st_size > 500


@pytest.mark.slow
def test_options(folder):
    said = run_page("docs/options.md", folder)
    assert "across3_lr1e-5" in said and "60 alternate + 30 finetune" in said
    assert (folder / "mine.yaml").exists() and (folder / "runs/mine/summary.json").exists()


@pytest.mark.slow
def test_looking_at_runs(quickstart, folder):
    shutil.copytree(quickstart, folder / "runs/again")
    run_page("docs/report.md", folder)
    assert "2 runs" in (folder / "runs/report.html").read_text()
    assert [run["num_epochs"] for run in json.loads((folder / "runs.json").read_text())] == [2, 2]
    assert (folder / "epochs.csv").read_text().count("\n") == 5


@pytest.mark.slow
def test_using_a_trained_flow(quickstart, folder):
    said = run_page("docs/use.md", folder)
    assert "the same to the last bit" in said
    assert all((folder / name).stat().st_size > 500 for name in ("latents.safetensors", "way.png"))


@pytest.mark.slow
def test_your_own_flow(folder, capsys):
    run_page("docs/own_flow.md", folder)
    assert "torch.Size([2, 3, 8, 8])" in capsys.readouterr().out
    assert (folder / "runs/mine_too/model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_several_workers(folder):
    run_page("docs/workers.md", folder)
    one, three = (json.loads((folder / f"runs/{name}/summary.json").read_text()) for name in ("one", "three"))
    assert (one["world_size"], three["world_size"]) == (1, 3) and one["test_bpd"] == three["test_bpd"]


@pytest.mark.slow
def test_cuts_schedules_and_speed(folder):
    said = run_page("docs/cuts.md", folder)
    assert "alternate" in said and "1f1b" in said.lower()


@pytest.mark.slow
def test_data(folder):
    rng = np.random.default_rng(0)
    np.save("table.npy", rng.normal(size=(1100, 5)))
    images = [rng.integers(0, 256, (num, 3, 16, 16), dtype=np.uint8) for num in (48, 32)]
    for name, array in zip(("train.npy", "test.npy"), images):
        np.save(name, array)
    labels = [np.arange(len(array)) % 3 for array in images]
    sets = [TensorDataset(*map(torch.from_numpy, pair)) for pair in zip(images, labels)]
    given = dict(zip(("train_images", "test_images", "train_labels", "test_labels"), (*images, *labels)))
    settings = {
        **SMALL.to_dict(),
        "run": {"dir": "runs/given", "resume": "never"},
        "model": {"num_blocks": 2, "width": 8},
    }
    said = run_page(
        "docs/data.md", folder, config=Config.from_dict(settings), train_set=sets[0], test_set=sets[1], **given
    )
    assert "nats" in said and len(list((folder / "runs").glob("given*"))) == 5


@pytest.mark.slow
def test_labels(folder):
    images = dead_leaves(60, seed=1)
    labels = torch.arange(60) % 10
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    settings = {**SMALL.to_dict(), "run": {"dir": "runs/small_conditional3"}, "model": {"width": 8, "num_classes": 10}}
    data = ImageData(images[:40], images[40:], "ten", (), labels[:40], labels[40:], names)
    pipeflow.train(Config.from_dict(settings), data=data)
    run_page("docs/labels.md", folder, images=images, labels=labels, x=(images + 0.5) / 256 - 0.5)


@pytest.mark.slow
def test_flows_of_others(folder):
    run_page("docs/flows_of_others.md", folder)
    assert (folder / "runs/normflows/model.safetensors").exists()
