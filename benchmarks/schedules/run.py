"""Which schedule learns most for the same epochs, multiply-adds and bytes? The small_* runs, one after the other.

    python -m benchmarks.schedules.run --data path/to/cifar10.zip      # or leave it out to download CIFAR-10

Trains the runs of sweep.yaml with three workers each under torchrun, resuming what was interrupted, and writes results.md,
results.json and the comparison figures beside this file.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.machine import command_line, describe_machine, in_words
from pipeflow.errors import PipeflowError
from pipeflow.report.figures import comparison
from pipeflow.rundir.reading import read_run
from pipeflow.rundir.records import Summary
from pipeflow.sweep.command import sweep
from pipeflow.sweep.runs import read_sweep

HERE = Path(__file__).parent
SWEEP = HERE / "sweep.yaml"


def main() -> int:
    """Trains what is not there yet and writes the results; 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", help="a zip or folder of images laid out as train/ and test/; else CIFAR-10 is fetched"
    )
    parser.add_argument("--runs", default="runs/schedules", help="where the run folders go")
    options = parser.parse_args()
    overrides = {"data.name": "images", "data.path": options.data} if options.data else {}
    try:
        if sweep(SWEEP, 1, overrides, options.runs):  # one after the other: their seconds count
            return 1
    except PipeflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    runs = {run.arm: read_run(run.config.run.dir) for run in read_sweep(SWEEP, overrides, options.runs).runs}
    write_results({name: run.summary for name, run in runs.items()})
    comparison(runs, HERE)
    return 0


def write_results(summaries: dict[str, Summary]) -> None:
    """results.md and results.json."""
    machine, command = describe_machine(), command_line("benchmarks.schedules.run")
    end_to_end = summaries["end to end"].train_macs
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
            f"| {name} | {summary.test_bpd:.3f} | {exits} | {summary.train_macs / end_to_end:.2f} "
            f"| {sum(sent.forward) / 1e6:.0f} | {sum(sent.backward) / 1e6:.0f} "
            f"| {sum(sent.gather.values()) / 1e6:.1f} | {seconds.local:.0f} + {seconds.finetune:.0f} |"
        )
        results[name] = {key: value for key, value in summary.to_json().items() if key not in ("epochs", "parts")}
        results[name]["curve"] = [[each.epoch, each.phase, each.test_bpd] for each in summary.epochs]
    document = {"machine": machine, "command": command, "runs": results}
    (HERE / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (HERE / "results.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
