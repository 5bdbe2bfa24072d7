"""Small real runs, in this process and in several: their configurations, and how two of them are compared."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from pipeflow import train
from pipeflow.config import Config
from tests.launching import Launch

SMALL = {
    "data": {"num_train": 96, "num_test": 40},
    "model": {"num_blocks": 2, "num_steps": 2, "width": 8},
    "parts": {"split": "across", "num": 3},
    "schedule": {"mode": "concurrent", "local_epochs": 2, "finetune_epochs": 1},
    "optim": {"batch_size": 32, "warmup_steps": 2, "ema": 0.9},
    "eval": {"num_images": 24},
    "checkpoint": {"keep": 9},
}


def small_config(run_dir: Path, **sections: dict) -> Config:
    """The small run, with options changed by section: `small_config(path, optim={"lr": 1.0})`."""
    merged = {name: {**SMALL.get(name, {}), **sections.get(name, {})} for name in {*SMALL, *sections}}
    merged["run"] = {"dir": str(run_dir), "figures": False, **sections.get("run", {})}
    return Config.from_dict(merged)


def options(config: Config) -> list[str]:
    """A configuration as command line options."""
    return [
        f"--{section}.{name}={'null' if value is None else ','.join(value) if isinstance(value, list) else value}"
        for section, values in config.to_dict().items()
        for name, value in values.items()
    ]


def torchrun(num_workers: int, *arguments: str, **settings) -> subprocess.Popen:
    """Starts workers under torchrun with one thread each; output and errors together in its stdout."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_workers}"]
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "10"},
        start_new_session=True,
        **settings,
    )


def train_in_turn(num_workers: int, configs: Sequence[Config]) -> str:
    """These runs one after the other, in the same workers; what they print."""
    settings = json.dumps([config.to_dict() for config in configs])
    process = Launch(num_workers, settings, entry="tests.small_runs:train_each")
    try:
        output = finish(process)
    finally:
        process.close()
    assert process.returncode == 0, output
    return output


def train_each(arguments: list[str]) -> None:
    """What each worker of `train_in_turn` does."""
    torch.set_num_threads(1)
    for settings in json.loads(arguments[0]):
        train(Config.from_dict(settings))


def finish(process: subprocess.Popen | Launch, timeout: float = 120) -> str:
    """Waits for the end of a process; its output."""
    output, _ = process.communicate(timeout=timeout)
    return output


def read_until(process: subprocess.Popen | Launch, holds: Callable[[str], bool]) -> str:
    """Reads lines of output until one for which `holds`; fails where the process ends before."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if holds(line):
            return "".join(lines)
    raise AssertionError("the process ended without the line waited for:\n" + "".join(lines))


def errors_in(output: str) -> list[str]:
    """The lines that pipeflow said as errors."""
    return [line for line in output.splitlines() if line.startswith("error: ")]


def checkpoint_tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """All tensors of all checkpoints of a run, whatever files they are spread over, and the final model."""
    tensors = {}
    for file in sorted(Path(run_dir).glob("checkpoints/epoch-*/*.safetensors")):
        for name, value in load_file(file).items():
            tensors[f"{file.parent.name} {name}"] = value
    for name, value in load_file(Path(run_dir) / "model.safetensors").items():
        tensors[f"final {name}"] = value
    return tensors


def learned(run_dir: Path) -> dict:
    """What a summary says of learning and of latents: all that must not depend on the number of workers."""
    summary = json.loads((Path(run_dir) / "summary.json").read_text())
    kept = {name: summary[name] for name in ("test_bpd", "test_bpd_raw", "initial_bpd", "exit_bpd", "train_macs")}
    kept["forward"] = summary["bytes"]["forward"]
    for epoch in summary["epochs"]:
        kept[epoch["epoch"]] = {
            name: epoch[name] for name in ("phase", "trained", "train_loss", "test_bpd", "exit_bpd", "updates", "macs")
        }
        kept[epoch["epoch"]]["latents"] = epoch["bytes"]["latents"]
    return kept


def assert_same_tensors(left: Path, right: Path) -> None:
    """Every tensor of every checkpoint, and the final model, bit for bit."""
    theirs, ours = checkpoint_tensors(right), checkpoint_tensors(left)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, f"{len(different)} of {len(ours)} tensors differ, first {different[:3]}"
