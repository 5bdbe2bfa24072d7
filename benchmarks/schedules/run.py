"""Which schedule learns most for the same epochs, multiply-adds and bytes? The small_* runs, one after the other.

    python -m benchmarks.schedules.run --data path/to/cifar10.zip      # or leave it out to download CIFAR-10

Runs each configuration with three workers under torchrun into RUNS, resuming what was interrupted, and writes results.md,
results.json and the comparison figures beside this file.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import command_line, describe_machine, in_words
from pipeflow.report.figures import comparison
from pipeflow.rundir.reading import read_run
from pipeflow.rundir.records import Summary

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs" / "cifar10"
RUNS = {
    "small_glow": "end to end",
    "small_alternate3": "alternate, a turn an epoch",
    "small_alternate3_steps": "alternate, a turn a batch",
    "small_concurrent3": "concurrent",
    "small_sequential3": "sequential",
}


def main() -> None:
    """Trains what is not there yet and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", help="a zip or folder of images laid out as train/ and test/; else CIFAR-10 is fetched"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run folders go")
    parser.add_argument("--workers", type=int, default=3)
    options = parser.parse_args()
    folders = []
    for name in RUNS:
        folder = options.runs / name
        folders.append(folder)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={options.workers}"]
        command += ["-m", "pipeflow.launch", "--config", str(CONFIGS / f"{name}.yaml"), "--run.dir", str(folder)]
        command += ["--data.name", "images", "--data.path", options.data] if options.data else []
        print(" ".join(command), flush=True)
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    runs = {name: read_run(folder) for name, folder in zip(RUNS, folders)}
    write_results({name: run.summary for name, run in runs.items()})
    comparison({RUNS[name]: run for name, run in runs.items()}, HERE)


def write_results(summaries: dict[str, Summary]) -> None:
    """results.md and results.json."""
    machine, command = describe_machine(), command_line("benchmarks.schedules.run")
    end_to_end = summaries["small_glow"].train_macs
    lines = [
        "# Schedules",
        "",
        f"`{command}` on {in_words(machine)}; three workers under torchrun, one thread each, gloo over loopback.",
        "",
        "Small flow (3 blocks x 4 steps, width 64), 3 parts across blocks, 4,992 training images of CIFAR-10, batch 64, "
        "Adam, lr 1e-3, cosine decay, 12 local + 6 end-to-end epochs (18 end to end), seed 0; bits/dim on all 10,000 test "
        "images. MB = 1e6 bytes; latents of training only. Seconds are of training, three workers on these cores.",
        "",
        "| run | final bits/dim | after the 12 local epochs: exits of parts 0, 1, 2 | multiply-adds (end to end = 1) "
        "| MB forward | MB back | MB gathered | seconds, local + end to end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    results = {}
    for name, summary in summaries.items():
        sent, seconds = summary.bytes, summary.seconds
        exits = ", ".join(f"{value:.3f}" for value in summary.exit_bpd or ()) or "-"
        lines.append(
            f"| {RUNS[name]} | {summary.test_bpd:.3f} | {exits} | {summary.train_macs / end_to_end:.2f} "
            f"| {sum(sent.forward) / 1e6:.0f} | {sum(sent.backward) / 1e6:.0f} "
            f"| {sum(sent.gather.values()) / 1e6:.1f} | {seconds.local:.0f} + {seconds.finetune:.0f} |"
        )
        results[name] = {key: value for key, value in summary.to_json().items() if key not in ("epochs", "parts")}
        results[name]["curve"] = [[each.epoch, each.phase, each.test_bpd] for each in summary.epochs]
    document = {"machine": machine, "command": command, "runs": results}
    (HERE / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (HERE / "results.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
