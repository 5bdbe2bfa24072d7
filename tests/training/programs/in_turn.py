"""Several runs, one after the other in the same workers: python in_turn.py CONFIGURATIONS.json, under torchrun."""

import json
import sys
from pathlib import Path

import torch

from pipeflow import Config, train

if __name__ == "__main__":
    torch.set_num_threads(1)
    for settings in json.loads(Path(sys.argv[1]).read_text()):
        train(Config.from_dict(settings))
