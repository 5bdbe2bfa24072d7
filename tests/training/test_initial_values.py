"""Initial values from data: before the run, and again before a part's first turn behind others'."""

import itertools

import pytest
import torch

from pipeflow import load_flow, train
from pipeflow.data import Batches, load_data
from pipeflow.errors import Preempted
from pipeflow.rundir.saved_flow import open_flow
from tests.small_runs import checkpoint_tensors, small_config

FIRST_NORM = "blocks.0.steps.1.actnorm"
"""Of the second part."""
STILL = [0.05, 1e-12, 1e-12]
"""Rates by which the first part moves and the others stay where they begin."""


def config_of(folder, mode, ema=0.0, **sections):
    local = {
        "schedule": {"mode": mode, "local_epochs": 3, "finetune_epochs": 0},
        "parts": {"split": "across", "num": 3},
    }
    optim = {"part_lr": STILL, "warmup_steps": 0, "ema": ema}
    return small_config(folder, **{**local, "optim": {"batch_size": 32, **optim}, **sections})


def spread(flow, config) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the channels behind the second part's first ActNorm, of the images it is given."""
    images = Batches(load_data(config.data), config.run.seed, config.optim.batch_size, config.data.flip).initial()
    with torch.no_grad():
        for name, layer in flow.named_layers():
            if FIRST_NORM.startswith(f"{name}."):
                images, _ = layer.actnorm(images)
                return images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3), correction=0)
            images = layer(images)[0]
    raise AssertionError("there is no such layer")


@pytest.mark.parametrize("latents", ["trained", "averaged"])
@pytest.mark.parametrize("mode", ["sequential", "alternate"])
def test_a_part_begins_on_what_it_gets_by_its_turn(tmp_path, mode, latents):
    """The flow that is loaded has the averaged weights, where there are any."""
    parts = {"split": "across", "num": 3, "latents": latents}
    config = config_of(tmp_path, mode, ema=0.9 if latents == "averaged" else 0.0, parts=parts)
    train(config)
    flow = load_flow(tmp_path).flow
    mean, deviation = spread(flow, config)
    assert mean.abs().max() < 1e-3 and (deviation - 1).abs().max() < 1e-3


def test_parts_that_begin_together_keep_the_values_from_before_the_run(tmp_path):
    """The first part's training moves the latents: what holds for turns does not hold by itself."""
    config = config_of(tmp_path, "concurrent")
    train(config)
    mean, deviation = spread(load_flow(tmp_path).flow, config)
    assert mean.abs().max() > 0.01 or (deviation - 1).abs().max() > 0.01


def test_averages_begin_there_too(tmp_path):
    train(config_of(tmp_path, "sequential", ema=0.9))
    tensors = checkpoint_tensors(tmp_path)
    for name in ("bias", "log_scale"):
        trained, average = (tensors[f"epoch-000003 {kind}/{FIRST_NORM}.{name}"] for kind in ("model", "ema"))
        assert torch.allclose(trained, average, atol=1e-6)


def test_a_flow_that_is_trained_already_keeps_its_values(tmp_path):
    """`model.init` brings layers whose flags say that their values are no longer to be taken from data."""
    train(config_of(tmp_path / "first", "concurrent"))
    before = open_flow(tmp_path / "first").flow.state_dict()
    train(config_of(tmp_path / "second", "sequential", model={"init": str(tmp_path / "first")}))
    after = open_flow(tmp_path / "second").flow.state_dict()
    for name in ("bias", "log_scale"):
        assert torch.allclose(after[f"{FIRST_NORM}.{name}"], before[f"{FIRST_NORM}.{name}"], atol=1e-6)


def test_flags_tell_whose_turn_has_come_and_all_have_once_the_whole_flow_trains(tmp_path):
    schedule = {"mode": "sequential", "local_epochs": 3, "finetune_epochs": 1}
    config = config_of(tmp_path, "sequential", schedule=schedule)
    train(config)
    tensors = checkpoint_tensors(tmp_path)
    for epoch, open_parts in ((1, {1, 2}), (2, {2}), (3, set()), (4, set())):
        pending = [
            name.removeprefix(f"epoch-00000{epoch} model/")
            for name, value in tensors.items()
            if name.startswith(f"epoch-00000{epoch} model/") and name.endswith(".initialized") and not value
        ]
        found = {1 if name.startswith(("blocks.0.steps.1", "blocks.1.steps.0")) else 2 for name in pending}
        assert found == open_parts


def test_what_had_no_turn_is_final_once_the_whole_flow_trains(tmp_path):
    """A run is stopped while parts wait for their turns, and goes on end to end."""
    told = []
    with pytest.raises(Preempted):
        train(config_of(tmp_path, "sequential"), report=told.append, stop=lambda: bool(told))
    assert not open_flow(tmp_path).flow.state_dict()[f"{FIRST_NORM}.initialized"]
    train(config_of(tmp_path, "sequential", schedule={"mode": "sequential", "local_epochs": 1, "finetune_epochs": 1}))
    flags = [value for name, value in open_flow(tmp_path).flow.state_dict().items() if name.endswith(".initialized")]
    assert flags and all(flags)


@pytest.mark.parametrize("mode, local_epochs", [("alternate", 4), ("concurrent", 3)])
def test_another_schedule_begins_on_what_parts_get_by_its_turns(tmp_path, mode, local_epochs):
    """A run is stopped while parts wait for their turns, which come otherwise: of 4 epochs the first is the last part's."""
    told = []
    with pytest.raises(Preempted):
        train(config_of(tmp_path, "alternate"), report=told.append, stop=lambda: bool(told))
    schedule = {"mode": mode, "local_epochs": local_epochs, "finetune_epochs": 0}
    train(config_of(tmp_path, mode, schedule=schedule))
    last = f"epoch-00000{local_epochs} model/"
    flags = {name: value for name, value in checkpoint_tensors(tmp_path).items() if name.endswith(".initialized")}
    assert any(name.startswith(last) for name in flags)
    assert all(value for name, value in flags.items() if name.startswith(last)), "before the whole flow is put together"


def test_a_run_that_is_stopped_inside_its_turn_keeps_its_values(tmp_path):
    """The part has had no update yet, but the epoch has begun: what was taken from data is in the checkpoint."""
    whole, stopped = (config_of(tmp_path / name, "alternate", schedule=TURNS) for name in ("whole", "stopped"))
    train(whole)
    told, asked = [], itertools.count()
    with pytest.raises(Preempted, match="epoch-000001-step-000001"):
        train(stopped, report=told.append, stop=lambda: bool(told) and next(asked) == 1)
    train(stopped)
    expected, found = checkpoint_tensors(tmp_path / "whole"), checkpoint_tensors(tmp_path / "stopped")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


TURNS = {"mode": "alternate", "alternate_every": "5 steps", "local_epochs": 5, "finetune_epochs": 0}
"""A turn ends inside each epoch of three batches: a part's first epoch begins without it."""
