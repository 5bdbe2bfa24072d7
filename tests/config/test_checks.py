"""Options that do not agree with each other, with the flow, or with the number of workers."""

import re

import pytest

from pipeflow.config import Config
from pipeflow.config.checks import check_batch_size
from tests.config.errors import message_of

PIPELINE = {"finetune": {"parallel": "pipeline"}}
SLICES = {"parallel": "pipeline", "micro_batches": 7}
DDP = {"finetune": {"parallel": "ddp"}}
NAMES = {"parts": {"split": ["a.b"], "num": None}}
END_TO_END = {"schedule": {"mode": "end_to_end"}}


@pytest.mark.parametrize(
    "sections, words",
    [
        ({"data": {"name": "cifar100"}}, "data.name: expected cifar10, images, dead_leaves or module:f.*'cifar100'"),
        ({"data": {"name": "a:b:c"}}, "data.name: expected "),
        ({"data": {"name": ":"}}, "data.name: expected "),
        ({"data": {"name": "images"}}, "data.path: data.name 'images' needs a folder"),
        (
            {"data": {"channels": 1}},
            "data.channels: data.name 'dead_leaves' has its channels: set data.channels to null",
        ),
        ({"model": {"name": "realnvp"}}, "model.name: expected glow or module:function, got 'realnvp'"),
        ({"model": {"name": "module:"}}, "model.name: expected "),
        ({"schedule": {"local_epochs": 0, "finetune_epochs": 0}}, "schedule.local_epochs.*schedule.finetune_epochs"),
        ({"parts": {"split": "blocks", "num": 2}}, "parts.num: 2.*gives 3 parts.*set parts.num to 3 or null"),
        ({"parts": {"split": ["a.b"], "num": 3}}, "parts.num: 3.*a.b.*gives 2 parts"),
        ({"parts": {"num": 5}}, "parts.num: 5 parts across blocks need 4 blocks.*model.num_blocks is 3"),
        ({"model": {"num_blocks": 1}, "parts": {"num": 3}}, "parts.num: 3 parts across.*at most 2 parts.*balanced"),
        (
            {"model": {"num_steps": 1}},
            "parts.split: 'across' cuts in the middle of a block.*num_steps 1.*blocks or balanced",
        ),
        ({"parts": {"split": "halves"}}, "parts.split: expected blocks, across, balanced.*'halves'"),
        (
            {"memory": {"micro_batches": 65}},
            r"micro_batches: a batch of 64 images \(optim.batch_size\) cannot be cut into 65 slices: set .* to 64 or less",
        ),
        (
            {"memory": {"micro_batches": 33}, "parts": {"replicas": 2}},
            r"64 images \(optim.batch_size\) shared by 2 workers \(parts.replicas\) cannot.* 33 slices: .* 32 or less",
        ),
        ({"optim": {"part_lr": [1, 2]}}, "optim.part_lr: 2 rates.*for 3 parts"),
        ({"optim": {"part_lr": "1e-3"}}, r"optim.part_lr: 1 rate \(0.001\)"),
        ({"parts": {"replicas": 2}, "optim": {"batch_size": 1}}, "replicas: 2 workers cannot share a batch of 1 "),
        ({"parts": {"latents": "averaged"}}, "parts.latents: averaged, but .*: set optim.ema, such as 0.99"),
        ({"parts": {"replicas": 2}, **END_TO_END}, "parts.replicas: 2.*finetune.parallel to ddp, or to pipeline"),
        ({"finetune": SLICES}, "finetune.micro_batches: 7 slices cannot share a batch of 64 images.*multiple of 7"),
        ({"finetune": {**SLICES, "micro_batches": 128}}, "finetune.micro_batches: 128 slices cannot share.*64 images"),
        ({**PIPELINE, "parts": {"replicas": 32}}, "4 slices of each of 32 replicas.*64 images.*multiple of 128"),
        ({**PIPELINE, **END_TO_END, "parts": {"num": 5}}, "parts.num: 5 parts across blocks need 4 blocks"),
        ({"finetune": {"gradient_dtype": "int8"}}, "finetune.gradient_dtype: expected one of float32, bfloat16"),
    ],
)
def test_options_that_do_not_agree(sections, words):
    assert re.search(words, message_of(Config.from_dict, sections))


@pytest.mark.parametrize(
    "split, num, num_parts",
    [("across", 1, 1), ("across", 4, 4), ("balanced", 7, 7), ("blocks", 3, 3), ("blocks", None, 3)]
    + [(["a.b", "c.d"], None, 3), (["a.b", "c.d"], 3, 3)],
)
def test_number_of_parts(split, num, num_parts):
    assert Config.from_dict({"parts": {"split": split, "num": num}}).num_parts == num_parts


@pytest.mark.parametrize(
    "sections, most, words",
    [
        ({}, 3, "4 workers for 3 parts.*--nproc_per_node=3"),
        (NAMES, 2, "3 workers for 2 parts.*parts.split a.b, parts.num null"),
        (DDP, 3, "4 workers for 3 parts"),
        (END_TO_END, 3, "4 workers for 3 parts"),
        ({**DDP, **END_TO_END}, 64, "finetune.parallel: ddp: 65 workers cannot share a batch of 64 images"),
        ({**DDP, "schedule": {"local_epochs": 0}}, 64, "ddp: 65 workers cannot share a batch of 64 images"),
        ({**DDP, "optim": {"batch_size": 2}}, 2, "finetune.parallel: ddp.*3 workers.*2 images"),
        (PIPELINE, 3, "4 workers for 3 parts"),
        ({**PIPELINE, **END_TO_END}, 3, "4 workers for 3 parts"),
        (
            {"finetune": {"parallel": "pipeline", "micro_batches": 2}},
            2,
            "finetune.micro_batches: 2 for a pipeline of 3 workers.*Set it to 3 or more, or finetune.schedule to gpipe",
        ),
        ({"finetune": {"parallel": "pipeline", "micro_batches": 2, "schedule": "gpipe"}}, 3, "4 workers for 3 parts"),
        ({**DDP, "optim": {"batch_size": 2}, "schedule": {"finetune_epochs": 0}}, 3, "4 workers for 3 parts"),
    ],
)
def test_more_workers_than_parts_or_images(sections, most, words):
    config = Config.from_dict(sections)
    config.check_world_size(1)
    config.check_world_size(most)
    assert re.search(words, message_of(config.check_world_size, most + 1))


def test_a_pipeline_asks_for_nothing_where_no_epoch_is_one():
    Config.from_dict({"finetune": SLICES, "schedule": {"finetune_epochs": 0}}).check_world_size(3)
    Config.from_dict({**END_TO_END, **PIPELINE, "parts": {"replicas": 2}}).check_world_size(6)


def test_workers_are_a_multiple_of_the_replicas():
    config = Config.from_dict({"parts": {"replicas": 2}})
    config.check_world_size(6)
    assert "start a multiple of 2 workers" in message_of(config.check_world_size, 3)
    assert "Start at most 6 workers" in message_of(config.check_world_size, 8)


def test_only_the_flow_tells_how_many_blocks_it_has():
    sections = {"model": {"name": "mine:flow"}, "parts": {"split": "blocks", "num": None}, "optim": {"part_lr": [1, 2]}}
    config = Config.from_dict(sections)
    assert config.num_parts is None
    config.check_world_size(100)
    config.check_world_size(2, num_parts=2)
    assert "3 workers for 2 parts" in message_of(config.check_world_size, 3, 2)
    assert "2 rates (1.0,2.0) for 3 parts" in message_of(config.check_world_size, 2, 3)


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_has_from_one_to_all_images(batch_size):
    message = message_of(check_batch_size, batch_size, 10, "noise")
    assert message.startswith(f"optim.batch_size is {batch_size}, but there are 10 training images (noise): it must")
    check_batch_size(10, 10, "noise")
