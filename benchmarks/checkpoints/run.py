"""Does a training step wait for a checkpoint? Steps while one is written beside the training, against steps without.

    python -m benchmarks.checkpoints.run [--device cpu|cuda] [--rounds 7] [--batch 4] [--num-steps 32] [--width 512]
                                         [--threads 2] [--dir .] [--out FOLDER]

One process trains the flow as a worker does. In each round, in turn: steps without a checkpoint; a checkpoint, and steps
until it is whole; steps without one; a checkpoint that somebody waits for at once; one in the way of before, in which
everybody waited for the disk. Writes results.md and results.json beside this file; what the other device gave is kept.
"""

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.by_device import make_parser, save
from benchmarks.checkpoints.report import report
from pipeflow.config import Config
from pipeflow.device import choose_device
from pipeflow.flow import build_flow, split_flow
from pipeflow.rundir.checkpoint import Checkpoints
from pipeflow.rundir.records import Manifest, RunSeconds, Totals
from pipeflow.training.entries import Entries
from pipeflow.training.saver import Saver
from pipeflow.training.trainer import PartTrainer
from pipeflow.workers.alarm import Alarm
from pipeflow.workers.traffic import Traffic

HERE = Path(__file__).parent
SHAPE = (3, 32, 32)
QUIET_STEPS = 8
WARM_UP = 4


class Training:
    """A flow in training, and its steps."""

    def __init__(self, device: torch.device, batch_size: int, num_steps: int, width: int):
        torch.manual_seed(0)
        config = Config.from_dict(
            {
                "model": {"num_steps": num_steps, "width": width},
                "parts": {"num": 1},
                "optim": {"batch_size": batch_size},
            }
        )
        self.flow = build_flow(config, SHAPE)
        self._device = device
        self._images = (torch.rand(batch_size, *SHAPE) - 0.5).to(device)
        self.trainer = PartTrainer(split_flow(self.flow, [])[0], device, config, 1e-4, 1)
        self.trainer.part.initialize(self._images, True, [])

    def step(self) -> float:
        """Seconds of one."""
        start = time.perf_counter()
        _, loss = self.trainer.forward(self._images)
        self.trainer.update(loss)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - start

    def steps(self, number: int) -> list[float]:
        return [self.step() for _ in range(number)]


def beside(training: Training, saver: Saver, epoch: int, folder: Path) -> dict:
    """A checkpoint beside the training: what it stood still for, and its steps until the checkpoint is whole."""
    start = time.perf_counter()
    begin(training, saver, epoch)
    stall = time.perf_counter() - start
    steps = []
    while not is_whole(folder, epoch):
        steps.append(training.step())
    whole = time.perf_counter() - start
    saver.wait()
    return {"stall_s": stall, "steps_s": steps, "whole_s": whole}


def begin(training: Training, saver: Saver, epoch: int) -> None:
    """Begins a checkpoint as a run of one worker does."""
    saver.copy(training.trainer.tensors())
    totals = Totals(seconds=RunSeconds(), bytes={}, macs=0, initial_bpd=8.0, exit_bpd=None)
    manifest = Manifest(epoch=epoch, files=(), stage="whole", counts={}, history=(), state=totals, log_position=0)
    saver.save(epoch, 0, [0], manifest)


def is_whole(folder: Path, epoch: int) -> bool:
    return (folder / f"checkpoints/epoch-{epoch:06d}").exists()


def waited_for(training: Training, saver: Saver, epoch: int) -> float:
    """Seconds of a checkpoint that somebody waits for at once, as the last one of a run and one of a preemption."""
    start = time.perf_counter()
    begin(training, saver, epoch)
    saver.wait()
    return time.perf_counter() - start


def as_before(tensors: dict[str, Tensor], folder: Path) -> float:
    """Seconds that everybody waited when the training itself wrote its file, synced it, and read it to hash it."""
    start = time.perf_counter()
    path = folder / "before.safetensors"
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    with open(path, "rb") as file:
        hashlib.file_digest(file, "sha256").hexdigest()
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def measure(
    device: torch.device, rounds: int, batch_size: int, num_steps: int, width: int, folder: Path, quiet_steps: int
) -> dict:
    """All rounds; folder: on the disk that is measured."""
    training = Training(device, batch_size, num_steps, width)
    training.steps(WARM_UP)
    saver = Saver(Checkpoints(folder, keep=1), 0, Entries(None, 0, Traffic()), Alarm())
    start = time.perf_counter()
    saver.copy(training.trainer.tensors())
    first = time.perf_counter() - start
    measured = []
    for index in range(rounds):
        before = training.steps(quiet_steps)
        result = beside(training, saver, 2 * index + 1, folder)
        result["quiet_steps_s"] = before + training.steps(quiet_steps)
        result["waited_for_s"] = waited_for(training, saver, 2 * index + 2)
        result["as_before_s"] = as_before(training.trainer.tensors(), folder)
        measured.append(result)
        steps, during = median(result["quiet_steps_s"]), median(result["steps_s"] or [0.0])
        print(
            f"round {index}: a step {steps:.3f} s, beside a checkpoint {during:.3f} s ({len(result['steps_s'])} of them), "
            f"stall {result['stall_s']:.3f} s, as before {result['as_before_s']:.2f} s",
            flush=True,
        )
    saver.close()
    tensors = training.trainer.tensors()
    return {
        "num_parameters": sum(parameter.numel() for parameter in training.flow.parameters()),
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "batch_size": batch_size,
        "first_copy_s": first,
        "rounds": measured,
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__, HERE)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument(
        "--num-steps", type=int, default=32, help="flow steps a block; 32 of width 512: the published flow"
    )
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--dir", default=".", help="a folder on the disk that is written to")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the results."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="checkpoints-") as folder:
        measured = measure(
            device, options.rounds, options.batch, options.num_steps, options.width, Path(folder), QUIET_STEPS
        )
    save(options, "results", "benchmarks.checkpoints.run", arguments, measured, report)


if __name__ == "__main__":
    main()
