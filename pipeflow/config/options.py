"""The run, typed and validated: YAML and command line in, a frozen `Config` or one clear error out.

This file imports neither torch nor numpy, so that a mistyped option is reported before anything slow happens.
"""

import dataclasses
import difflib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeflow.config.loading import convert, nearest, read_yaml, show
from pipeflow.errors import ConfigError
from pipeflow.safe_files import brief

FINETUNE = ("finetune", "end_to_end")
"""Modes of phases in which the gathered flow trains as one."""


def option(default: Any, text: str) -> Any:
    """A field of a section with its default and the line that `--help` prints for it."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the run is called and where it happens."""

    dir: str = option("runs/quickstart", "run folder, seen by all workers")
    seed: int = option(0, "initial values, order of the images, noise and flips")
    resume: Literal["auto", "never", "must"] = option("auto", "continue from run.dir's newest good checkpoint")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: CUDA where there is a GPU")
    figures: bool = option(True, "draw the figures of a run that has ended")
    heartbeat_timeout_s: float = option(25.0, "seconds without a heartbeat after which a worker counts as lost")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is learned."""

    name: str = option("dead_leaves", "cifar10, images, dead_leaves or module:function")
    path: str | None = option(None, "folder or zip of images; folder of the CIFAR-10 archive")
    num_train: int | None = option(None, "training images taken (null: all; dead_leaves makes 2560)")
    num_test: int | None = option(None, "test images taken (null: all; dead_leaves makes 512)")
    flip: bool = option(False, "random horizontal flips in training")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The flow."""

    name: str = option("glow", "glow or module:function")
    num_blocks: int = option(3, "blocks: squeeze, flow steps, factor-out")
    num_steps: int = option(2, "flow steps in each block")
    width: int = option(32, "channels inside the coupling nets")
    coupling: Literal["affine", "additive"] = option("affine", "kind of coupling")
    invconv: Literal["lu", "plain"] = option("lu", "form of the invertible 1x1 convolution")


@dataclass(frozen=True, kw_only=True)
class PartsConfig:
    """Where the flow is cut."""

    split: str | tuple[str, ...] = option(
        "across", "blocks, across, balanced, or the names of the layers to cut before: a,b"
    )
    num: int | None = option(3, "number of parts (null: what a split by blocks or by names gives)")
    balance: Literal["macs", "time"] = option(
        "macs", "a balanced split evens out multiply-adds, or times measured at start"
    )
    head: Literal["gaussian", "standard"] = option("gaussian", "local prior of a part that is not the last")
    replicas: int = option(1, "workers that hold each part and share its batches")

    def __post_init__(self) -> None:
        if isinstance(self.split, str) and "." in self.split:  # one cut, written as a name by itself
            object.__setattr__(self, "split", (self.split,))


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Which parts train when."""

    mode: Literal["end_to_end", "sequential", "alternate", "concurrent"] = option("concurrent", "the local schedule")
    local_epochs: int = option(8, "passes over the data with isolated parts")
    finetune_epochs: int = option(2, "passes end to end after the gather")
    alternate_every: str = option("1 epoch", "length of a turn: '1 epoch', '3 epochs' or '200 steps'")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How a part is updated."""

    name: Literal["adam", "adamax"] = option("adam", "optimizer")
    lr: float = option(2e-3, "learning rate")
    part_lr: tuple[float, ...] | None = option(None, "a learning rate for each part in the local epochs: 1e-3,5e-4")
    batch_size: int = option(64, "images in a batch, over all workers")
    warmup_steps: int = option(50, "updates over which a part's learning rate rises from 0")
    decay: Literal["none", "cosine"] = option("cosine", "to 0 over a part's own updates, anew after the gather")
    clip_norm: float = option(0.0, "bound on the gradient's norm, of each part by itself (0: none)")
    ema: float = option(0.0, "decay of the averaged weights that are evaluated and sampled (0: none)")


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """How a step is computed: what may be rounded otherwise, for speed, and what in less than float32."""

    step: Literal["fast", "reference"] = option(
        "fast", "fast: ActNorms folded into convolutions, fused optimizer; reference: operation by operation"
    )
    coupling: Literal["float32", "bfloat16"] = option("float32", "type inside the coupling nets; all else is float32")
    compile: bool = option(False, "torch.compile the flow steps (numbers may change in the last bits)")


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """How latents travel from part to part."""

    backend: Literal["auto", "nccl", "gloo"] = option("auto", "auto: nccl for workers with a GPU each, else gloo")
    dtype: Literal["float32", "bfloat16", "int8"] = option(
        "float32", "type in which training latents travel; int8: with a range a channel and dither"
    )
    depth: int = option(4, "batches that may wait at each end of a link")
    timeout_s: float = option(300.0, "seconds without a latent after which a worker gives up")


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What is kept for the backward."""

    activations: Literal["keep", "recompute", "invert"] = option(
        "keep",
        "recompute: only each layer's input is kept, for about a third more time; invert: not even those, for two thirds",
    )
    max_error: float = option(1e-3, "invert: by how much a part's recovered input may be off before the run is stopped")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """After the gather, and in end_to_end."""

    parallel: Literal["single", "ddp"] = option("single", "on rank 0's device, or data-parallel on all workers")
    lr: float | None = option(None, "learning rate (null: optim.lr)")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The curve of test bits/dim; the last evaluation always takes all test images."""

    every_epochs: int = option(1, "epochs from one evaluation to the next")
    num_images: int | None = option(512, "test images in an evaluation during training (null: all)")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What survives an interruption."""

    every_epochs: int = option(1, "epochs from one checkpoint to the next")
    keep: int = option(2, "newest checkpoints kept")
    grace_s: float = option(
        25.0, "seconds after SIGTERM by which the run has saved itself or ends (torchrun kills at 30)"
    )


@dataclass(frozen=True, kw_only=True)
class TimelineConfig:
    """A recording of what each worker does when: timeline.json for ui.perfetto.dev."""

    steps: int = option(0, "batches recorded (0: none)")
    epoch: int = option(0, "epoch of the recording")
    first_step: int = option(10, "first batch recorded")


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
        _check_ranges(self)
        _check_parts(self)

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

    def check_world_size(self, world_size: int) -> None:
        """Raises ConfigError where there are more workers than parts or images, or not as many replicas of each."""
        replicas = self.parts.replicas
        if world_size % replicas:
            raise ConfigError(
                f"{world_size} worker{'s' * (world_size > 1)} for {replicas} replicas of each part (parts.replicas): "
                f"start a multiple of {replicas} workers, or set parts.replicas to 1."
            )
        whole = self.num_epochs > self.num_local_epochs
        if whole and self.finetune.parallel == "ddp" and world_size > self.optim.batch_size:
            raise ConfigError(
                f"finetune.parallel: ddp shares a batch of {self.optim.batch_size} images (optim.batch_size) among "
                f"{world_size} workers: start fewer workers, take larger batches, or set finetune.parallel to single."
            )
        shared = self.finetune.parallel == "ddp" and self.num_local_epochs == 0
        if self.num_parts is not None and world_size > self.num_parts * replicas and not shared:
            most = self.num_parts * replicas
            raise ConfigError(
                f"{world_size} workers for {self.num_parts} parts (parts.split {brief(self.parts.split, show)}, parts.num "
                f"{show(self.parts.num)}, parts.replicas {replicas}): a worker needs a part. Start at most {most} workers "
                f"(torchrun --nproc_per_node={most}), cut into more parts, or train several workers on each part "
                f"(parts.replicas)."
            )

    @classmethod
    def from_dict(cls, settings: dict) -> "Config":
        """A configuration from sections of options, `{"optim": {"lr": 1e-4}}`, and defaults for the rest.

        Raises ConfigError naming the first option that is unknown or has a value it cannot have.
        """
        sections = {}
        if not isinstance(settings, dict):
            raise ConfigError(f"a configuration is sections of options, such as 'optim:', not {brief(settings)}.")
        for section, values in settings.items():
            if section not in SECTIONS:
                raise ConfigError(f"unknown section {brief(section)}{nearest(brief(section, str), SECTIONS)}.")
            if not isinstance(values, dict):
                raise ConfigError(
                    f"{section}: has {brief(values)} where its options should be, such as {_example(section)}."
                )
            hints = typing.get_type_hints(SECTIONS[section])
            converted = {}
            for name, value in values.items():
                if name not in hints:
                    raise _unknown(f"{section}.{brief(name, str)}")
                converted[name] = convert(f"{section}.{name}", hints[name], value)
            sections[section] = SECTIONS[section](**converted)
        return cls(**sections)

    def to_dict(self) -> dict:
        """Sections of options as plain values: `Config.from_dict` takes them back."""
        return {
            name: {key: list(value) if isinstance(value, tuple) else value for key, value in section.items()}
            for name, section in dataclasses.asdict(self).items()
        }


SECTIONS = {section.name: section.type for section in dataclasses.fields(Config)}


def load(path: str | None, overrides: dict[str, str] | None = None) -> Config:
    """The configuration in a YAML file (None: the defaults) with `{"optim.lr": "1e-4"}` put over it.

    Raises ConfigError for a file that is not there or is no YAML, and for what `Config.from_dict` rejects.
    """
    settings = {} if path is None else read_yaml(Path(path))
    for name, text in (overrides or {}).items():
        section, _, key = name.partition(".")
        if section not in SECTIONS or key not in typing.get_type_hints(SECTIONS[section]):
            raise _unknown(name)
        values = settings.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {section}: has {brief(values)} where its options should be.")
        values[key] = text
    return Config.from_dict(settings)


def parse_arguments(arguments: list[str]) -> tuple[str | None, dict[str, str]]:
    """Splits `--config FILE --optim.lr 1e-4 --run.seed=1` into the file and the overrides.

    Raises ConfigError for an option without a value, given twice, or an argument that is no option.
    """
    values: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            raise ConfigError(f"{argument!r} is not an option: options are written --section.name value.")
        name, has_value, text = argument[2:].partition("=")
        if name != "config" and name not in option_names():
            raise _unknown(name)
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{name} has no value: write --{name} VALUE.")
            text = rest.pop(0)
        if name in values:
            raise ConfigError(f"--{name} is given twice ({values[name]!r} and {text!r}): keep one.")
        values[name] = text
    return values.pop("config", None), values


def option_names() -> list[str]:
    """All options as `section.name`."""
    return [f"{name}.{each.name}" for name, section in SECTIONS.items() for each in dataclasses.fields(section)]


def describe_options() -> str:
    """A line for each option, with its default: what `--help` prints."""
    lines = []
    for name, section in SECTIONS.items():
        lines.append(f"\n{name}: {section.__doc__}")
        for each in dataclasses.fields(section):
            lines.append(f"  --{name}.{each.name:<20} {each.metadata['help']}  [{show(each.default)}]")
    return "\n".join(lines).lstrip("\n")


def _unknown(name: str) -> ConfigError:
    known = option_names()
    inside = [each for each in known if each.split(".")[0] == name.split(".")[0]]
    close = difflib.get_close_matches(name, known, n=1)
    if not close:
        close = [each for each in known if each.split(".")[1] == name.rsplit(".")[-1]]
    if close:
        return ConfigError(f"unknown option {name!r}: did you mean {close[0]!r}?")
    return ConfigError(f"unknown option {name!r}: there are {', '.join(inside or SECTIONS)}.")


def _example(section: str) -> str:
    return f"{dataclasses.fields(SECTIONS[section])[0].name}: ..."


def _check_ranges(config: Config) -> None:
    """What a type cannot say: signs, bounds, and the two texts with a form of their own."""
    at_least = {
        "run.seed": 0, "data.num_train": 1, "data.num_test": 1, "model.num_blocks": 1, "model.num_steps": 1,
        "model.width": 1, "parts.num": 1, "parts.replicas": 1, "schedule.local_epochs": 0, "schedule.finetune_epochs": 0,
        "optim.batch_size": 1, "optim.warmup_steps": 0, "optim.clip_norm": 0, "link.depth": 1,
        "eval.every_epochs": 1, "eval.num_images": 1, "checkpoint.every_epochs": 1, "checkpoint.keep": 1,
        "timeline.steps": 0, "timeline.epoch": 0, "timeline.first_step": 0,
    }  # fmt: skip
    # Beyond these only a slip of the finger, or a file that is to fill the memory: the published flow has 3, 32 and 512.
    at_most = {
        "model.num_blocks": 16, "model.num_steps": 1024, "model.width": 16_384, "parts.num": 16_384,
        "parts.replicas": 16_384,
        "schedule.local_epochs": 1_000_000, "schedule.finetune_epochs": 1_000_000, "optim.batch_size": 1_000_000,
    }  # fmt: skip
    if config.data.name == "dead_leaves":
        at_most |= {"data.num_train": 1_000_000, "data.num_test": 1_000_000}
    positive = [
        "run.heartbeat_timeout_s", "optim.lr", "finetune.lr", "link.timeout_s", "memory.max_error", "checkpoint.grace_s",
    ]  # fmt: skip
    values = {
        f"{s}.{key}": value for s, section in dataclasses.asdict(config).items() for key, value in section.items()
    }
    for name, least in at_least.items():
        if values[name] is not None and not values[name] >= least:
            raise ConfigError(f"{name}: must be {least} or more, got {values[name]}.")
    for name, most in at_most.items():
        if values[name] is not None and values[name] > most:
            raise ConfigError(f"{name}: must be {most:,} or less, got {values[name]}.")
    if config.run.seed >= 2**63:
        raise ConfigError(f"run.seed: must be below 2^63, got {config.run.seed}.")
    rates = [("optim.part_lr", rate) for rate in config.optim.part_lr or ()]
    for name, value in [(name, values[name]) for name in positive] + rates:
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{name}: must be a number above 0, got {value}.")
    if not 0 <= config.optim.ema < 1:
        raise ConfigError(f"optim.ema: must be at least 0 (off) and below 1, such as 0.999, got {config.optim.ema}.")
    if config.num_epochs == 0:
        raise ConfigError("schedule.local_epochs and schedule.finetune_epochs are both 0: nothing would train.")
    for name, known in [("data.name", ("cifar10", "images", "dead_leaves")), ("model.name", ("glow",))]:
        if values[name] not in known and not _is_function(values[name]) and values[name] != "python":
            raise ConfigError(f"{name}: expected {', '.join(known)} or module:function, got {brief(values[name])}.")
    if config.data.name == "images" and config.data.path is None:
        raise ConfigError("data.path: data.name 'images' needs a folder or a zip with train/ and test/ in it.")
    turn_length(config.schedule.alternate_every)
    if config.parts.replicas > 1:
        _check_replicas(config)


def _check_replicas(config: Config) -> None:
    """What several workers cannot do on one part."""
    replicas = config.parts.replicas
    if config.num_local_epochs == 0:
        raise ConfigError(
            f"parts.replicas: {replicas}, but no part trains by itself (schedule.mode {config.schedule.mode}, "
            f"schedule.local_epochs {config.schedule.local_epochs}): set it to 1, and finetune.parallel to ddp."
        )
    if config.optim.batch_size < replicas:
        raise ConfigError(
            f"parts.replicas: {replicas} workers cannot share {config.optim.batch_size} images (optim.batch_size): use "
            f"fewer replicas, or a larger batch."
        )


def _is_function(name: str) -> bool:
    module, _, function = name.partition(":")
    # A module in front of which dots stand would be looked for beside pipeflow's own.
    return all(module.split(".")) and bool(function) and ":" not in function


def _check_parts(config: Config) -> None:
    """Number of parts against the kind of split, as far as it can be told without the flow."""
    split, num = config.parts.split, config.parts.num
    if isinstance(split, str) and split not in ("blocks", "across", "balanced"):
        raise ConfigError(f"parts.split: expected blocks, across, balanced or names of layers, got {brief(split)}.")
    if num is None and split in ("across", "balanced"):
        raise ConfigError(f"parts.num: a split {split!r} needs the number of parts, such as 3.")
    if num is not None and config.num_parts not in (None, num):
        raise ConfigError(
            f"parts.num: {num} does not agree with parts.split {brief(split, show)}, which gives {config.num_parts} parts: "
            f"set parts.num to {config.num_parts} or null."
        )
    if split == "across" and config.model.name == "glow" and num - 1 > config.model.num_blocks:
        raise ConfigError(
            f"parts.num: {num} parts across blocks need {num - 1} blocks to cut in, model.num_blocks is "
            f"{config.model.num_blocks}: at most {config.model.num_blocks + 1} parts, or split 'balanced'."
        )
    rates = config.optim.part_lr
    if rates is not None and config.num_parts is not None and len(rates) != config.num_parts:
        raise ConfigError(
            f"optim.part_lr: {len(rates)} rates ({brief(rates, show)}) for {config.num_parts} parts: "
            f"give one for each part."
        )


def turn_length(text: str) -> tuple[int, str]:
    """'200 steps' as (200, 'steps'), '1 epoch' as (1, 'epochs'). Raises ConfigError for any other form."""
    number, _, unit = text.strip().partition(" ")
    unit = unit.strip().removesuffix("s") + "s"
    if not number.isdecimal() or len(number) > 18 or int(number) < 1 or unit not in ("epochs", "steps"):
        raise ConfigError(f"schedule.alternate_every: expected '1 epoch' or '200 steps', got {brief(text)}.")
    return int(number), unit
