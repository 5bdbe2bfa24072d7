"""Bytes that travel in an epoch, for each schedule and cut: measured at the links, and by formula.

    python -m benchmarks.communication.run

Trains the small flow (4 steps a block, width 64) on the embedded images for one local epoch a part, one worker a part
under torchrun, and holds the bytes that the links counted against the formulas of `pipeflow.plan.traffic`: they must
agree exactly, or this ends with an error. Beside them, by formula, what other ways of using the same workers send in an
epoch: an end-to-end pipeline over the same cuts (activations forward, gradients of the same size back) and data
parallelism (ring all-reduce of all gradients). A second table gives the same formulas for the published model and
50,000 images. Writes results.md and results.json beside this file.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.machine import command_line, describe_machine, in_words
from pipeflow.config import Config
from pipeflow.plan import make_plan
from pipeflow.plan.traffic import gradient_bytes, phase_link_bytes, training_share

HERE = Path(__file__).parent
NUM_IMAGES, BATCH_SIZE = 1280, 64
CUTS = {
    "across blocks, 3": {"split": "across", "num": 3},
    "by blocks, 3": {"split": "blocks", "num": 3},
    "balanced, 3": {"split": "balanced", "num": 3},
    "balanced, 2": {"split": "balanced", "num": 2},
}
SCHEDULES = {
    "concurrent": {"mode": "concurrent"},
    "alternate by epoch": {"mode": "alternate"},
    "alternate by batch": {"mode": "alternate", "alternate_every": "1 step"},
    "sequential": {"mode": "sequential"},
}


def configuration(parts: dict, schedule: dict, dtype: str = "float32") -> Config:
    """One local epoch a part of the small flow."""
    return Config.from_dict(
        {
            "data": {"num_train": NUM_IMAGES, "num_test": BATCH_SIZE},
            "model": {"num_steps": 4, "width": 64},
            "parts": parts,
            "schedule": {**schedule, "local_epochs": parts["num"], "finetune_epochs": 0},
            "optim": {"batch_size": BATCH_SIZE, "lr": 1e-3},
            "link": {"dtype": dtype},
            "eval": {"every_epochs": 100},
            "checkpoint": {"every_epochs": 100},
        }
    )


def measure(config: Config, folder: Path) -> dict:
    """Trains under torchrun with a worker for each part; the run's summary."""
    options = [
        f"--{section}.{name}={'null' if value is None else value}"
        for section, values in config.to_dict().items()
        for name, value in values.items()
        if (section, name) != ("run", "dir")
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={config.parts.num}"]
    command += ["-m", "pipeflow.launch", *options, "--run.dir", str(folder)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads((folder / "summary.json").read_text())


def compare(cut: str, schedule: str, dtype: str, scratch: Path) -> dict:
    """One row: measured against formula, an epoch on average over one for each part."""
    config = configuration(CUTS[cut], SCHEDULES[schedule], dtype)
    plan = make_plan(config)
    num_parts, steps = config.parts.num, plan.phases[0].steps
    summary = measure(config, scratch / f"{cut} {schedule} {dtype}".replace(" ", "_").replace(",", ""))
    measured, formula = summary["bytes"]["forward"], plan.forward_bytes
    assert measured == formula, f"{cut}, {schedule}: measured {measured}, by formula {formula}"
    pipeline = sum(pipeline_bytes(plan))
    return {
        "cut": cut,
        "schedule": schedule,
        "dtype": dtype,
        "forward_per_epoch": sum(measured) / num_parts,
        "formula_per_epoch": sum(formula) / num_parts,
        "backward_per_epoch": sum(summary["bytes"]["backward"]),
        "control_per_epoch": summary["bytes"]["control"] / num_parts,
        "seconds_per_epoch": summary["seconds"]["local"] / num_parts,
        "work_share": training_share(plan.phases, plan.parts),
        "pipeline_forward": pipeline,
        "pipeline_backward": pipeline,
        "data_parallel": gradient_bytes(plan.parts, num_parts, steps),
    }


def pipeline_bytes(plan) -> list[int]:
    """Bytes forward over each link in an epoch in which every batch crosses every cut, float32."""
    phase = plan.phases[0]
    images = phase.steps * plan.config.optim.batch_size
    return [4 * images * torch.Size(part.output_shape).numel() for part in plan.parts[:-1]]


def published() -> list[dict]:
    """Rows by formula: the published model on 50,000 images, batch 64."""
    rows = []
    for cut, parts in CUTS.items():
        for schedule, options in SCHEDULES.items():
            overrides = {"data": {"name": "cifar10"}, "model": {"num_steps": 32, "width": 512}, "parts": parts}
            overrides["schedule"] = {**options, "local_epochs": parts["num"], "finetune_epochs": 0}
            plan = make_plan(Config.from_dict(overrides))
            epochs = parts["num"]
            links = [phase_link_bytes(phase, plan.parts, 64, "float32") for phase in plan.phases]
            costs = [part.multiply_adds() for part in plan.parts]
            rows.append(
                {
                    "cut": cut,
                    "schedule": schedule,
                    "forward_per_epoch": sum(map(sum, links)) / epochs,
                    "largest_part": max(costs) / sum(costs),
                    "pipeline": 2 * sum(pipeline_bytes(plan)),
                    "data_parallel": gradient_bytes(plan.parts, epochs, plan.phases[0].steps),
                    "data_parallel_large": gradient_bytes(plan.parts, epochs, plan.phases[0].steps // epochs),
                }
            )
    return rows


def tables(rows: list[dict], full: list[dict], machine: dict) -> str:
    """results.md."""
    lines = [
        "# Bytes and seconds an epoch",
        "",
        f"`python -m benchmarks.communication.run` on {in_words(machine)}; gloo over loopback, one thread a worker.",
        "",
        f"Small flow (3 blocks x 4 steps, width 64), {NUM_IMAGES} images, batch {BATCH_SIZE}, one worker a part; MB = 1e6 "
        "bytes, mean of one epoch for each part. Measured and formula agree to the byte in every row. Seconds are of "
        "training alone, all workers on these cores: compare within the table only.",
        "",
        "| cut, parts | schedule | link type | MB forward, measured | by formula | MB back, measured | MB control "
        "| seconds | multiply-adds (end to end = 1) | end-to-end pipeline, MB forward + back (formula) "
        "| data parallel, MB (formula) |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['cut']} | {row['schedule']} | {row['dtype']} | {row['forward_per_epoch'] / 1e6:.2f} "
            f"| {row['formula_per_epoch'] / 1e6:.2f} | {row['backward_per_epoch'] / 1e6:.2f} "
            f"| {row['control_per_epoch'] / 1e6:.3f} | {row['seconds_per_epoch']:.2f} | {row['work_share']:.2f} "
            f"| {row['pipeline_forward'] / 1e6:.2f} + {row['pipeline_backward'] / 1e6:.2f} "
            f"| {row['data_parallel'] / 1e6:.1f} |"
        )
    lines += [
        "",
        "The published model (3 x 32 steps, width 512, 44 million parameters), 50,000 images, batch 64, all by formula, "
        "all workers together. The largest part's share of the work bounds the speed-up of a concurrent pipeline.",
        "",
        "| cut, parts | schedule | MB forward | end-to-end pipeline, MB both ways | data parallel, MB, batch 64 in all "
        "| data parallel, MB, batch 64 a worker | largest part |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in full:
        lines.append(
            f"| {row['cut']} | {row['schedule']} | {row['forward_per_epoch'] / 1e6:,.0f} | {row['pipeline'] / 1e6:,.0f} "
            f"| {row['data_parallel'] / 1e6:,.0f} | {row['data_parallel_large'] / 1e6:,.0f} | {row['largest_part']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures every row and writes the results."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        jobs = [(cut, schedule, "float32") for cut in CUTS for schedule in SCHEDULES]
        jobs.append(("across blocks, 3", "concurrent", "bfloat16"))
        for cut, schedule, dtype in jobs:
            rows.append(compare(cut, schedule, dtype, Path(scratch)))
            row = rows[-1]
            print(
                f"{cut} | {schedule} | {dtype} | {row['forward_per_epoch']:,.0f} bytes | {row['seconds_per_epoch']:.2f} s"
            )
    machine = describe_machine()
    document = {"machine": machine, "command": command_line("benchmarks.communication.run")}
    full = published()
    (HERE / "results.json").write_text(json.dumps({**document, "small": rows, "published": full}, indent=1) + "\n")
    (HERE / "results.md").write_text(tables(rows, full, machine))


if __name__ == "__main__":
    main()
