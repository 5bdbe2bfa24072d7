"""Do steps that are rounded otherwise learn the same? The small flow end to end on real CIFAR-10, by way of computing it.

    python -m benchmarks.step.learning --data path/to/cifar10.zip      # or leave it out to download CIFAR-10

One process each, resuming what was interrupted; writes learning.md and learning.json beside this file.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.machine import command_line, describe_machine, in_words
from pipeflow.device import has_bfloat16

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "cifar10" / "small_glow.yaml"
WAYS = {
    "reference": {"precision.step": "reference"},
    "fast": {"precision.step": "fast"},
    "fast, bfloat16 coupling nets": {"precision.step": "fast", "precision.coupling": "bfloat16"},
}
SEEDS = (0, 1)
BOUND = 0.005
"""Bits/dim by which a way may end apart from the reference."""


def main() -> None:
    """Trains what is not there yet and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a zip or folder laid out as train/ and test/; else CIFAR-10 is fetched")
    parser.add_argument("--runs", type=Path, default=Path("runs/step"), help="where the run folders go")
    options = parser.parse_args()
    found: dict[str, list[float]] = {}
    for way, changes in WAYS.items():
        if "bfloat16" in way and not has_bfloat16(torch.device("cpu")):
            print(f"{way}: not measured, for this processor has no arithmetic for it")
            continue
        for seed in SEEDS:
            folder = options.runs / f"{way.replace(',', '').replace(' ', '_')}_seed{seed}"
            found.setdefault(way, []).append(train(folder, {**changes, "run.seed": str(seed)}, options.data))
    machine = describe_machine()
    (HERE / "learning.json").write_text(
        json.dumps(
            {
                "machine": machine,
                "command": command_line("benchmarks.step.learning"),
                "seeds": SEEDS,
                "test_bpd": found,
            },
            indent=1,
        )
        + "\n"
    )
    (HERE / "learning.md").write_text(table(found, machine))
    print(table(found, machine))


def train(folder: Path, changes: dict[str, str], data: str | None) -> float:
    """Bits/dim of all test images at the end of one run."""
    given = {"run.dir": str(folder), **changes}
    if data is not None:
        given.update({"data.name": "images", "data.path": data})
    command = [sys.executable, "-m", "pipeflow.launch", "--config", str(CONFIG)]
    command += [word for name, value in given.items() for word in (f"--{name}", value)]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads((folder / "summary.json").read_text())["test_bpd"]


def table(found: dict[str, list[float]], machine: dict) -> str:
    """learning.md. found: bits/dim by way, a number a seed."""
    lines = [
        "# Steps rounded otherwise",
        "",
        f"`python -m benchmarks.step.learning --data cifar10.zip` on {in_words(machine)}; one thread.",
        "",
        "Small flow (3 blocks x 4 steps, width 64) end to end, 4,992 images of CIFAR-10, batch 64, Adam, lr 1e-3, cosine "
        "decay, 18 epochs; bits/dim on all 10,000 test images.",
        "",
        f"| step | {' | '.join(f'seed {seed}' for seed in SEEDS)} | mean | mean - reference |",
        "|---" * (len(SEEDS) + 3) + "|",
    ]
    reference = mean(found["reference"])
    for way, values in found.items():
        apart = "-" if way == "reference" else f"{mean(values) - reference:+.4f}"
        lines.append(f"| {way} | {' | '.join(f'{value:.4f}' for value in values)} | {mean(values):.4f} | {apart} |")
    largest = max(abs(mean(values) - reference) for values in found.values())
    apart = max(found["reference"]) - min(found["reference"])
    lines += [
        "",
        f"Asked: means at most {BOUND} apart; {'kept' if largest <= BOUND else 'missed'}, with {largest:.4f}. Seeds of the "
        f"reference are {apart:.4f} apart.",
    ]
    return "\n".join(lines) + "\n"


def mean(values: list[float]) -> float:
    """Over seeds."""
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
