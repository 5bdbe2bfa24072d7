"""Kept latents: which epochs keep and use them, what is taken, and the same run however it is spread or resumed."""

import shutil

import pytest
import torch
from small_runs import assert_same_tensors, learned, small_config, train_in_turn

from pipeflow import train
from pipeflow.config import Config, LinkConfig
from pipeflow.errors import ConfigError
from pipeflow.flow import build_flow, cut_names, split_flow
from pipeflow.plan.traffic import phase_link_bytes
from pipeflow.training.draws import Draws
from pipeflow.training.schedule import Schedule

LINK = {"cache_draws": 2}
SCHEDULES = {
    "sequential": {"mode": "sequential", "local_epochs": 12},
    "alternate": {"mode": "alternate", "local_epochs": 12, "alternate_every": "4 epochs"},
}


def draw_epochs(draws: int, **schedule) -> list[int | None]:
    config = Config.from_dict({"schedule": {"finetune_epochs": 1, **schedule}, "link": {"cache_draws": draws}})
    return [phase.draw_epoch for phase in Schedule(config, 3, 5).phases()]


def test_the_first_epochs_of_a_turn_are_kept_and_used_in_turn():
    none = [None] * 4
    for schedule in SCHEDULES.values():
        assert draw_epochs(1, **schedule) == [*none, 4, 4, 4, 4, 8, 8, 8, 8, None]
        assert draw_epochs(2, **schedule) == [*none, 4, 5, 4, 5, 8, 9, 8, 9, None]
        assert draw_epochs(3, **schedule) == [*none, 4, None, None, 4, 8, None, None, 8, None]
        assert draw_epochs(4, **schedule) == [None] * 13
        assert draw_epochs(0, **schedule) == [None] * 13


@pytest.mark.parametrize(
    "schedule", [{"mode": "concurrent"}, {"mode": "alternate", "alternate_every": "3 steps"}, {"mode": "alternate"}]
)
def test_nothing_is_kept_where_no_part_trains_alone_for_epochs(schedule):
    assert set(draw_epochs(1, local_epochs=6, **schedule)) == {None}


def test_a_draw_outlives_epochs_that_neither_keep_nor_use_one():
    """Three draws in turns of four epochs: the first is used in the last, and nothing is computed or sent for it."""
    config = Config.from_dict({"schedule": SCHEDULES["sequential"], "link": {"cache_draws": 3}})
    draws = Draws(config.link, seed=0, num_images=4)
    kept, *between, used = Schedule(config, 3, 1).phases()[4:8]
    assert (kept.draw_epoch, used.draw_epoch, used.uses_draw) == (4, 4, True)
    draws.begin(kept)
    draws.keep(1, 4, 0, torch.ones(4, 2))
    for phase in between:
        draws.begin(phase)
    draws.begin(used)
    assert draws.has(1, 4)
    draws.begin(Schedule(config, 3, 1).phases()[8])
    assert not draws.has(1, 4), "another part's turn"


def test_parts_in_front_rest_and_send_nothing_while_a_draw_is_used():
    config = Config.from_dict({"schedule": SCHEDULES["sequential"], "link": {"cache_draws": 1}})
    kept, used = Schedule(config, 3, 5).phases()[8:10]
    assert [kept.count_running(part) for part in range(3)] == [5, 5, 5]
    assert [used.count_running(part) for part in range(3)] == [0, 0, 5]
    flow = build_flow(config, (3, 32, 32))
    parts = split_flow(flow, cut_names(flow, "across", 3))
    assert phase_link_bytes(used, parts, 64, "float32") == [0, 0]
    assert all(phase_link_bytes(kept, parts, 64, "float32"))


@pytest.mark.parametrize("folder", [None, "files"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_draw_gives_every_latent_once_an_epoch_in_a_new_order(tmp_path, dtype, folder):
    place = None if folder is None else str(tmp_path / folder)
    draws = Draws(LinkConfig(cache_draws=1, cache_dir=place, dtype=dtype), seed=0, num_images=12)
    latents = torch.randn(12, 3, 2, generator=torch.Generator().manual_seed(0))
    if dtype == "bfloat16":
        latents = latents.bfloat16().float()
    for step in range(3):
        draws.keep(1, 5, step, latents[4 * step : 4 * step + 4])
    orders = []
    for epoch in (6, 7):
        taken = torch.cat([draws.take(1, 5, epoch, step, batch_size=4) for step in range(3)])
        order = [int((latents == each).flatten(1).all(1).nonzero()) for each in taken]
        assert sorted(order) == list(range(12))
        orders.append(order)
    assert orders[0] != orders[1]
    assert not place or not list((tmp_path / folder).iterdir()), "files go with the process"


def config_of(folder, name, **link):
    """A run with draws, of the schedule of this name."""
    return small_config(folder, schedule={**SCHEDULES[name], "finetune_epochs": 1}, link={**LINK, **link})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Folders of runs in one process, by schedule."""
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in SCHEDULES}
    for name, folder in folders.items():
        train(config_of(folder, name))
    return folders


def as_it_was_after(epoch, run, folder):
    """A copy of a run as it was when its checkpoint of that epoch was the newest."""
    shutil.copytree(run, folder)
    for checkpoint in folder.glob("checkpoints/epoch-*"):
        if int(checkpoint.name[-6:]) > epoch:
            shutil.rmtree(checkpoint)
    (folder / "summary.json").unlink()
    return folder


def test_three_workers_are_the_same_run_and_go_on_with_one(undisturbed, tmp_path):
    """From the beginning, and from the middle of a turn, where what was kept is gone."""
    configs = []
    for name, folder in undisturbed.items():
        begun = as_it_was_after(7, folder, tmp_path / f"{name}_begun")
        configs += [config_of(tmp_path / name, name), config_of(begun, name)]
    train_in_turn(3, configs)
    for name, folder in undisturbed.items():
        for other in (tmp_path / name, tmp_path / f"{name}_begun"):
            assert_same_tensors(folder, other)
        assert learned(folder) == learned(tmp_path / name)


@pytest.mark.parametrize("epoch", [6, 11])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_resumed_run_computes_its_draws_again(undisturbed, tmp_path, name, epoch):
    """In the middle of turns, by a new process."""
    copy = as_it_was_after(epoch, undisturbed[name], tmp_path / "run")
    train(config_of(copy, name))
    assert_same_tensors(undisturbed[name], copy)


@pytest.mark.parametrize("name", SCHEDULES)
def test_keeping_saves_bytes_and_multiply_adds(undisturbed, tmp_path, name):
    train(config_of(tmp_path / "run", name, cache_draws=0))
    with_draws, without = learned(undisturbed[name]), learned(tmp_path / "run")
    assert sum(with_draws["forward"]) == sum(without["forward"]) / 2
    assert with_draws["train_macs"] < without["train_macs"]
    assert with_draws[5]["train_loss"] == without[5]["train_loss"], "the epochs that keep are as they would be"
    assert with_draws[6]["train_loss"] != without[6]["train_loss"]


def test_more_than_the_bound_is_said_at_the_start(tmp_path):
    config = small_config(tmp_path / "run", schedule=SCHEDULES["sequential"], link={**LINK, "cache_gb": 1e-4})
    with pytest.raises(ConfigError, match=r"link\.cache_draws: 2 draws of 96 latents .*link\.cache_gb allows 0\.0001"):
        train(config)
