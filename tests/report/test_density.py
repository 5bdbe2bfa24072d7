"""The picture that a flow on the plane leaves."""

from pathlib import Path

import numpy as np
import pytest

import pipeflow
from pipeflow.config import Config, load
from pipeflow.flow import build_flow
from pipeflow.report.density import density_of_run

CONFIGS = Path(__file__).parents[2] / "configs"


def two_moons(folder: Path, **options: str) -> Config:
    return load(str(CONFIGS / "two_moons.yaml"), {"run.dir": str(folder), "run.device": "cpu", **options})


SHORT = {
    "schedule.local_epochs": "1", "schedule.finetune_epochs": "1", "model.width": "8", "run.figures": "false",
    "data.num_train": "512", "data.num_test": "256", "checkpoint.every_epochs": "9",
}  # fmt: skip


def test_data_samples_and_density_stand_side_by_side(tmp_path):
    summary = pipeflow.train(two_moons(tmp_path / "run", **SHORT))
    assert len(summary.parts) == 3 and summary.test_bpd < summary.initial_bpd
    figure = density_of_run(tmp_path / "run")
    figure.canvas.draw()
    data, samples, density = figure.axes
    nats = 2 * np.log(2) * summary.test_bpd
    assert density.get_title("left") == f"density, {nats:.3f} nats a point"
    assert [len(axes.collections[0].get_offsets()) for axes in (data, samples)] == [256, 256]
    (left, right), (bottom, top) = data.get_xlim(), data.get_ylim()
    shown = np.asarray(density.images[0].get_array())
    pixel = (right - left) * (top - bottom) / shown.size
    assert 0.9 < shown.sum() * pixel < 1.01  # a density on a square that holds nearly all of it
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    peak = np.array([[left + (column + 0.5) * (right - left) / 200, bottom + (row + 0.5) * (top - bottom) / 200]])
    distance = np.linalg.norm(data.collections[0].get_offsets() - peak, axis=1)
    assert (distance < 0.5).sum() > 10  # rows are y and columns are x


def test_points_and_samples_have_the_colours_of_their_classes(tmp_path):
    """The density is that of both classes together."""
    summary = pipeflow.train(two_moons(tmp_path / "run", **SHORT, **{"model.num_classes": "2"}))
    data, samples, density = density_of_run(tmp_path / "run").axes
    nats = 2 * np.log(2) * summary.test_bpd
    assert density.get_title("left") == f"density, {nats:.3f} nats a point given the label"
    colours = [axes.collections[0].get_array() for axes in (data, samples)]
    assert np.array_equal(*colours) and set(colours[0]) == {0, 1}
    (left, right), (bottom, top) = data.get_xlim(), data.get_ylim()
    shown = np.asarray(density.images[0].get_array())
    assert 0.9 < shown.sum() * (right - left) * (top - bottom) / shown.size < 1.01


def test_a_flow_given_from_python_cannot_be_drawn_and_that_is_said(tmp_path, capsys):
    config = two_moons(tmp_path / "run", **{**SHORT, "schedule.local_epochs": "0"})
    pipeflow.train(config, flow=build_flow(config, (2,)))
    assert density_of_run(tmp_path / "run") is None
    assert "no density.png: " in capsys.readouterr().err


@pytest.mark.slow
def test_two_moons_are_learned_and_drawn(tmp_path):
    """The moons' entropy is about 0.73 nats a point; a Gaussian is 1.9 from them."""
    summary = pipeflow.train(two_moons(tmp_path / "run"))
    assert 0.7 < 2 * np.log(2) * summary.test_bpd < 1.0
    assert summary.exit_bpd[2] < summary.exit_bpd[0]
    assert (tmp_path / "run" / "density.png").stat().st_size > 10_000
