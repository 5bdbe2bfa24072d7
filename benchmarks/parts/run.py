"""The cost of a part: memory a worker for each schedule and cut, and CPU seconds and bytes as the parts become more.

    python -m benchmarks.parts.run

    memory    a flow with large activations (3 x 4 steps, width 128, batch 256), a few batches: the most that each worker
              held, less what it held before it had data and flow; with `memory.activations: recompute` beside it
    scaling   a deep narrow flow (1 x 16 steps, width 32) in 1, 2, 4 and 8 concurrent parts, one worker each, more workers
              than cores: CPU seconds, not wall time, and bytes over each link

Everything under torchrun, one thread a worker, embedded images. Writes results.md and results.json beside this file.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import command_line, describe_machine, in_words
from pipeflow.config import Config

HERE = Path(__file__).parent
NUM_PARTS = (1, 2, 4, 8)
CUTS = {
    "blocks, 3": {"split": "blocks", "num": 3},
    "across blocks, 3": {"split": "across", "num": 3},
    "balanced, 3": {"split": "balanced", "num": 3},
    "balanced, 2": {"split": "balanced", "num": 2},
}
SCHEDULES = ("sequential", "alternate", "concurrent")


def train(settings: dict, workers: int) -> dict:
    """The summary of a run under torchrun."""
    with tempfile.TemporaryDirectory() as folder:
        config = Config.from_dict(
            {**settings, "run": {"dir": str(Path(folder) / "run"), "device": "cpu", "figures": False}}
        )
        options = [
            f"--{section}.{name}={'null' if value is None else value}"
            for section, values in config.to_dict().items()
            for name, value in values.items()
        ]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={workers}"]
        process = subprocess.run(
            [*command, "-m", "pipeflow.launch", *options],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        if process.returncode != 0:
            sys.exit(process.stderr[-3000:])
        return json.loads((Path(folder) / "run" / "summary.json").read_text())


def memory_of(parts: dict, mode: str, activations: str, workers: int) -> list[float]:
    """MB that each worker held beyond what it began with, at most."""
    epochs = parts["num"]
    summary = train(
        {
            "data": {"num_train": 512, "num_test": 256},
            "model": {"num_steps": 4, "width": 128},
            "parts": parts,
            "schedule": {"mode": mode, "local_epochs": epochs, "finetune_epochs": 0},
            "optim": {"batch_size": 256},
            "eval": {"every_epochs": 100, "num_images": 256},
            "checkpoint": {"every_epochs": 100},
            "memory": {"activations": activations},
        },
        workers,
    )
    memory = summary["memory"]
    return [(peak - before) / 1e6 for before, peak in zip(memory["before"], memory["peak"])]


def measure_memory() -> list[dict]:
    """A row for end to end and for each schedule and cut."""
    jobs = [("-", {"split": "balanced", "num": 1}, "end_to_end", 1)]
    jobs += [(cut, parts, mode, parts["num"]) for cut, parts in CUTS.items() for mode in SCHEDULES]
    rows = []
    for cut, parts, mode, workers in jobs:
        row = {"cut": cut, "schedule": mode}
        for activations in ("keep", "recompute"):
            row[activations] = memory_of(parts, mode, activations, workers)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def measure_scaling() -> list[dict]:
    """A row for each number of parts."""
    rows = []
    for num in NUM_PARTS:
        summary = train(
            {
                "data": {"num_train": 1280, "num_test": 64},
                "model": {"num_blocks": 1, "num_steps": 16, "width": 32},
                "parts": {"split": "balanced", "num": num},
                "schedule": {"mode": "concurrent", "local_epochs": 4, "finetune_epochs": 0},
                "optim": {"batch_size": 64},
                "eval": {"every_epochs": 100, "num_images": 64},
                "checkpoint": {"every_epochs": 100},
            },
            num,
        )
        epochs = summary["epochs"][1:]
        rows.append(
            {
                "parts": num,
                "cpu_seconds": statistics.median(sum(epoch["cpu_seconds"]) for epoch in epochs),
                "by_worker": [statistics.median(each) for each in zip(*(epoch["cpu_seconds"] for epoch in epochs))],
                "link_bytes": [count // len(summary["epochs"]) for count in summary["bytes"]["forward"]],
                "control_bytes": summary["bytes"]["control"],
                "exit_bpd": summary["exit_bpd"],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def tables(memory: list[dict], scaling: list[dict], machine: dict) -> str:
    """results.md."""

    def listed(values: list[float]) -> str:
        return ", ".join(f"{value:,.0f}" for value in values)

    lines = [
        "# What a part costs",
        "",
        f"`python -m benchmarks.parts.run` on {in_words(machine)}; one thread a worker.",
        "",
        "## Memory a worker",
        "",
        "MB that each worker held at most, beyond what it held before it had data and flow (resident memory, Python's and "
        "the allocator's included). 3 x 4 steps, width 128, batch 256.",
        "",
        "| cut, parts | schedule | each worker | largest / end to end | recomputing activations | largest / end to end |",
        "|---|---|---|---|---|---|",
    ]
    whole = max(memory[0]["keep"])
    for row in memory:
        lines.append(
            f"| {row['cut']} | {row['schedule']} | {listed(row['keep'])} | {max(row['keep']) / whole:.2f} "
            f"| {listed(row['recompute'])} | {max(row['recompute']) / whole:.2f} |"
        )
    lines += [
        "",
        "## More parts",
        "",
        "1 x 16 steps, width 32, batch 64, 1,280 images an epoch; CPU seconds of an epoch's training, median of 3 epochs.",
        "",
        "| parts | CPU seconds, all workers | one part = 1 | each worker | MB over each link, an epoch | exits, bits/dim |",
        "|---|---|---|---|---|---|",
    ]
    for row in scaling:
        by_worker = ", ".join(f"{value:.2f}" for value in row["by_worker"])
        links = ", ".join(f"{value / 1e6:.2f}" for value in row["link_bytes"]) or "-"
        exits = ", ".join(f"{value:.2f}" for value in row["exit_bpd"])
        lines.append(
            f"| {row['parts']} | {row['cpu_seconds']:.2f} | {row['cpu_seconds'] / scaling[0]['cpu_seconds']:.2f} "
            f"| {by_worker} | {links} | {exits} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and writes the results."""
    scaling, memory = measure_scaling(), measure_memory()
    machine = describe_machine()
    document = {
        "machine": machine,
        "command": command_line("benchmarks.parts.run"),
        "memory": memory,
        "scaling": scaling,
    }
    (HERE / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (HERE / "results.md").write_text(tables(memory, scaling, machine))


if __name__ == "__main__":
    main()
