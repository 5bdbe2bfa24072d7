"""A small run whose workers print what they were told: under torchrun, with the run folder as argument."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_runs import small_config

from pipeflow import train

told: list[dict] = []
summary = train(small_config(Path(sys.argv[1])), report=told.append)
if os.environ["RANK"] == "0":
    assert told == [*({"event": "epoch", **epoch} for epoch in summary["epochs"]), {"event": "end", **summary}]
else:
    assert told == [{}] * 4
sys.stdout.write(f"worker {os.environ['RANK']} was told {len(told)} times\n")
