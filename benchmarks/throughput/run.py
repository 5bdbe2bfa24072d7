"""How close a concurrent pipeline comes to its slowest part by itself.

    python -m benchmarks.throughput.run [--workers 2] [--batch 64 512] [--rounds 5] [--device auto]

In turn, round by round: the parts by themselves, all at once (`alone.py`: latents in memory, nothing else), and a run of
`pipeflow.launch` with a worker for each part, of which only the seconds of training count, after its first epoch. The ratio
is the run's images a second over those of its slowest part. Writes results.md and results.json beside this file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from benchmarks.machine import command_line, describe_machine, in_words
from pipeflow.config import Config

HERE = Path(__file__).parent
NUM_STEPS = 40
GOAL = 0.95


def configuration(workers: int, batch_size: int, device: str, folder: Path) -> Config:
    """The small flow, balanced, concurrent."""
    return Config.from_dict(
        {
            "run": {"dir": str(folder), "device": device, "resume": "never", "figures": False},
            "data": {"num_train": NUM_STEPS * batch_size, "num_test": 64},
            "model": {"num_steps": 4, "width": 64},
            "parts": {"split": "balanced", "num": workers},
            "schedule": {"local_epochs": 2, "finetune_epochs": 0},
            "optim": {"batch_size": batch_size, "lr": 1e-3},
            "eval": {"every_epochs": 100, "num_images": 64},
            "checkpoint": {"every_epochs": 100},
        }
    )


def torchrun(workers: int, *arguments: str) -> None:
    """One thread a worker."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={workers}", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment)
    if process.returncode != 0:
        sys.exit(f"{' '.join(arguments)} failed:\n{process.stderr[-3000:]}")


def measure(workers: int, batch_size: int, device: str) -> dict:
    """One round: images a second of each part alone and of the run, and how long each worker of it waited."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(configuration(workers, batch_size, device, folder / "run").to_dict()))
        torchrun(
            workers, "benchmarks.throughput.alone", "--config", str(config), "--out", scratch, "--steps", str(NUM_STEPS)
        )
        alone = [json.loads((folder / f"part{part}.json").read_text()) for part in range(workers)]
        torchrun(workers, "pipeflow.launch", "--config", str(config))
        epochs = json.loads((folder / "run" / "summary.json").read_text())["epochs"][1:]
    (epoch,) = epochs
    rate = epoch["images"] / epoch["seconds"]
    slowest = min(range(workers), key=lambda part: alone[part]["images_per_s"])
    return {
        "alone": [part["images_per_s"] for part in alone],
        "run": rate,
        "ratio": rate / alone[slowest]["images_per_s"],
        "cpu_ratio": epoch["images"] / epoch["cpu_seconds"][slowest] / alone[slowest]["images_per_cpu_s"],
        "idle": epoch["idle"],
    }


def table(results: dict, machine: dict, command: str) -> str:
    """results.md."""
    lines = [
        "# A concurrent run against its slowest part",
        "",
        f"`{command}` on {in_words(machine)}; one thread a worker.",
        "",
        f"Small flow (3 x 4 steps, width 64), balanced cut, an epoch of {NUM_STEPS} batches. Images a second, median of "
        f"the rounds (lowest to highest); ratios are taken in each round. Goal: {GOAL} or more. The last ratio is of "
        "images a CPU second of the slowest part's worker: it has links, images and Python in it, and waiting not.",
        "",
        "| workers | batch | each part alone | the run | run / slowest part | idle | the same by CPU seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, rounds in results.items():
        workers, batch_size = key.split(",")
        alone = ", ".join(f"{statistics.median(rates):.0f}" for rates in zip(*(each["alone"] for each in rounds)))
        runs = [each["run"] for each in rounds]
        ratios, by_cpu = ([each[name] for each in rounds] for name in ("ratio", "cpu_ratio"))
        idle = ", ".join(f"{statistics.median(shares):.0%}" for shares in zip(*(each["idle"] for each in rounds)))
        lines.append(
            f"| {workers} | {batch_size} | {alone} | {statistics.median(runs):.0f} | {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}) | {idle} | {statistics.median(by_cpu):.3f} ({min(by_cpu):.3f} to "
            f"{max(by_cpu):.3f}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    results: dict[str, list[dict]] = {}
    for number in range(options.rounds):
        for batch_size in options.batch:
            result = measure(options.workers, batch_size, options.device)
            results.setdefault(f"{options.workers},{batch_size}", []).append(result)
            print(f"round {number}, batch {batch_size}: {json.dumps(result)}", flush=True)
    machine = describe_machine()
    command = command_line("benchmarks.throughput.run")
    document = {"machine": machine, "command": command, "rounds": results}
    (HERE / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (HERE / "results.md").write_text(table(results, machine, command))


if __name__ == "__main__":
    main()
