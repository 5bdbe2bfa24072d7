"""The commands of docs/data.md, as they are written there, on grey digits and on photos of several sizes."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import pipeflow
from pipeflow.cli import main
from pipeflow.config import load, parse_arguments
from pipeflow.rundir.records import Summary

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
SMALL = [
    "--model.width=4", "--model.num_steps=1", "--parts.split=blocks", "--optim.batch_size=8", "--schedule.local_epochs=1",
    "--schedule.finetune_epochs=1", "--run.figures=false", "--run.device=cpu",
]  # fmt: skip


def train_as(words: str, *options: str, run_dir: str = "run") -> Summary:
    """Trains as the page's `pipeflow train` with these words in it does, but for options of a small run."""
    (found,) = [line for line in re.findall(r"^    pipeflow train (.*)$", PAGE, re.MULTILINE) if words in line]
    return pipeflow.train(load(*parse_arguments([*found.split(), *SMALL, f"--run.dir={run_dir}", *options])))


def draw_digits(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey images of 28x28 with a digit somewhere, and the digits."""
    rng = np.random.default_rng(0)
    digits = rng.integers(0, 10, num)
    images = np.empty((num, 28, 28), np.uint8)
    for index, digit in enumerate(digits):
        image = Image.new("L", (28, 28))
        ImageDraw.Draw(image).text(tuple(rng.integers(6, 14, 2).tolist()), str(digit), fill=255)
        images[index] = image
    return images, digits


def draw_photos(folder: Path) -> None:
    """Images in colour of several sizes, none below 64x64, in folders of two classes."""
    rng = np.random.default_rng(0)
    for index in range(40):
        width, height = rng.integers(64, 130, 2).tolist()
        path = folder / ("sea", "sky")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = Image.fromarray(rng.integers(0, 256, (2, 2, 3), np.uint8))
        colours.resize((width, height), Image.Resampling.BILINEAR).save(path)


def test_digits_in_an_npz(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images, digits = draw_digits(60)
    np.savez("digits.npz", x_train=images[:48], y_train=digits[:48], x_test=images[48:], y_test=digits[48:])
    train_as("digits.npz")
    said = capsys.readouterr().out
    assert "get one channel: [1, 28, 28]" in said and "padded to 32x32" in said
    assert main(["evaluate", "run"]) == 0
    assert "on 12 images (cpu); summary.json: the same to the last bit" in capsys.readouterr().out
    assert main(["sample", "run", "--num", "1", "--out", "one.png"]) == 0
    assert Image.open("one.png").size == (3 * 28, 3 * 28)


def test_photos_of_several_sizes_without_test_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw_photos(tmp_path / "photos")
    first = train_as("photos/ --data.test_fraction")
    said = capsys.readouterr().out
    assert all(words in said for words in ("data.resize: ", "data.crop: ", "4 of 40 are held out as test images"))
    again = train_as("photos/ --data.test_fraction", "--run.seed=2", run_dir="again")
    assert again.data == first.data, "the same images are held out, whatever the seed"
    assert pipeflow.load_flow("run", device="cpu").shape == (3, 64, 64)
    assert main(["encode", "run", "photos/sea/0.png", "--out", "latents.safetensors"]) == 0
