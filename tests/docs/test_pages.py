"""The code in README.md and in the pages, executed as it is written; trainings are made small (tests/docs/blocks.py)."""

import json
from pathlib import Path

import pytest
from PIL import Image

import pipeflow
from pipeflow.config import Config
from pipeflow.data import dead_leaves
from tests.docs.blocks import blocks, run_page

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
    pipeflow.train(Config.from_dict({
        "run": {"dir": "runs/quickstart", "device": "cpu"}, "data": {"num_train": 64, "num_test": 32},
        "model": {"width": 8}, "optim": {"batch_size": 32}, "schedule": {"local_epochs": 1, "finetune_epochs": 1},
    }))  # fmt: skip
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
