"""The run, typed and validated: YAML and command line in, a frozen `Config` or one clear error out.

Nothing here imports torch or numpy, so that a mistyped option is reported before anything slow happens.
"""

from pipeflow.config.command_line import describe_options, load, parse_arguments
from pipeflow.config.config import Config, option_names
from pipeflow.config.flow_options import ModelConfig, PartsConfig
from pipeflow.config.options import (
    FINETUNE,
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
)

__all__ = [
    "FINETUNE", "CheckpointConfig", "Config", "DataConfig", "EvalConfig", "FinetuneConfig", "LinkConfig", "MemoryConfig",
    "ModelConfig", "OptimConfig", "PartsConfig", "PrecisionConfig", "RunConfig", "ScheduleConfig", "TimelineConfig",
    "describe_options", "load", "option_names", "parse_arguments",
]  # fmt: skip
