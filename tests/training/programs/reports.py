"""A small run whose workers print what they were told: for each worker of a launch, with the run folder as argument."""

import os
import sys
from pathlib import Path

from pipeflow import train
from tests.small_runs import small_config


def main(arguments: list[str]) -> None:
    told: list[dict] = []
    summary = train(small_config(Path(arguments[0])), report=told.append).to_json()
    if os.environ["RANK"] == "0":
        assert told == [*({"event": "epoch", **epoch} for epoch in summary["epochs"]), {"event": "end", **summary}]
    else:
        assert told == [{}] * 4
    sys.stdout.write(f"worker {os.environ['RANK']} was told {len(told)} times\n")
