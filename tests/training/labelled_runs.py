"""Small runs on labelled images, of a flow that takes their labels in its first and last part, and in its top prior."""

from pathlib import Path

from pipeflow.config import Config
from tests.small_runs import small_config

RUNS = {
    "plain": {"memory": {"micro_batches": 2}},
    "pipeline": {"finetune": {"parallel": "pipeline"}, "memory": {"activations": "recompute"}},
    "ddp": {"finetune": {"parallel": "ddp"}, "memory": {"activations": "invert"}},
}


def config_of(folder: Path, name: str, **sections: dict) -> Config:
    """One of the runs, in a folder of its name."""
    sections = {"data": {"name": "tests.labelled:images"}, "model": {"name": "tests.labelled:shifted_glow"}, **sections}
    sections["parts"] = {"num": None, "split": ["blocks.0.steps.1", "blocks.1.squeeze"], **sections.get("parts", {})}
    return small_config(folder / name, **RUNS[name], **sections)
