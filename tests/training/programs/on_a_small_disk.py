"""A run that prints the error that ends it, and the checkpoints that are left: its arguments are options."""

from pathlib import Path

from pipeflow import train
from pipeflow.config import load, parse_arguments
from pipeflow.errors import PipeflowError


def main(arguments: list[str]) -> None:
    config = load(*parse_arguments(arguments))
    try:
        train(config)
    except PipeflowError as error:
        print("error:", error)
    print("left:", *sorted(path.name for path in Path(config.run.dir, "checkpoints").iterdir()), flush=True)
