"""Predicted seconds and bytes beside those that were measured on this machine."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import in_words
from pipeflow.config import Config
from pipeflow.plan import make_plan
from pipeflow.plan.plan import Plan
from pipeflow.plan.predict.machines import Machines, write_machines
from pipeflow.plan.predict.prediction import Prediction
from pipeflow.plan.predict.predictor import Predictor

HERE = Path(__file__).parent
BATCH_SIZE = 64
"""Images in a batch, of what is measured and of the tables of many workers."""
EPOCH = 4992
PROBES = {False: "machines_workers.yaml", True: "machines_one_worker.yaml"}
NAMES = {
    "pipeflow_concurrent": "concurrent",
    "pipeflow_alternate": "alternate",
    "gpipe": "gpipe",
    "1f1b": "1f1b",
    "ddp": "ddp",
    "single": "end_to_end",
}
"""Systems of benchmarks/pipelines that are predicted, and what they are called here."""
OURS = ("concurrent", "alternate")
"""Their bytes are known exactly."""


def check(measured: dict, probes: dict[bool, Machines]) -> list[dict]:
    """Predicted and measured seconds of an epoch, of each system that both have.

    probes: of the workers with a thread each, and (True) of one with all cores, as benchmarks/pipelines runs them.

    Raises ValueError where a byte of an isolated part's link is other than predicted.
    """
    rows, workers = [], measured["settings"]["workers"]
    for batch_text, systems in measured["results"].items():
        batch_size = int(batch_text)
        for title, row in systems.items():
            if title not in NAMES or row.get("images_per_s") is None:
                continue
            plan = small_plan(batch_size, workers)
            predictor = Predictor(plan, probes[NAMES[title] == "end_to_end"])
            prediction = predicted(predictor, NAMES[title], row.get("micro_batches"))
            scale = EPOCH / (predictor.steps * batch_size)
            seconds = EPOCH / row["images_per_s"]
            bytes_measured, bytes_predicted = row["sent_forward"] + row["sent_backward"], prediction.bytes * scale
            # Both are of other numbers of images, scaled to an epoch: less than half a byte is rounding.
            if NAMES[title] in OURS and abs(bytes_measured - bytes_predicted) >= 0.5:
                raise ValueError(
                    f"{title}, batch {batch_size}: {bytes_predicted:,.1f} bytes were predicted for {EPOCH} images, and "
                    f"{bytes_measured:,.1f} measured"
                )
            rows.append(
                {
                    "system": title,
                    "batch_size": batch_size,
                    "micro_batches": row.get("micro_batches"),
                    "measured": seconds,
                    "predicted": prediction.seconds * scale,
                    "error": prediction.seconds * scale / seconds - 1,
                    "bytes_measured": bytes_measured,
                    "bytes_predicted": bytes_predicted,
                }
            )
    return rows


def median_of(rounds: list[list[dict]]) -> list[dict]:
    """Each system's median over rounds of `check`, error included, which is taken within a round; and their errors."""
    systems: dict[tuple, list[dict]] = {}
    for rows in rounds:
        for row in rows:
            systems.setdefault((row["system"], row["batch_size"]), []).append(row)
    return [
        {
            **same[0],
            **{key: statistics.median(row[key] for row in same) for key in ("measured", "predicted", "error")},
            "errors": [row["error"] for row in same],
        }
        for same in systems.values()
    ]


def measure() -> dict:
    """One round of the systems that are predicted, now; as benchmarks/pipelines writes it."""
    command = [sys.executable, "-m", "benchmarks.pipelines.run", "--workers", "2", "--batch", str(BATCH_SIZE)]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [*command, "--rounds", "1", "--systems", *NAMES, "--results", folder], check=True, cwd=HERE.parents[1]
        )
        return json.loads((Path(folder) / "results.json").read_text())


def take_probes(settings: dict) -> dict[bool, Machines]:
    """Probes this machine with the workers and batches that were measured; writes the probes beside this file too."""
    from pipeflow.plan.predict.probe import probe

    workers = settings["workers"]
    plan = small_plan(max(settings["batch"]), workers)
    probes = {
        False: probe(plan.config, plan.flow.shape, workers, threads=1),
        True: probe(plan.config, plan.flow.shape, 1, threads=os.cpu_count()),
    }
    for is_single, machines in probes.items():
        write_machines(machines, HERE / PROBES[is_single])
    return probes


def small_plan(batch_size: int, workers: int) -> Plan:
    """The plan of the run that benchmarks/pipelines trains."""
    return make_plan(
        Config.from_dict(
            {
                "data": {"name": "dead_leaves", "num_train": EPOCH},
                "model": {"num_steps": 4, "width": 64},
                "parts": {"split": "balanced", "num": workers},
                "optim": {"batch_size": batch_size},
            }
        )
    )


def predicted(predictor: Predictor, system: str, micro_batches: int | None) -> Prediction:
    """The same system at the same number of micro-batches."""
    if system == "end_to_end":
        return predictor.end_to_end()
    if system == "ddp":
        return next(each for each in predictor.data_parallel() if each.system == "ddp")
    cut = predictor.cuts()[0]  # the configured one
    if system in ("gpipe", "1f1b"):
        return predictor.pipeline_at(system, cut, micro_batches)
    return predictor.local(system, cut)


def check_table(rows: list[dict], machine: dict, workers: int, command: str) -> str:
    """check.md."""
    lines = [
        "# Predicted and measured",
        "",
        f"`{command}` on {in_words(machine)}. Predicted from a probe of this machine; "
        f"measured by `benchmarks/pipelines` with {workers} workers. Seconds of an epoch of {EPOCH:,} images; small flow, "
        "3 x 4 steps, width 64. Of several rounds, each of a probe and a measurement, medians; the error is a round's own. "
        "Bytes of isolated parts are equal, or this table would not be here.",
        "",
        "| system | batch | micro-batches | measured, s | predicted, s | error | MB measured | MB predicted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['system']} | {row['batch_size']} | {row['micro_batches'] or '-'} | {row['measured']:.1f} "
        f"| {row['predicted']:.1f} | {in_percent(row['errors'])} "
        f"| {row['bytes_measured'] / 1e6:.3f} | {row['bytes_predicted'] / 1e6:.3f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def in_percent(errors: list[float]) -> str:
    """The median, and what it is the median of."""
    spread = f" ({min(errors):+.0%} to {max(errors):+.0%})" if len(errors) > 1 else ""
    return f"{statistics.median(errors):+.0%}{spread}"
