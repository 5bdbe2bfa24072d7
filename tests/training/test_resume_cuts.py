"""A run in parts goes on with other parts, cuts and heads."""

import dataclasses
import json
import shutil

import pytest
import torch

from pipeflow import train
from pipeflow.errors import Preempted
from tests.small_runs import SMALL, assert_same_tensors, checkpoint_tensors, small_config, train_in_turn
from tests.training.interrupted import SCHEDULE, as_if_interrupted_after


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that was never interrupted, with a checkpoint after each of its 5 epochs."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(small_config(folder, schedule=SCHEDULE))
    return folder


@pytest.mark.parametrize(
    "parts",
    [{"split": "balanced", "num": 1}, {"split": "across", "num": 2}, {"split": "balanced", "num": 4}],
    ids=["1 part", "2 parts", "4 parts"],
)
def test_another_cut_goes_on_where_the_run_was(undisturbed, tmp_path, parts):
    """Epochs done still count; layers, moments and counts follow their names; heads of cuts that stay are kept."""
    folder = as_if_interrupted_after(2, undisturbed, tmp_path / "run")
    summary = train(small_config(folder, parts=parts, schedule=SCHEDULE, run={"resume": "must"}))
    assert [epoch.epoch for epoch in summary.epochs] == [0, 1, 2, 3, 4]
    assert summary.epochs[:2] == train(small_config(undisturbed, schedule=SCHEDULE)).epochs[:2]
    assert len(summary.parts) == parts["num"]
    # and back to three parts, from a checkpoint of the other cut
    shutil.rmtree(folder / "checkpoints/epoch-000004")
    shutil.rmtree(folder / "checkpoints/epoch-000005")
    (folder / "summary.json").unlink()
    summary = train(small_config(folder, schedule=SCHEDULE))
    assert len(summary.parts) == 3 and summary.num_epochs == 5
    assert summary.test_bpd < summary.initial_bpd


def test_heads_whose_cut_survives_are_kept_and_others_start_anew(undisturbed, tmp_path):
    folder = as_if_interrupted_after(2, undisturbed, tmp_path / "run")
    kept, gone = SMALL_CUTS
    old = checkpoint_tensors(undisturbed)[f"epoch-000002 model/heads.{kept}.log_scale"]
    cuts = [kept, "blocks.1.squeeze"]
    frozen = {**SCHEDULE, "mode": "sequential", "local_epochs": 3}  # epoch 2 trains the first part of three no more
    train(small_config(folder, parts={"split": cuts}, schedule=frozen))
    new = checkpoint_tensors(folder)
    assert torch.equal(new[f"epoch-000003 model/heads.{kept}.log_scale"], old)
    assert f"epoch-000003 model/heads.{gone}.log_scale" not in new
    assert torch.equal(new["epoch-000003 model/heads.blocks.1.squeeze.log_scale"], torch.zeros(6))


@pytest.mark.parametrize("was", ["gaussian", "autoregressive"])
def test_heads_of_another_kind_begin_anew(tmp_path, was):
    told, parts = [], {"split": "across", "num": 3}
    with pytest.raises(Preempted):
        train(small_config(tmp_path, parts={**parts, "head": was}), report=told.append, stop=lambda: bool(told))
    now = {"gaussian": {"head": "autoregressive", "head_depth": 1}, "autoregressive": {"head": "gaussian"}}[was]
    summary = train(small_config(tmp_path, parts={**parts, **now}))
    assert summary.num_epochs == 3 and summary.test_bpd < summary.epochs[0].test_bpd
    names = {
        name.split("/")[1] for name in checkpoint_tensors(tmp_path) if name.startswith("epoch-000002 model/heads.")
    }
    assert ("heads.blocks.0.steps.1.mixing" in names) == (was == "gaussian")


def test_options_of_heads_that_a_run_does_not_have_may_differ(tmp_path):
    """A folder of a version in which hidden layers had another default, say."""
    summary = train(small_config(tmp_path, parts={"num": 3, "head_depth": 1}))
    assert train(small_config(tmp_path, parts={"num": 3, "head_width": 8})) == summary


SMALL_CUTS = ["blocks.0.steps.1", "blocks.1.steps.1"]
assert SMALL["model"] == {"num_blocks": 2, "num_steps": 2, "width": 8}


def test_timed_cuts_stay_when_a_run_is_resumed(tmp_path, monkeypatch):
    """Whatever the clock would say the next time; and all workers cut where rank 0 measured."""
    from pipeflow.training import opening

    config = small_config(
        tmp_path / "run",
        parts={"split": "balanced", "num": 2, "balance": "time"},
        schedule=SCHEDULE,
        optim={"ema": 0.0},
    )
    train_in_turn(2, [config])
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    folder = as_if_interrupted_after(2, tmp_path / "run", tmp_path / "resumed")
    monkeypatch.setattr(opening, "layer_seconds", lambda flow, *_: [100.0] + [1.0] * (len(flow.names) - 1))
    resumed = train(dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(folder))))
    assert [list(part.layers) for part in resumed.parts] == [part["layers"] for part in summary["parts"]]
    assert_same_tensors(tmp_path / "run", folder)


def test_cuts_that_nobody_timed_do_not_pass_for_timed_ones(tmp_path, monkeypatch):
    """A run that was cut otherwise is timed and cut anew when it is resumed with a timed balance."""
    from pipeflow.training import opening

    schedule = {"mode": "concurrent", "local_epochs": 1, "finetune_epochs": 1}
    config = small_config(tmp_path / "run", parts={"split": "across", "num": 2}, schedule=schedule)
    train(config)
    folder = as_if_interrupted_after(1, tmp_path / "run", tmp_path / "resumed")
    monkeypatch.setattr(opening, "layer_seconds", lambda flow, *_: [100.0] + [1.0] * (len(flow.names) - 1))
    timed = {"split": "balanced", "num": 2, "balance": "time"}
    resumed = train(small_config(folder, parts=timed, schedule={**schedule, "local_epochs": 2}))
    assert resumed.parts[0].layers == ("blocks.0.squeeze", "blocks.0.steps.0")
