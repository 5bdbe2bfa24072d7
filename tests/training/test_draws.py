"""Kept latents: which epochs keep and use them, what is taken, and the same run however it is spread or resumed."""

import pytest
import torch
from small_runs import assert_same_tensors, finish, learned, options, small_config

from pipeflow import train
from pipeflow.config import Config, LinkConfig
from pipeflow.costs import phase_link_bytes
from pipeflow.errors import ConfigError
from pipeflow.flow import build_flow, cut_names, split_flow
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


@pytest.fixture(scope="module", params=SCHEDULES)
def undisturbed(request, tmp_path_factory):
    """A run in one process, and the schedule it followed."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    schedule = {**SCHEDULES[request.param], "finetune_epochs": 1}
    train(small_config(folder, schedule=schedule, link=LINK))
    return folder, schedule


def test_three_workers_are_the_same_run(undisturbed, tmp_path, launch):
    folder, schedule = undisturbed
    process = launch(3, "-m", "pipeflow.launch", *options(small_config(tmp_path / "run", schedule=schedule, link=LINK)))
    output = finish(process)
    assert process.returncode == 0, output
    assert_same_tensors(folder, tmp_path / "run")
    assert learned(folder) == learned(tmp_path / "run")


def test_a_resumed_run_computes_its_draws_again(undisturbed, tmp_path, launch):
    """In the middle of turns, where what was kept is gone: after each of these epochs by a new process."""
    import shutil

    folder, schedule = undisturbed
    for epoch in (6, 7, 11):
        copy = tmp_path / f"run{epoch}"
        shutil.copytree(folder, copy)
        for checkpoint in copy.glob("checkpoints/epoch-*"):
            if int(checkpoint.name[-6:]) > epoch:
                shutil.rmtree(checkpoint)
        (copy / "summary.json").unlink()
        config = small_config(copy, schedule=schedule, link=LINK)
        if epoch == 7:
            process = launch(3, "-m", "pipeflow.launch", *options(config))
            output = finish(process)
            assert process.returncode == 0, output
        else:
            train(config)
        assert_same_tensors(folder, copy)


def test_keeping_saves_bytes_and_multiply_adds(undisturbed, tmp_path):
    folder, schedule = undisturbed
    train(small_config(tmp_path / "run", schedule=schedule))
    with_draws, without = learned(folder), learned(tmp_path / "run")
    assert sum(with_draws["forward"]) == sum(without["forward"]) / 2
    assert with_draws["train_macs"] < without["train_macs"]
    assert with_draws[5]["train_loss"] == without[5]["train_loss"], "the epochs that keep are as they would be"
    assert with_draws[6]["train_loss"] != without[6]["train_loss"]


def test_more_than_the_bound_is_said_at_the_start(tmp_path):
    config = small_config(tmp_path / "run", schedule=SCHEDULES["sequential"], link={**LINK, "cache_gb": 1e-4})
    with pytest.raises(ConfigError, match=r"link\.cache_draws: 2 draws of 96 latents .*link\.cache_gb allows 0\.0001"):
        train(config)
