"""Memory of a training step by depth, and what it costs in time: memory.activations keep, recompute and invert.

    python -m benchmarks.step.memory [--device cpu|cuda] [--steps 8 32 96 256] [--ways keep recompute invert] [--threads 2]

A flow of one block, width 64, batch 64, each depth and way in a fresh process: the first step, and the median of a few.
Writes memory.md and memory.json beside this file; what the other device gave is kept in them.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks.by_device import make_parser, save, sections
from benchmarks.step.held import Held, OutOfMemory
from benchmarks.step.systems import Case
from benchmarks.step.training import Training

HERE = Path(__file__).parent
PROGRAM = "benchmarks.step.memory"
NUM_STEPS = (8, 32, 96, 256)
WAYS = ("keep", "recompute", "invert")
WIDTH, BATCH_SIZE = 64, 64
_TURNS = 3


def measure(num_steps: int, way: str, device: str, threads: int) -> dict:
    """Bytes at most, seconds of a step, and the error of what was got back, of one depth and way."""
    model = {"num_blocks": 1, "num_steps": num_steps, "width": WIDTH}
    case = Case(f"1 x {num_steps}", model, BATCH_SIZE, device)
    options = {"memory": {"activations": way}}
    row = {"num_steps": num_steps, "way": way}
    process = None
    try:
        process = Held(threads, Training, case, way, options)
        process.call("start")
        rates = [process.call("turn", 1) for _ in range(_TURNS)]
        return {**row, "step_s": BATCH_SIZE / median(rates), **process.call("memory")}
    except OutOfMemory as error:
        return {**row, "out_of_memory": str(error)}
    finally:
        if process is not None:
            process.close()


def report(document: dict) -> str:
    """memory.md; document: rows by device."""
    lines = [
        "# Memory by depth",
        "",
        f"One block, width {WIDTH}, batch {BATCH_SIZE}; each row a fresh process. MB = 1e6 bytes: on the CPU what the "
        "process held at most above what it held before it had a flow, on a GPU tensors at most. Error: by how much what "
        "the backward got by inverting differed from what the forward had, as the part tells it.",
    ]
    return "\n".join([*lines, *sections(document, PROGRAM, _table)]) + "\n"


def _table(measured: dict) -> Iterator[str]:
    yield "| flow steps | activations | MB | keep = 1 | MB a flow step | s a step | keep = 1 | error |"
    yield "|---|---|---|---|---|---|---|---|"
    kept = {row["num_steps"]: row for row in measured["rows"] if row["way"] == "keep" and "bytes" in row}
    for row in measured["rows"]:
        yield _row(row, kept.get(row["num_steps"]))


def _row(row: dict, keep: dict | None) -> str:
    if "out_of_memory" in row:
        return f"| {row['num_steps']} | {row['way']} | out of memory | - | - | - | - | - |"
    memory, time = ("-", "-") if keep is None else (f"{row[key] / keep[key]:.2f}" for key in ("bytes", "step_s"))
    error = row["reconstruction_error"]
    return (
        f"| {row['num_steps']} | {row['way']} | {row['bytes'] / 1e6:,.0f} | {memory} "
        f"| {row['bytes'] / 1e6 / row['num_steps']:.2f} | {row['step_s']:.3g} | {time} "
        f"| {'-' if error is None else f'{error:.1e}'} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the results."""
    parser = make_parser(__doc__, HERE)
    parser.add_argument("--steps", type=int, nargs="+", default=list(NUM_STEPS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    options = parser.parse_args(arguments)
    rows = []
    for num_steps in options.steps:
        for way in options.ways:
            rows.append(measure(num_steps, way, options.device, options.threads))
            print(json.dumps(rows[-1]), flush=True)
    save(options, "memory", PROGRAM, arguments, {"rows": rows}, report)


if __name__ == "__main__":
    main()
