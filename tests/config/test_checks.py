"""Options that do not agree with each other, with the flow, or with the number of workers."""

import pytest

from pipeflow.config import Config
from pipeflow.config.checks import check_batch_size
from tests.config.errors import message_of, refused


@pytest.mark.parametrize(
    "name, bad, good",
    [
        ("data.name", "cifar100", "module:function"),
        ("data.name", "a:b:c", "cifar10"),
        ("data.name", ":", "cifar10"),
        ("model.name", "realnvp", "package.module:function"),
        ("model.name", "module:", "glow"),
    ],
)
def test_names_of_data_and_models(name, bad, good):
    assert refused(name, bad).startswith(f"{name}: expected ")
    section, _, key = name.partition(".")
    Config.from_dict({section: {key: good}})


def test_nothing_to_train():
    message = message_of(Config.from_dict, {"schedule": {"local_epochs": 0, "finetune_epochs": 0}})
    assert "schedule.local_epochs" in message and "schedule.finetune_epochs" in message


def test_images_need_a_path():
    assert refused("data.name", "images").startswith("data.path: ")
    Config.from_dict({"data": {"name": "images", "path": "photos.zip"}})


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_has_from_one_to_all_images(batch_size):
    message = message_of(check_batch_size, batch_size, 10, "noise")
    assert (
        message
        == f"optim.batch_size is {batch_size}, but there are 10 training images (noise): it must be from 1 to 10."
    )
    check_batch_size(10, 10, "noise")


@pytest.mark.parametrize(
    "parts, num_parts",
    [
        ({"split": "across", "num": 1}, 1),
        ({"split": "across", "num": 4}, 4),
        ({"split": "balanced", "num": 7}, 7),
        ({"split": "blocks", "num": 3}, 3),
        ({"split": "blocks", "num": None}, 3),
        ({"split": ["a.b", "c.d"], "num": None}, 3),
        ({"split": ["a.b", "c.d"], "num": 3}, 3),
    ],
)
def test_number_of_parts(parts, num_parts):
    assert Config.from_dict({"parts": parts}).num_parts == num_parts


@pytest.mark.parametrize(
    "sections, parts",
    [
        ({"parts": {"split": "blocks", "num": 2}}, ["parts.num: 2", "gives 3 parts", "set parts.num to 3 or null"]),
        ({"parts": {"split": ["a.b"], "num": 3}}, ["parts.num: 3", "a.b", "gives 2 parts"]),
        ({"parts": {"num": 5}}, ["parts.num: 5 parts across blocks need 4 blocks", "model.num_blocks is 3"]),
        ({"model": {"num_blocks": 1}}, ["parts.num: 3 parts across", "at most 2 parts", "balanced"]),
        ({"parts": {"num": None}}, ["parts.num: a split 'across' needs"]),
        ({"parts": {"split": "halves"}}, ["parts.split: expected blocks, across, balanced", "'halves'"]),
        ({"optim": {"part_lr": [1, 2]}}, ["optim.part_lr: 2 rates", "for 3 parts"]),
        ({"optim": {"part_lr": "1e-3"}}, ["optim.part_lr: 1 rates (0.001)"]),
    ],
)
def test_parts_that_do_not_agree(sections, parts):
    message = message_of(Config.from_dict, sections)
    assert all(part in message for part in parts), message


def test_more_workers_than_parts():
    Config().check_world_size(1)
    Config().check_world_size(3)
    message = message_of(Config().check_world_size, 4)
    assert "4 workers for 3 parts" in message and "--nproc_per_node=3" in message
    message = message_of(Config.from_dict({"parts": {"split": ["a.b"], "num": None}}).check_world_size, 3)
    assert "parts.split a.b, parts.num null" in message


def test_only_the_flow_tells_how_many_blocks_it_has():
    sections = {"model": {"name": "mine:flow"}, "parts": {"split": "blocks", "num": None}, "optim": {"part_lr": [1, 2]}}
    config = Config.from_dict(sections)
    assert config.num_parts is None
    config.check_world_size(100)
    config.check_world_size(2, num_parts=2)
    assert "3 workers for 2 parts" in message_of(config.check_world_size, 3, 2)
    assert "2 rates (1.0,2.0) for 3 parts" in message_of(config.check_world_size, 2, 3)


@pytest.mark.parametrize("schedule", [{"mode": "end_to_end"}, {"local_epochs": 0}])
def test_data_parallel_end_to_end_takes_any_number_of_workers(schedule):
    Config.from_dict({"schedule": schedule, "finetune": {"parallel": "ddp"}}).check_world_size(8)
    for sections in ({"schedule": schedule}, {"finetune": {"parallel": "ddp"}}):
        assert "8 workers for 3 parts" in message_of(Config.from_dict(sections).check_world_size, 8)


def test_more_data_parallel_workers_than_images_are_refused_before_the_local_epochs():
    sections = {"parts": {"num": 3, "replicas": 2}, "optim": {"batch_size": 5}, "finetune": {"parallel": "ddp"}}
    message = message_of(Config.from_dict(sections).check_world_size, 6)
    assert "finetune.parallel: ddp" in message and "5 images" in message and "6 workers" in message
    Config.from_dict({**sections, "schedule": {"finetune_epochs": 0}}).check_world_size(6)
