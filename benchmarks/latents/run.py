"""How many bits/dim cheaper latents cost: concurrent parts, 12 + 6 epochs, with each `link.dtype`.

    python -m benchmarks.latents.run --data path/to/cifar10.zip      # or leave it out to download CIFAR-10

The small flow on real CIFAR-10, three workers under torchrun, one seed. Bits/dim are of unrounded latents throughout.
Runs go to RUNS and resume; writes results.md and results.json beside this file.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import command_line, describe_machine, in_words
from pipeflow.rundir.reading import read_run
from pipeflow.rundir.records import Summary

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "cifar10" / "small_concurrent3.yaml"
DTYPES = ("float32", "bfloat16", "int8")


def run(dtype: str, arguments: argparse.Namespace) -> Summary:
    """Trains the run, or the rest of it; its summary."""
    folder = arguments.runs / f"types_{dtype}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={arguments.workers}"]
    command += ["-m", "pipeflow.launch", "--config", str(CONFIG), "--run.dir", str(folder), "--link.dtype", dtype]
    command += ["--data.name", "images", "--data.path", arguments.data] if arguments.data else []
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return read_run(folder).summary


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


def main() -> None:
    """Trains what is not there yet and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a zip or folder of images as train/ and test/; else CIFAR-10 is fetched")
    parser.add_argument("--runs", type=Path, default=Path("runs/latents"), help="where the run folders go")
    parser.add_argument("--workers", type=int, default=3)
    arguments = parser.parse_args()
    summaries = {dtype: run(dtype, arguments) for dtype in DTYPES}
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


if __name__ == "__main__":
    main()
