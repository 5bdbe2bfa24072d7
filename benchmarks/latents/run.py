"""What cheaper latents cost in bits/dim: in fewer bytes on the links, and kept instead of computed and sent again.

    python -m benchmarks.latents.run --data path/to/cifar10.zip      # or leave it out to download CIFAR-10

    types   concurrent parts, 12 + 6 epochs, with each `link.dtype`
    draws   one part after the other, 12 local epochs (4 a part), with `link.cache_draws` 0, 1, 2
    few     the same on 512 images for 48 local epochs (16 a part), draws 0, 1, 4
    fewest  the same on 256 images for 300 local epochs (100 a part): learnt by heart

The small flow on real CIFAR-10, three workers under torchrun, one seed. Bits/dim are of unrounded latents throughout.
Runs go to RUNS and resume; writes results.md and results.json beside this file.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import describe_machine, in_words
from pipeflow.rundir.reading import read_run

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs" / "cifar10"
LOCAL = {"schedule.finetune_epochs": "0"}
FEW = {**LOCAL, "schedule.local_epochs": "48", "data.num_train": "512", "eval.every_epochs": "4"}
FEWEST = {**LOCAL, "schedule.local_epochs": "300", "data.num_train": "256", "eval.every_epochs": "100"}
FEWEST["checkpoint.every_epochs"] = "100"
GROUPS = {
    "types": {
        f"types_{dtype}": ("small_concurrent3", {"link.dtype": dtype}) for dtype in ("float32", "bfloat16", "int8")
    },
    "draws": {
        f"draws_{draws}": ("small_sequential3", {**LOCAL, "link.cache_draws": str(draws)}) for draws in (0, 1, 2)
    },
    "few": {f"few_{draws}": ("small_sequential3", {**FEW, "link.cache_draws": str(draws)}) for draws in (0, 1, 4)},
    "fewest": {
        f"fewest_{draws}": ("small_sequential3", {**FEWEST, "link.cache_draws": str(draws)}) for draws in (0, 1, 4)
    },
}
TITLES = {
    "types": "## Types on the link (concurrent, 12 + 6 epochs, 4,992 images)",
    "draws": "## Kept draws (sequential, 12 local epochs, 4 a part, 4,992 images)",
    "few": "## Kept draws of few images (sequential, 48 local epochs, 16 a part, 512 images)",
    "fewest": "## Kept draws of fewest images (sequential, 300 local epochs, 100 a part, 256 images)",
}


def run(name: str, config: str, options: dict[str, str], arguments: argparse.Namespace) -> dict:
    """Trains the run, or what is missing of it; what it left."""
    folder = arguments.runs / name
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={arguments.workers}"]
    command += ["-m", "pipeflow.launch", "--config", str(CONFIGS / f"{config}.yaml"), "--run.dir", str(folder)]
    command += ["--data.name", "images", "--data.path", arguments.data] if arguments.data else []
    command += [text for option, value in options.items() for text in (f"--{option}", value)]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return read_run(folder)


def row(name: str, summary: dict) -> str:
    """A line of a table."""
    exits = ", ".join(f"{value:.3f}" for value in summary["exit_bpd"])
    local = [epoch for epoch in summary["epochs"] if epoch["phase"] != "finetune"]
    losses = [epoch["train_loss"] for epoch in local]
    trained = ", ".join(f"{[each[part] for each in losses if part in each][-1]:.3f}" for part in "012")
    final = f"{summary['test_bpd']:.3f}" if len(local) < len(summary["epochs"]) else "-"
    cpu = [sum(epoch["cpu_seconds"]) for epoch in local if "cpu_seconds" in epoch]
    return (
        f"| {name.split('_')[1]} | {exits} | {trained} | {final} | {sum(summary['bytes']['forward']) / 1e6:,.0f} "
        f"| {sum(epoch['macs'] for epoch in local):.2e} | {f'{sum(cpu):.0f}' if len(cpu) == len(local) else '-'} |"
    )


def tables(groups: dict[str, dict[str, dict]], machine: dict, command: str) -> str:
    """results.md."""
    lines = ["# Cheaper latents", "", f"`{command}` on {in_words(machine)}; one thread a worker.", ""]
    lines += ["Exits are test bits/dim after parts 0, 1, 2 at the end of the local epochs, on all 10,000 test images."]
    lines += ["Multiply-adds and CPU seconds, of all workers, are of the local epochs' training."]
    for group, summaries in groups.items():
        what = "link.dtype" if group == "types" else "link.cache_draws"
        lines += ["", TITLES[group], ""]
        lines.append(
            f"| {what} | exits | last training loss of parts 0, 1, 2 | final | MB forward | multiply-adds | CPU seconds |"
        )
        lines.append("|---|---|---|---|---|---|---|")
        lines += [row(name, summary) for name, summary in summaries.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Trains what is not there yet and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a zip or folder of images as train/ and test/; else CIFAR-10 is fetched")
    parser.add_argument("--runs", type=Path, default=Path("runs/latents"), help="where the run folders go")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=[*GROUPS])
    arguments = parser.parse_args()
    groups = {
        group: {name: run(name, *each, arguments) for name, each in GROUPS[group].items()} for group in arguments.groups
    }
    machine = describe_machine()
    kept = ("test_bpd", "exit_bpd", "bytes", "seconds", "world_size")
    document = {
        name: {key: summary[key] for key in kept if key in summary}
        for summaries in groups.values()
        for name, summary in summaries.items()
    }
    command = "python -m benchmarks.latents.run --data cifar10.zip"
    (HERE / "results.json").write_text(json.dumps({"machine": machine, "runs": document}, indent=1) + "\n")
    (HERE / "results.md").write_text(tables(groups, machine, command))


if __name__ == "__main__":
    main()
