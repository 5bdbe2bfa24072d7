"""The launcher's entry, with another learning rate at each worker."""

import os

from pipeflow import launch


def main(arguments: list[str]) -> int:
    return launch.main([*arguments, f"--optim.lr=1e-{int(os.environ['RANK']) + 3}"])
