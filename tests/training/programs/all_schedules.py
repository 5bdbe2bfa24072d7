"""Every schedule in turn, in the same workers: python all_schedules.py FOLDER, alone or under torchrun."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from small_runs import small_config

from pipeflow import Config, train

SCHEDULES = {
    "sequential": {"mode": "sequential", "local_epochs": 3},
    "alternate": {"mode": "alternate"},
    "alternate_steps": {"mode": "alternate", "alternate_every": "2 steps"},
    "concurrent": {"mode": "concurrent"},
    "concurrent_int8": {"mode": "concurrent"},
    "concurrent_reference": {"mode": "concurrent"},
    "concurrent_invert": {"mode": "concurrent"},
    "end_to_end": {"mode": "end_to_end"},
}
CHANGED = {
    "concurrent_int8": {"link": {"dtype": "int8"}},
    "concurrent_reference": {"precision": {"step": "reference"}},
    "concurrent_invert": {"memory": {"activations": "invert"}},
}


def config_of(folder: Path, name: str) -> Config:
    """The configuration of one of them, in a folder of its name."""
    return small_config(folder / name, schedule=SCHEDULES[name], **CHANGED.get(name, {}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in SCHEDULES:
        train(config_of(Path(sys.argv[1]), name))
