"""Values that their types allow and the run does not: out of bounds, or in conflict with other options."""

import dataclasses
import math
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeflow.config.loading import show
from pipeflow.errors import ConfigError
from pipeflow.safe_files import brief
from pipeflow.units import count_text

if TYPE_CHECKING:
    from pipeflow.config.config import Config

_BOUNDS = {
    "at_least": (operator.ge, "{:,} or more"),
    "at_most": (operator.le, "{:,} or less"),
    "above": (lambda value, bound: bound < value < math.inf, "a number above {:,}"),
    "below": (operator.lt, "below {:,}"),
}


def check(config: "Config") -> None:
    """Raises ConfigError for the first value that is out of bounds or in conflict with another."""
    for section in dataclasses.fields(config):
        options = getattr(config, section.name)
        for option in dataclasses.fields(options):
            _check_bounds(f"{section.name}.{option.name}", getattr(options, option.name), option.metadata)
    if config.num_epochs == 0:
        raise ConfigError("schedule.local_epochs and schedule.finetune_epochs are both 0: nothing would train.")
    _ = config.schedule.turn  # raises where alternate_every is no length of a turn
    _ = config.data.memory_bytes  # and this, where it is no amount of memory
    _check_names(config)
    _check_parts(config)
    if config.num_parts is not None:
        check_part_rates(config, config.num_parts)
    if config.parts.replicas > 1 and not config.needs_parts:
        raise ConfigError(
            f"parts.replicas: {config.parts.replicas}, but no part trains by itself (schedule.mode {config.schedule.mode}, "
            f"schedule.local_epochs {config.schedule.local_epochs}): set it to 1, and finetune.parallel to ddp, or "
            f"to pipeline."
        )
    if config.parts.latents == "averaged" and config.optim.ema == 0:
        raise ConfigError(
            "parts.latents: averaged, but there are no averaged weights (optim.ema 0): set optim.ema, such as 0.99."
        )
    _check_pipeline(config)
    _check_share(config, "parts.replicas", config.parts.replicas)


def _check_pipeline(config: "Config") -> None:
    """Raises ConfigError where a batch cannot go through a pipeline in slices of equal size."""
    replicas, slices, batch_size = config.parts.replicas, config.finetune.micro_batches, config.optim.batch_size
    if config.is_pipelined and batch_size % (replicas * slices):
        shared = f" of each of {replicas} replicas (parts.replicas)" if replicas > 1 else ""
        raise ConfigError(
            f"finetune.micro_batches: {slices} slices{shared} cannot share a batch of {count_text(batch_size, 'image')} "
            f"(optim.batch_size) evenly: choose a batch size that is a multiple of {replicas * slices}, or other slices."
        )


def _check_bounds(name: str, value: Any, bounds: Mapping[str, Any]) -> None:
    for each in value if isinstance(value, tuple) else [value]:
        for bound, (holds, words) in _BOUNDS.items():
            if each is not None and bound in bounds and not holds(each, bounds[bound]):
                raise ConfigError(f"{name}: must be {words.format(bounds[bound])}, got {each}.")


def _check_names(config: "Config") -> None:
    """Raises ConfigError where data or model are neither known nor a function, or the data lacks what it needs."""
    data = config.data
    if not config.run.dir:
        raise ConfigError("run.dir: is empty: name a folder, such as runs/mine.")
    for option, name, known in [
        ("data.name", data.name, ("cifar10", "images", "dead_leaves")),
        ("model.name", config.model.name, ("glow",)),
    ]:
        module, _, function = name.partition(":")
        # A module in front of which dots stand would be looked for beside pipeflow's own.
        is_function = all(module.split(".")) and function and ":" not in function
        if name not in (*known, "python") and not is_function:
            raise ConfigError(f"{option}: expected {', '.join(known)} or module:function, got {brief(name)}.")
    for option, what in {
        "channels": "channels",
        "resize": "size",
        "crop": "size",
        "test_fraction": "test images",
    }.items():
        if getattr(data, option) is not None and data.name in ("cifar10", "dead_leaves", "python"):
            raise ConfigError(f"data.{option}: data.name {data.name!r} has its {what}: set data.{option} to null.")
    if data.name == "images" and data.path is None:
        raise ConfigError(
            "data.path: data.name 'images' needs a folder or a zip with train/ and test/ in it, or an .npy or .npz file."
        )


def _check_parts(config: "Config") -> None:
    """Raises ConfigError where the number of parts is in conflict with the split, as far as options tell."""
    split, num, num_blocks = config.parts.split, config.parts.num, config.model.num_blocks
    if isinstance(split, str) and split not in ("blocks", "across", "balanced"):
        raise ConfigError(f"parts.split: expected blocks, across, balanced or names of layers, got {brief(split)}.")
    if not config.needs_parts:
        return
    if num is not None and config.num_parts not in (None, num):
        raise ConfigError(
            f"parts.num: {num} does not agree with parts.split {brief(split, show)}, which gives {config.num_parts} parts: "
            f"set parts.num to {config.num_parts} or null."
        )
    if split != "across" or config.model.name != "glow" or config.num_parts in (None, 1):
        return
    if config.model.num_steps == 1:
        raise ConfigError(
            "parts.split: 'across' cuts in the middle of a block, and with model.num_steps 1 a block has none: set "
            "parts.split to blocks or balanced, or model.num_steps to 2 or more."
        )
    if num is not None and num - 1 > num_blocks:
        raise ConfigError(
            f"parts.num: {num} parts across blocks need {num - 1} blocks to cut in, model.num_blocks is "
            f"{num_blocks}: at most {num_blocks + 1} parts, or split 'balanced'."
        )


def check_part_rates(config: "Config", num_parts: int) -> None:
    """Raises ConfigError where there is not one learning rate for each part."""
    rates = config.optim.part_lr
    if rates is not None and len(rates) != num_parts:
        raise ConfigError(
            f"optim.part_lr: {count_text(len(rates), 'rate')} ({brief(rates, show)}) for {count_text(num_parts, 'part')}: "
            f"give one for each part."
        )


def _check_share(config: "Config", option: str, num_workers: int) -> None:
    """Raises ConfigError where so many workers cannot share a batch, which `option` asks for, in slices of an image."""
    batch_size, micro_batches = config.optim.batch_size, config.memory.micro_batches
    if num_workers > batch_size:
        raise ConfigError(
            f"{option}: {num_workers} workers cannot share a batch of {batch_size} images (optim.batch_size): "
            f"use fewer workers, or a larger batch."
        )
    share = batch_size // num_workers
    if micro_batches > share:
        shared = f" shared by {num_workers} workers ({option})" if num_workers > 1 else ""
        raise ConfigError(
            f"memory.micro_batches: a batch of {count_text(batch_size, 'image')} (optim.batch_size){shared} cannot be cut "
            f"into {micro_batches} slices: set memory.micro_batches to {share} or less, or use a larger batch."
        )


def check_world_size(config: "Config", world_size: int, num_parts: int | None) -> None:
    """Raises ConfigError where there are more workers than parts or images, or not as many replicas of each part.

    num_parts: None where only the flow will tell.
    """
    replicas = config.parts.replicas
    if world_size % replicas:
        raise ConfigError(
            f"{count_text(world_size, 'worker')} for {replicas} replicas of each part (parts.replicas): "
            f"start a multiple of {replicas} workers, or set parts.replicas to 1."
        )
    is_ddp = config.finetune.parallel == "ddp"
    if is_ddp and config.ends_whole:
        _check_share(config, "finetune.parallel: ddp", world_size)
    if num_parts is None:
        return
    check_part_rates(config, num_parts)
    if is_ddp and config.num_local_epochs == 0:
        return
    places, slices = world_size // replicas, config.finetune.micro_batches
    if config.is_pipelined and config.finetune.schedule == "1f1b" and 1 < places <= num_parts and slices < places:
        raise ConfigError(
            f"finetune.micro_batches: {slices} for a pipeline of {places} workers: 1f1b needs as many slices of a batch as "
            f"there are workers. Set it to {places} or more, or finetune.schedule to gpipe."
        )
    most = num_parts * replicas
    if world_size > most:
        raise ConfigError(
            f"{world_size} workers for {count_text(num_parts, 'part')} (parts.split {brief(config.parts.split, show)}, "
            f"parts.num {show(config.parts.num)}, parts.replicas {replicas}): a worker needs a part. Start at most "
            f"{count_text(most, 'worker')} (torchrun --nproc_per_node={most}), cut into more parts, or train several "
            f"workers on each part (parts.replicas)."
        )


def check_batch_size(batch_size: int, num_images: int, source: str) -> None:
    """Raises ConfigError where a batch would hold more images than there are to train on.

    source: of the images, for the message.
    """
    if not 1 <= batch_size <= num_images:
        raise ConfigError(
            f"optim.batch_size is {batch_size}, but there are {num_images} training images ({source}): "
            f"it must be from 1 to {num_images}."
        )
