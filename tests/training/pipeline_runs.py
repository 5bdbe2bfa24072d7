"""Small runs with end-to-end epochs that are a pipeline."""

from pathlib import Path

from pipeflow.config import Config
from tests.small_runs import small_config

RUNS = {
    "plain": {},
    "gpipe": {"finetune": {"schedule": "gpipe"}},
    "reference": {"precision": {"step": "reference"}, "optim": {"name": "adamax", "ema": 0, "decay": "none"}},
    "end_to_end": {"schedule": {"mode": "end_to_end", "local_epochs": 0, "finetune_epochs": 2}},
    "recompute": {"memory": {"activations": "recompute"}},
    "invert": {"memory": {"activations": "invert"}},
    "bfloat16": {"link": {"dtype": "bfloat16"}, "finetune": {"gradient_dtype": "bfloat16"}},
    "int8": {"link": {"dtype": "int8"}},
}


def config_of(folder: Path, name: str, parallel: str = "pipeline", **sections: dict) -> Config:
    """One of the runs, in a folder of its name: a local epoch, and two end to end that are clipped."""
    changed = {"schedule": {"mode": "concurrent", "local_epochs": 1, "finetune_epochs": 2}, **RUNS[name], **sections}
    changed["optim"] = {"clip_norm": 0.5, **changed.get("optim", {})}
    changed["finetune"] = {"parallel": parallel, **changed.get("finetune", {})}
    return small_config(folder / name, **changed)
