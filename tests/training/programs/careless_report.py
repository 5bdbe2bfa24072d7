"""The launcher's entry, for a run whose report divides by zero at worker 1: its arguments are options."""

import os
from pathlib import Path

import pipeflow
from pipeflow import launch
from tests.small_runs import small_config


def main(arguments: list[str]) -> None:
    train = pipeflow.train
    pipeflow.train = lambda config: train(config, report=lambda event: 1 / (1 - int(os.environ["RANK"])))
    launch.run(small_config(Path(arguments[0].removeprefix("--run.dir="))))
