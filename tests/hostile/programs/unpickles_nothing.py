"""A run that is ended and resumed by workers who print it when something is unpickled. The argument is its folder."""

import sys
from pathlib import Path

import torch.distributed.distributed_c10d as c10d
import torch.utils.tensorboard  # noqa: F401 (what torch unpickles as it is imported is not ours)

from pipeflow import train
from tests.small_runs import small_config


def tell(event: str, arguments: tuple) -> None:
    if event == "pickle.find_class":
        print("UNPICKLED", *arguments, flush=True)


def refuse(*arguments, **options) -> None:
    print("OBJECTS", flush=True)
    raise AssertionError


def main(arguments: list[str]) -> None:
    sys.addaudithook(tell)
    for name in ("_object_to_tensor", "_tensor_to_object"):
        assert hasattr(c10d, name)
        setattr(c10d, name, refuse)
    for epochs in (1, 2):
        schedule = {"local_epochs": 1, "finetune_epochs": epochs}
        sections = {"parts": {"num": 2}, "schedule": schedule, "finetune": {"parallel": "ddp"}}
        summary = train(small_config(Path(arguments[0]), run={"device": "cpu"}, **sections))
        sys.stdout.write(f"ENDED {summary.num_epochs}\n")  # in one piece: two workers write
