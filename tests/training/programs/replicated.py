"""Runs with replicas in turn, in the same workers: python replicated.py FOLDER REPLICAS NAME..., under torchrun."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from small_runs import small_config

from pipeflow import Config, train

RUNS = {
    "concurrent": ({"mode": "concurrent"}, {}),
    "alternate_steps": ({"mode": "alternate", "alternate_every": "2 steps"}, {"memory": {"activations": "recompute"}}),
    "ddp": ({"mode": "concurrent"}, {"finetune": {"parallel": "ddp"}}),
    "int8": ({"mode": "concurrent"}, {"link": {"dtype": "int8"}}),
}
"""Schedule, and what else is changed, by name."""


def config_of(folder: Path, name: str, replicas: int) -> Config:
    """The configuration of one of them, in a folder of its name."""
    schedule, changed = RUNS[name]
    parts = {"parts": {"split": "across", "num": 3, "replicas": replicas}}
    return small_config(folder / name, schedule=schedule, **parts, **changed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for run in sys.argv[3:]:
        train(config_of(Path(sys.argv[1]), run, int(sys.argv[2])))
