"""How many bits/dim cheaper latents cost: concurrent parts, 12 + 6 epochs, with each `link.dtype`.

    python -m benchmarks.latents.run --data path/to/cifar10.zip      # or leave it out to download CIFAR-10

The small flow on real CIFAR-10, three workers under torchrun, one seed. Bits/dim are of unrounded latents throughout.
The runs of sweep.yaml go to RUNS and resume; writes results.md and results.json beside this file.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.machine import command_line, describe_machine, in_words
from pipeflow.errors import PipeflowError
from pipeflow.rundir.reading import read_run
from pipeflow.rundir.records import Summary
from pipeflow.sweep.command import sweep
from pipeflow.sweep.runs import read_sweep

HERE = Path(__file__).parent
SWEEP = HERE / "sweep.yaml"


def row(dtype: str, summary: Summary) -> str:
    """A line of the table."""
    exits = ", ".join(f"{value:.3f}" for value in summary.exit_bpd or ())
    local = [epoch for epoch in summary.epochs if epoch.is_local]
    losses = [epoch.train_loss for epoch in local]
    trained = ", ".join(f"{[each[part] for each in losses if part in each][-1]:.3f}" for part in "012")
    cpu = [sum(epoch.cpu_seconds) for epoch in local if epoch.cpu_seconds is not None]
    return (
        f"| {dtype} | {exits} | {trained} | {summary.test_bpd:.3f} | {sum(summary.bytes.forward) / 1e6:,.0f} "
        f"| {sum(epoch.macs for epoch in local):.2e} | {f'{sum(cpu):.0f}' if len(cpu) == len(local) else '-'} |"
    )


def table(summaries: dict[str, Summary], machine: dict, command: str) -> str:
    """results.md."""
    lines = [
        "# Cheaper latents",
        "",
        f"`{command}` on {in_words(machine)}; one thread a worker.",
        "",
        "Concurrent, 12 + 6 epochs, 4,992 images. Exits are test bits/dim after parts 0, 1, 2 at the end of the local "
        "epochs, on all 10,000 test images.",
        "Multiply-adds and CPU seconds, of all workers, are of the local epochs' training.",
        "",
        "| link.dtype | exits | last training loss of parts 0, 1, 2 | final | MB forward | multiply-adds | CPU seconds |",
        "|---|---|---|---|---|---|---|",
        *(row(dtype, summary) for dtype, summary in summaries.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Trains what is not there yet and writes the results; 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a zip or folder of images as train/ and test/; else CIFAR-10 is fetched")
    parser.add_argument("--runs", default="runs/latents", help="where the run folders go")
    arguments = parser.parse_args()
    overrides = {"data.name": "images", "data.path": arguments.data} if arguments.data else {}
    try:
        if sweep(SWEEP, 1, overrides, arguments.runs):  # one after the other: their CPU seconds count
            return 1
    except PipeflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    runs = [run.config for run in read_sweep(SWEEP, overrides, arguments.runs).runs]
    summaries = {config.link.dtype: read_run(config.run.dir).summary for config in runs}
    machine, command = describe_machine(), command_line("benchmarks.latents.run")
    kept = ("test_bpd", "exit_bpd", "bytes", "seconds", "world_size")
    document = {
        f"types_{dtype}": {key: value for key, value in summary.to_json().items() if key in kept}
        for dtype, summary in summaries.items()
    }
    (HERE / "results.json").write_text(
        json.dumps({"machine": machine, "command": command, "runs": document}, indent=1) + "\n"
    )
    (HERE / "results.md").write_text(table(summaries, machine, command))
    return 0


if __name__ == "__main__":
    sys.exit(main())
