"""The whole run as one object: its sections, read from plain values and written as such."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeflow.config import checks
from pipeflow.config.flow_options import NUM_PARTS, ModelConfig, PartsConfig
from pipeflow.config.loading import convert, nearest, unknown_option
from pipeflow.config.options import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    FinetuneConfig,
    LinkConfig,
    MemoryConfig,
    OptimConfig,
    PrecisionConfig,
    RunConfig,
    ScheduleConfig,
    TimelineConfig,
    TrackConfig,
)
from pipeflow.config.removed import without_removed
from pipeflow.errors import ConfigError
from pipeflow.safe_files import brief


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of a run, by section: `config.optim.lr`. `Config()` has the defaults; `Config.from_dict` sets some."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parts: PartsConfig = field(default_factory=PartsConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    timeline: TimelineConfig = field(default_factory=TimelineConfig)
    track: TrackConfig = field(default_factory=TrackConfig)

    def __post_init__(self) -> None:
        checks.check(self)

    @property
    def num_epochs(self) -> int:
        """Number of passes over the data, local and end to end."""
        return self.schedule.local_epochs + self.schedule.finetune_epochs

    @property
    def num_local_epochs(self) -> int:
        """Number of passes with isolated parts; 0 for `schedule.mode: end_to_end`."""
        return 0 if self.schedule.mode == "end_to_end" else self.schedule.local_epochs

    @property
    def ends_whole(self) -> bool:
        """Whether the last epochs train the flow end to end."""
        return self.num_epochs > self.num_local_epochs

    @property
    def is_pipelined(self) -> bool:
        """Whether end-to-end epochs run as a pipeline, if there are several workers."""
        return self.finetune.parallel == "pipeline" and self.ends_whole

    @property
    def needs_parts(self) -> bool:
        """Whether the flow is cut into parts in any epoch."""
        return self.num_local_epochs > 0 or self.is_pipelined

    @property
    def num_parts(self) -> int | None:
        """Number of parts. None where it depends on the flow: for a split by blocks of a flow other than Glow."""
        split, num, model = self.parts.split, self.parts.num, self.model
        if isinstance(split, tuple):
            return len(split) + 1
        if split == "blocks":
            return model.num_blocks if model.name == "glow" else num
        if num is None and model.name == "glow":
            return min(NUM_PARTS, model.num_blocks + 1 if split == "across" else model.num_blocks * model.num_steps)
        return NUM_PARTS if num is None else num

    def check_world_size(self, world_size: int, num_parts: int | None = None) -> None:
        """Raises ConfigError if this run cannot be trained by `world_size` workers.

        num_parts: number of parts, if `Config.num_parts` is None.
        """
        checks.check_world_size(self, world_size, num_parts or self.num_parts)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Config":
        """A configuration from sections of options, such as `{"optim": {"lr": 1e-4}}`, with defaults for the rest.

        Raises ConfigError, which names the first option that is unknown or has an impossible value.
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
        """The sections of options as plain values, which `Config.from_dict` reads back."""
        return {
            name: {key: list(value) if isinstance(value, tuple) else value for key, value in section.items()}
            for name, section in dataclasses.asdict(self).items()
        }


SECTIONS: dict[str, Any] = {section.name: section.type for section in dataclasses.fields(Config)}
"""The dataclass of each section."""


def option_names() -> list[str]:
    """All options as `section.name`."""
    return [f"{name}.{each.name}" for name, section in SECTIONS.items() for each in dataclasses.fields(section)]
