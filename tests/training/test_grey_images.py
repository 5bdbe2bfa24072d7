"""Training on grey images: one channel from the files to the samples, and bits/dim that compare with others'."""

import numpy as np
import pytest
from PIL import Image

import pipeflow
from pipeflow.plan.plan import make_plan
from pipeflow.use.evaluate import evaluate


@pytest.fixture
def config(tmp_path):
    """A training on uniform grey noise, which nothing can store in less than 8 bits a pixel."""
    rng = np.random.default_rng(0)
    for part, num in (("train", 128), ("test", 64)):
        (tmp_path / "noise" / part).mkdir(parents=True)
        for index in range(num):
            pixels = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "noise" / part / f"{index}.png")

    def make(**data) -> pipeflow.Config:
        return pipeflow.Config.from_dict({
            "run": {"dir": str(tmp_path / "run"), "device": "cpu", "figures": False},
            "data": {"name": "images", "path": str(tmp_path / "noise"), **data},
            "model": {"num_blocks": 1, "num_steps": 2, "width": 8},
            "parts": {"split": "balanced", "num": 2},
            "schedule": {"local_epochs": 1, "finetune_epochs": 1},
        })  # fmt: skip

    return make


def test_grey_noise_takes_eight_bits(config, tmp_path, capsys):
    assert make_plan(config()).flow.shape == (1, 8, 8)
    summary = pipeflow.train(config())
    assert 8 < summary.test_bpd < 9 and "data.channels" not in capsys.readouterr().out
    assert Image.open(tmp_path / "run" / "samples.png").mode == "L"
    assert evaluate(tmp_path / "run").test_bpd == summary.test_bpd


def test_grey_that_becomes_rgb_is_said_once(config, capsys):
    summary = pipeflow.train(config(channels=3))
    assert summary.test_bpd > 0
    assert capsys.readouterr().out.count("data.channels 3: 192 of 192 images are grey and become RGB") == 1
