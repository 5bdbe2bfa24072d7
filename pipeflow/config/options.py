"""The options of a run, one dataclass a section: each option with its default, bounds and line of help in one place.

This room imports neither torch nor numpy, so that a mistyped option is reported before anything slow happens.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pipeflow.config import checks
from pipeflow.config.loading import convert, nearest, unknown_option
from pipeflow.config.removed import without_removed
from pipeflow.errors import ConfigError
from pipeflow.safe_files import brief

FINETUNE = ("finetune", "end_to_end")
"""Modes of phases in which the gathered flow trains as one."""

T = TypeVar("T")


def option(default: T, help: str, **bounds: float) -> T:
    """A field with its default, the line that `--help` prints, and its bounds.

    bounds: at_least, at_most, above, below; checked by `checks.check_bounds`, for a list on each of its values.
    """
    return field(default=default, metadata={"help": help, **bounds})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run: its folder, seed and device."""

    dir: str = option("runs/quickstart", "run folder, seen by all workers; ~ is the home folder, as in data.path")
    seed: int = option(0, "initial values, order of the images, noise and flips", at_least=0, at_most=2**63 - 1)
    resume: Literal["auto", "never", "must"] = option("auto", "continue from run.dir's newest good checkpoint")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: CUDA where there is a GPU")
    figures: bool = option(True, "draw the figures of a run that has ended")
    heartbeat_timeout_s: float = option(25.0, "seconds without a heartbeat until a worker counts as lost", at_least=1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dir", os.path.expanduser(self.dir))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images that the flow learns."""

    name: str = option("dead_leaves", "cifar10, images, dead_leaves or module:function")
    path: str | None = option(None, "folder or zip of images; folder of the CIFAR-10 archive")
    channels: Literal[1, 3] | None = option(None, "of images: 1 grey, 3 RGB (null: as in the files)")
    num_train: int | None = option(None, "training images (null: all; dead_leaves: 2560)", at_least=1, at_most=10**7)
    num_test: int | None = option(None, "test images (null: all; dead_leaves: 512)", at_least=1, at_most=10**7)
    flip: bool = option(False, "random horizontal flips in training")

    def __post_init__(self) -> None:
        if self.path is not None:
            object.__setattr__(self, "path", os.path.expanduser(self.path))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The flow."""

    name: str = option("glow", "glow or module:function")
    # Beyond these sizes there is only a slip of the finger: the published flow has 3, 32 and 512.
    num_blocks: int = option(3, "blocks: squeeze, flow steps, factor-out", at_least=1, at_most=16)
    num_steps: int = option(2, "flow steps in each block", at_least=1, at_most=1024)
    width: int = option(32, "channels inside the coupling nets", at_least=1, at_most=16_384)
    coupling: Literal["affine", "additive"] = option("affine", "kind of coupling")
    invconv: Literal["lu", "plain"] = option("lu", "form of the invertible 1x1 convolution")


@dataclass(frozen=True, kw_only=True)
class PartsConfig:
    """The parts that the flow is cut into."""

    split: str | tuple[str, ...] = option("across", "blocks, across, balanced, or layers to cut before: a,b")
    num: int | None = option(3, "parts (null: what a split by blocks or by names gives)", at_least=1, at_most=16_384)
    balance: Literal["macs", "time"] = option("macs", "a balanced split evens out multiply-adds, or measured times")
    head: Literal["gaussian", "standard"] = option("gaussian", "local prior of a part that is not the last")
    replicas: int = option(1, "workers that hold each part and share its batches", at_least=1, at_most=16_384)

    def __post_init__(self) -> None:
        if isinstance(self.split, str) and "." in self.split:  # one cut, written as a name by itself
            object.__setattr__(self, "split", (self.split,))


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The order in which parts train."""

    mode: Literal["end_to_end", "sequential", "alternate", "concurrent"] = option("concurrent", "the local schedule")
    local_epochs: int = option(8, "passes over the data with isolated parts", at_least=0, at_most=1_000_000)
    finetune_epochs: int = option(2, "passes end to end after the gather", at_least=0, at_most=1_000_000)
    alternate_every: str = option("1 epoch", "length of a turn: '1 epoch', '3 epochs' or '200 steps'")

    @property
    def turn(self) -> tuple[int, Literal["epochs", "steps"]]:
        """Length of a turn, `alternate_every`: '200 steps' is (200, "steps"). Raises ConfigError for any other form."""
        found = re.fullmatch(r"\s*([0-9]{1,18}) \s*(epoch|step)s?\s*", self.alternate_every)
        if found is None or int(found[1]) == 0:
            expected = "schedule.alternate_every: expected '1 epoch' or '200 steps'"
            raise ConfigError(f"{expected}, got {brief(self.alternate_every)}.")
        return int(found[1]), "epochs" if found[2] == "epoch" else "steps"


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The updates of a part."""

    name: Literal["adam", "adamax"] = option("adam", "optimizer")
    lr: float = option(2e-3, "learning rate", above=0)
    part_lr: tuple[float, ...] | None = option(None, "each part's own in the local epochs: 1e-3,5e-4", above=0)
    batch_size: int = option(64, "images in a batch, over all workers", at_least=1, at_most=1_000_000)
    warmup_steps: int = option(50, "updates over which a part's learning rate rises from 0", at_least=0)
    decay: Literal["none", "cosine"] = option("cosine", "to 0 over a part's own updates, anew after the gather")
    clip_norm: float = option(0.0, "bound on the gradient's norm, of each part by itself (0: none)", at_least=0)
    ema: float = option(0.0, "decay of averaged weights, evaluated and sampled (0: none)", at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """The arithmetic of a step: for speed, numbers may be rounded otherwise, or have less than 32 bits."""

    step: Literal["fast", "reference"] = option(
        "fast", "fast: ActNorms folded into convolutions, fused optimizer; reference: operation by operation"
    )
    coupling: Literal["float32", "bfloat16"] = option("float32", "type inside the coupling nets; all else is float32")
    compile: bool = option(False, "torch.compile the flow steps (numbers may change in the last bits)")


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """The links, on which latents travel from part to part."""

    backend: Literal["auto", "nccl", "gloo"] = option("auto", "auto: nccl for workers with a GPU each, else gloo")
    dtype: Literal["float32", "bfloat16", "int8"] = option(
        "float32", "type in which training latents travel; int8: with a range a channel and dither"
    )
    depth: int = option(4, "batches that may wait at each end of a link", at_least=1)
    timeout_s: float = option(300.0, "seconds without a latent after which a worker gives up", above=0)


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """The activations that are kept for the backward."""

    activations: Literal["keep", "recompute", "invert"] = option(
        "keep",
        "recompute: only each layer's input is kept, for about a third more time; invert: not even those, for two thirds",
    )
    max_error: float = option(1e-3, "invert: error of a part's recovered input that stops the run", above=0)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """The end-to-end epochs, after the gather and in end_to_end."""

    parallel: Literal["single", "ddp"] = option("single", "on rank 0's device, or data-parallel on all workers")
    lr: float | None = option(None, "learning rate (null: optim.lr)", above=0)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The curve of test bits/dim; the last evaluation always takes all test images."""

    every_epochs: int = option(1, "epochs from one evaluation to the next", at_least=1)
    num_images: int | None = option(512, "test images in an evaluation during training (null: all)", at_least=1)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The checkpoints, from which an interrupted run goes on."""

    every_epochs: int = option(1, "epochs from one checkpoint to the next", at_least=1)
    keep: int = option(2, "newest checkpoints kept", at_least=1)
    grace_s: float = option(25.0, "seconds from SIGTERM to the end, saved or not (torchrun kills at 30)", above=0)


@dataclass(frozen=True, kw_only=True)
class TimelineConfig:
    """A recording of what each worker does when: timeline.json for ui.perfetto.dev."""

    steps: int = option(0, "batches recorded (0: none)", at_least=0)
    epoch: int = option(0, "epoch of the recording", at_least=0)
    first_step: int = option(10, "first batch recorded", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. `Config()` is the embedded default; `Config.from_dict` and `load` read one."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    parts: PartsConfig = PartsConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    optim: OptimConfig = OptimConfig()
    precision: PrecisionConfig = PrecisionConfig()
    memory: MemoryConfig = MemoryConfig()
    link: LinkConfig = LinkConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    timeline: TimelineConfig = TimelineConfig()

    def __post_init__(self) -> None:
        checks.check(self)

    @property
    def num_epochs(self) -> int:
        """Passes over the data, local and end to end."""
        return self.schedule.local_epochs + self.schedule.finetune_epochs

    @property
    def num_local_epochs(self) -> int:
        """Passes with isolated parts: none in `end_to_end`."""
        return 0 if self.schedule.mode == "end_to_end" else self.schedule.local_epochs

    @property
    def num_parts(self) -> int | None:
        """Parts, where the options alone tell; None for a split by blocks of a flow other than Glow."""
        if isinstance(self.parts.split, tuple):
            return len(self.parts.split) + 1
        if self.parts.split == "blocks" and self.model.name == "glow":
            return self.model.num_blocks
        return self.parts.num

    def check_world_size(self, world_size: int, num_parts: int | None = None) -> None:
        """Raises ConfigError where so many workers cannot train this run.

        num_parts: of the flow, where the options alone do not tell (`Config.num_parts`).
        """
        checks.check_world_size(self, world_size, num_parts or self.num_parts)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Config":
        """A configuration from sections of options, `{"optim": {"lr": 1e-4}}`, and defaults for the rest.

        Raises ConfigError naming the first option that is unknown or has a value it cannot have.
        """
        if not isinstance(settings, dict):
            raise ConfigError(f"a configuration is sections of options, such as 'optim:', not {brief(settings)}.")
        sections = {}
        for section, values in without_removed(settings).items():
            if section not in SECTIONS:
                raise ConfigError(f"unknown section {brief(section)}{nearest(brief(section, str), SECTIONS)}.")
            options = {each.name: each for each in dataclasses.fields(SECTIONS[section])}
            if not isinstance(values, dict):
                example = f"{next(iter(options))}: ..."
                raise ConfigError(f"{section}: has {brief(values)} where its options should be, such as {example}.")
            for name in values:
                if name not in options:
                    raise unknown_option(f"{section}.{brief(name, str)}", option_names())
            converted = {
                name: convert(f"{section}.{name}", options[name].type, value) for name, value in values.items()
            }
            sections[section] = SECTIONS[section](**converted)
        return cls(**sections)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Sections of options as plain values: `Config.from_dict` takes them back."""
        return {
            name: {key: list(value) if isinstance(value, tuple) else value for key, value in section.items()}
            for name, section in dataclasses.asdict(self).items()
        }


SECTIONS: dict[str, Any] = {section.name: section.type for section in dataclasses.fields(Config)}
"""The dataclass of each section."""


def option_names() -> list[str]:
    """All options as `section.name`."""
    return [f"{name}.{each.name}" for name, section in SECTIONS.items() for each in dataclasses.fields(section)]
