"""The systems that are compared, and how each is started, watched and read.

Every system is a program of its own, one process a worker, told by the environment who it is (RANK, WORLD_SIZE, MASTER_ADDR
...), as on several machines: `pipeflow.launch`, and for the others `benchmarks.pipelines.worker`.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

PIPEFLOW, RIVALS = "all-pipeflow", "rivals"
"""Names of groups."""
LOCAL_PERIOD = 8
"""Batches from one average of local SGD to the next."""


@dataclass(frozen=True)
class System:
    """A system that is run for one line of the tables, at one number of micro-batches."""

    name: str
    micro_batches: int | None = None

    @property
    def label(self) -> str:
        """Name, and number of micro-batches where there is one."""
        return self.name if self.micro_batches is None else f"{self.name}, {self.micro_batches} micro-batches"

    @property
    def is_pipeflow(self) -> bool:
        """Whether nothing is meant to go back."""
        return isinstance(self, Pipeflow)


@dataclass(frozen=True)
class Pipeflow(System):
    """pipeflow: one epoch to warm up and one that is measured; in `alternate` a turn of each part for both."""

    dtype: str = "float32"
    mode: str = "concurrent"

    def turns(self, num_workers: int) -> int:
        """Epochs until every part has trained."""
        return num_workers if self.mode == "alternate" else 1

    def settings(self, steps: int, batch_size: int, num_workers: int) -> dict:
        """Options that the configuration must have for a run in which so many batches are measured."""
        return {
            "data": {"num_train": max(1, steps // self.turns(num_workers)) * batch_size, "num_test": 1},
            "schedule": {"local_epochs": 2 * self.turns(num_workers), "finetune_epochs": 0},
            "eval": {"every_epochs": 1000},
            "checkpoint": {"every_epochs": 1000},
        }

    def command(self, config: Path, steps: int, warmup: int, folder: Path) -> list[str]:
        """The program of every worker. config: a YAML file; folder: where it may write."""
        options = ["--config", str(config), "--link.dtype", self.dtype, "--schedule.mode", self.mode]
        return [sys.executable, "-m", "pipeflow.launch", *options, "--run.dir", str(folder / "run")]

    def has_begun(self, folder: Path, num_workers: int) -> bool:
        """Whether the epochs that are measured have begun. Asked every few milliseconds: the log has no times."""
        log = folder / "run" / "metrics.jsonl"
        return log.exists() and log.read_bytes().count(b'"event": "epoch"') >= self.turns(num_workers)

    def read(self, folder: Path, num_workers: int) -> dict:
        """Seconds, batches and payload bytes, forward and back, that are measured: of training, from summary.json."""
        summary = json.loads((folder / "run" / "summary.json").read_text())
        epochs = summary["epochs"][self.turns(num_workers) :]
        return {
            "seconds": sum(epoch["seconds"] for epoch in epochs),
            "images": sum(epoch["images"] for epoch in epochs),
            "payload": [
                sum(count for epoch in epochs for _, _, count in epoch["bytes"]["latents"]),
                sum(summary["bytes"]["backward"]),
            ],
        }


@dataclass(frozen=True)
class Rival(System):
    """A system of benchmarks/pipelines."""

    system: str = ""
    compress: str = "none"

    def settings(self, steps: int, batch_size: int, num_workers: int) -> dict:
        """Few images, which come again: how many batches are trained is said in the command."""
        return {"data": {"num_train": 8 * batch_size, "num_test": 1}}

    def command(self, config: Path, steps: int, warmup: int, folder: Path) -> list[str]:
        """The program of every worker. config: a YAML file; folder: where it may write."""
        options = ["--system", self.system, "--compress", self.compress, "--config", str(config)]
        if self.micro_batches is not None:
            options += ["--micro-batches", str(self.micro_batches)]
        if self.system == "local_sgd":  # whole periods, each with its average
            steps = max(1, steps // LOCAL_PERIOD) * LOCAL_PERIOD
            options += ["--period", str(LOCAL_PERIOD)]
        options += ["--steps", str(steps), "--warmup", str(warmup), "--out", str(folder)]
        return [sys.executable, "-m", "benchmarks.pipelines.worker", *options]

    def has_begun(self, folder: Path, num_workers: int) -> bool:
        """Known only afterwards: `read` gives it as `began`."""
        return False

    def read(self, folder: Path, num_workers: int) -> dict:
        """Seconds, batches and payload bytes, forward and back, that are measured, and when that began.

        All workers begin together, behind a barrier.
        """
        files = [folder / f"rank{rank}.json" for rank in range(num_workers)]
        ranks = [json.loads(file.read_text()) for file in files]
        epochs = ranks[0]["images"] / ranks[0]["images_per_epoch"]
        ways = [epochs * sum(rank[f"sent_{way}_bytes"] for rank in ranks) for way in ("forward", "backward")]
        seconds = max(rank["seconds"] for rank in ranks)
        return {
            "seconds": seconds,
            "images": ranks[0]["images"],
            "payload": [round(way) for way in ways],
            "began": min(rank["began"] for rank in ranks),
        }


def make_systems(groups: list[str], micro_batches: list[int]) -> list[System]:
    """The systems of these names; `all-pipeflow` and `rivals` are groups."""
    mine: list[System] = [
        Pipeflow("pipeflow", dtype="float32"),
        Pipeflow("pipeflow bfloat16", dtype="bfloat16"),
        Pipeflow("pipeflow int8", dtype="int8"),
        Pipeflow("pipeflow alternate", mode="alternate"),
    ]
    rivals: list[System] = [
        Rival(f"{name}{kind}", count, system=system, compress=compress)
        for name, system in (("GPipe", "gpipe"), ("1F1B", "1f1b"))
        for kind, compress in (("", "none"), (" bf16", "bf16"))
        for count in micro_batches
    ]
    rivals += [
        Rival("DDP", system="ddp"),
        Rival("DDP bf16", system="ddp", compress="bf16"),
        Rival("DDP PowerSGD", system="ddp", compress="powersgd"),
        Rival("local SGD", system="local_sgd"),
    ]
    whole = {PIPEFLOW: mine, RIVALS: rivals}
    chosen = [
        system
        for system in mine + rivals
        if any(system in whole[group] if group in whole else group == system.name for group in groups)
    ]
    names = sorted({system.name for system in mine + rivals})
    unknown = [group for group in groups if group not in whole and group not in names]
    if unknown:
        raise ValueError(f"--systems: there is no {unknown[0]!r}: choose from {', '.join([*whole, *names])}.")
    return chosen
