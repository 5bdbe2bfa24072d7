"""A small run whose workers are given other images each: the run folder and its options are the arguments."""

import os

import torch

from pipeflow import ImageData, train
from pipeflow.config import load, parse_arguments
from pipeflow.errors import PipeflowError


def main(arguments: list[str]) -> int:
    noise = torch.Generator().manual_seed(int(os.environ["RANK"]))
    images = torch.randint(0, 256, (96, 3, 8, 8), dtype=torch.uint8, generator=noise)
    try:
        train(load(*parse_arguments(arguments)), data=ImageData(images[:64], images[64:], "noise"))
    except PipeflowError as error:
        if not error.reported:
            print("error:", error, flush=True)
        return 1
    return 0
