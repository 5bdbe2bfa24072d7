"""Memory of each worker, and time, of one flow at published size: parts in 1, 4 and 16 micro-batches beside their rivals.

    python -m benchmarks.parts.memory [--systems parts_16 1f1b] [--rounds 1] [--num-steps 32] [--width 512]

Three workers on the CPU, balanced cuts, batch 64, one thread each. Pipelines take 16 micro-batches. A worker's memory is
the most that it held (VmHWM) up to the end of the second epoch, or of a rival's measured batches: until then no checkpoint
is written and nothing is gathered. Python and torch are some 740 MB of it. The systems run in turn, round by round. Writes
memory.md and memory.json beside this file.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from statistics import median

import yaml

from benchmarks.machine import command_line, describe_machine, in_words
from benchmarks.pipelines.launch import launch
from benchmarks.pipelines.systems import SYSTEMS, command, read
from pipeflow.config import Config

HERE = Path(__file__).parent
WORKERS, BATCH, STEPS = 3, 64, 2
MICRO_BATCHES = 16
EPOCHS = 3
"""Of a run of pipeflow: the first is its warm-up, and a checkpoint is written behind the last."""

ROWS = {
    "parts_1": ("concurrent parts", "pipeflow_concurrent", 1),
    "parts_4": ("concurrent parts, 4 micro-batches", "pipeflow_concurrent", 4),
    "parts_16": ("concurrent parts, 16 micro-batches", "pipeflow_concurrent", MICRO_BATCHES),
    "1f1b": ("torch 1F1B, 16 micro-batches", "1f1b", MICRO_BATCHES),
    "gpipe": ("torch GPipe, 16 micro-batches", "gpipe", MICRO_BATCHES),
    "ddp": ("torch DDP", "ddp", 1),
    "single": ("one device", "single", 1),
}
"""Title, system and micro-batches, by name."""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="+", choices=ROWS, default=[*ROWS])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--num-steps", type=int, default=32, help="flow steps in each of three blocks")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that one run may take")
    parser.add_argument("--results", type=Path, default=HERE, help="folder of memory.md and memory.json")
    return parser.parse_args()


def measure(name: str, options: argparse.Namespace) -> dict:
    """One run: images a second, and bytes that each worker held."""
    _, system_name, micro_batches = ROWS[name]
    system = SYSTEMS[system_name]
    config = Config.from_dict(
        {
            "run": {"device": "cpu"},
            "data": {"num_train": STEPS * BATCH, "num_test": 8},
            "model": {"num_blocks": 3, "num_steps": options.num_steps, "width": options.width},
            "parts": {"split": "balanced", "num": WORKERS},
            "optim": {"batch_size": BATCH, "lr": 1e-5},
            "eval": {"every_epochs": 1000, "num_images": 1},
            "checkpoint": {"every_epochs": 1000},
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        out, config_path = Path(scratch) / "out", Path(scratch) / "config.yaml"
        config_path.write_text(yaml.safe_dump(config.to_dict()))
        sliced = ("--memory.micro_batches", str(micro_batches)) if system.family == "pipeflow" else ()
        started = command(
            system,
            config_path,
            out,
            steps=STEPS,
            warmup=STEPS,
            micro_batches=micro_batches,
            epochs=EPOCHS,
            options=sliced,
        )
        world_size = system.world_size(WORKERS)
        launch(system, started, out, world_size, 1, options.timeout)
        result = dataclasses.asdict(read(system, out, world_size))
    held = result["peak_by_epoch"][1] if system.through_launch else result["peak_memory"]
    return {"images_per_s": result["images_per_s"], "memory": held}


def table(rows: dict[str, list[dict]], options: argparse.Namespace, machine: dict) -> str:
    """memory.md."""
    lines = [
        "# Memory of a worker",
        "",
        f"`{command_line('benchmarks.parts.memory')}` on {in_words(machine)}; {WORKERS} workers of one thread each.",
        "",
        f"3 x {options.num_steps} steps, width {options.width}, balanced cuts, batch {BATCH}, Adam, gloo over loopback. MB "
        f"that each worker held at most, Python and torch included. Images/s: median of {options.rounds} rounds; workers "
        "share the processor's cores, so that a bubble costs little here.",
        "",
        "| | MB of each worker | images/s | whole batches = 1 |",
        "|---|---|---|---|",
    ]
    reference = [run["images_per_s"] for run in rows.get("parts_1", [])]
    for name, runs in rows.items():
        memory = ", ".join(f"{median(each) / 1e6:,.0f}" for each in zip(*(run["memory"] for run in runs)))
        speeds = [run["images_per_s"] for run in runs]
        ratios = [speed / other for speed, other in zip(speeds, reference)]
        ratio = f"{median(ratios):.2f}" if ratios else "-"
        lines.append(f"| {ROWS[name][0]} | {memory} | {median(speeds):.2f} | {ratio} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and writes the results."""
    options = parse_arguments()
    options.results.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict]] = {name: [] for name in options.systems}
    for _ in range(options.rounds):
        for name in options.systems:
            rows[name].append(measure(name, options))
            print(json.dumps({name: rows[name][-1]}), flush=True)
    machine = describe_machine()
    document = {"machine": machine, "command": command_line("benchmarks.parts.memory"), "rows": rows}
    (options.results / "memory.json").write_text(json.dumps(document, indent=1) + "\n")
    (options.results / "memory.md").write_text(table(rows, options, machine))


if __name__ == "__main__":
    main()
