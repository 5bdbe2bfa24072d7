"""Tables of results for README.md and the pages, from the JSON that benchmarks write. No number is typed by hand."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from benchmarks.learning.costs import RATES
from benchmarks.learning.rows import Row, make_rows
from benchmarks.learning.studies import read_studies
from benchmarks.links.report import summarize
from benchmarks.machine import in_words
from benchmarks.step.report import ratio
from benchmarks.whole_run.report import Measured, link_words
from docs.generate.rows import (
    ACTIVATIONS,
    LEARNING,
    LINK_ROWS,
    OURS,
    PARTS,
    PIPELINES,
    PUBLISHED,
    PUBLISHED_RATES,
    SCHEDULES,
    STEPS,
    SYSTEMS,
    WHOLE,
)

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def headline() -> str:
    """Some numbers, for README.md."""
    whole, concurrent = (_schedules()[name] for name in ("small_glow", "small_concurrent3"))
    forward = sum(concurrent["bytes"]["forward"])
    ours, pipeline, ddp = (_speed(_links(), names, 20) for names in (OURS, PIPELINES, ("DDP",)))
    learned = _learned()
    rows = [
        ["bits/dim after 18 epochs at a rate of 1e-3, the first 12 without a gradient between workers"]
        + [f"{concurrent['test_bpd']:.3f}", f"{whole['test_bpd']:.3f} end to end"],
        ["bits/dim after 12 epochs, each at its best rate, parts never end to end (linear heads, averaged latents)"]
        + [f"{mean(learned['linear, averaged'].bits):.3f}", f"{mean(learned['end to end'].bits):.3f} end to end"],
        ["MB that come back over the links in those 12 epochs", f"{sum(concurrent['bytes']['backward']) / 1e6:,.0f}"]
        + [f"{forward / 1e6:,.0f} in a pipeline with gradients, by formula"],
        ["images/s of two workers over a link of 20 Mbit/s, float32", f"{ours:.0f}"]
        + [f"{pipeline:.0f} torch's best pipeline, {ddp:.0f} DDP"],
    ]
    sources = {"Schedules": "schedules/results", "Heads": "learning/results", "Slow links": "links/results"}
    machines = {"Heads": _learned_on(learned["linear, averaged"], learned["end to end"])}
    told = [
        f"[{title}](BENCHMARKS/{name}.md): {_machines(name, *machines.get(title, ()))}."
        for title, name in sources.items()
    ]
    head = ["small Glow on 4,992 images of CIFAR-10", "concurrent parts", "beside it"]
    return _table(head, rows) + "\n\n" + " ".join(told)


def schedules() -> str:
    """The schedules beside each other."""
    runs = _schedules()
    whole = runs["small_glow"]
    rows = []
    for name, title in SCHEDULES.items():
        run, forward = runs[name], sum(runs[name]["bytes"]["forward"])
        local = "-" if run["exit_bpd"] is None else f"{run['exit_bpd'][-1]:.3f}"
        rows.append([title, f"{run['test_bpd']:.3f}", local, f"{run['train_macs'] / whole['train_macs']:.2f}"])
        rows[-1] += [f"{forward / 1e6:,.0f}", f"{sum(run['bytes']['backward']) / 1e6:,.0f}"] if forward else ["-", "-"]
    head = ["12 local + 6 end-to-end epochs", "test bits/dim", "after the local epochs", "multiply-adds"]
    return _table([*head, "MB of latents forward", "MB back"], rows) + _source("schedules/results")


def published() -> str:
    """Parts beside end to end, and beside end to end stopped at the same multiply-adds."""
    document = _read("published/small/results")
    lines, equal = document["lines"], document["equal_epochs"]
    rows = []
    for name, title in PUBLISHED.items():
        line, whole = lines[name], lines[WHOLE[f"{PUBLISHED_RATES[name]}"]]
        stopped = "-"
        if name in equal:
            whole_name = WHOLE[PUBLISHED_RATES[name]]
            stop = whole_name if equal[name] == whole["num_epochs"] else f"{whole_name}@{equal[name]}"
            stopped = f"{lines[stop]['test_bpd']:.3f}"
        rows.append([title, f"{line['test_bpd']:.3f}", f"{line['macs'] / whole['macs']:.2f}", stopped])
    head = ["60 local + 30 end-to-end epochs", "test bits/dim", "multiply-adds", "end to end, stopped at as many"]
    return _table(head, rows) + _source("published/small/results", lines["glow_lr1e-4"]["machine"])


def pipelines() -> str:
    """Two workers over loopback, each system that trains one flow on several workers."""
    results = _read("pipelines/results")["results"]["64"]
    rows = []
    for name, title in SYSTEMS.items():
        row = results[name]
        ours = f" ({row['images_per_s']:.0f} images/s)" if name == "pipeflow_concurrent" else ""
        forward = f"{row['sent_forward'] / 1e6:.0f}" if row["sent_forward"] else "-"
        rows.append([title, f"{row['ratio']:.2f}{ours}", forward, f"{row['sent_backward'] / 1e6:.0f}"])
    head = ["two workers, batch 64", "images/s, concurrent = 1", "MB forward, an epoch of 4,992 images", "MB back"]
    return _table(head, rows) + _source("pipelines/results")


def links() -> str:
    """Images/s over slow links."""
    points = _links()

    def cell(systems: Sequence[str], rate: float | None) -> str:
        found = [point for point in points if point["system"] in systems and _at(point, rate)]
        best = max(found, key=lambda point: point["images_per_s"], default=None)
        return "-" if best is None else f"{best['images_per_s']:.0f}{_compressed(best['system'])}"

    rates = (None, 100.0, 20.0)
    rows = [[title, *(cell(systems, rate) for rate in rates)] for title, systems in LINK_ROWS.items()]
    head = ["images/s, two workers, batch 64", "no limit", "100 Mbit/s", "20 Mbit/s"]
    return _table(head, rows) + _source("links/results")


def whole_runs() -> str:
    """Seconds and bits/dim of whole short runs, the planner's choice beside its rivals."""
    document = _read("whole_run/results")
    measured = Measured(document)
    rows = []
    for rate in measured.rates:
        ours, pipeline, one = measured.best_of_ours(rate), measured.pipelines(rate)[0], measured.one(rate)
        ddp = min((row for row in measured.at(rate) if "DDP" in row.system.title), key=lambda row: row.seconds)
        assert ours is not None and one is not None
        rows.append([
            link_words(rate), f"{ours.seconds:.0f} ({ours.system.title.removeprefix('pipeflow, ')})",
            f"{pipeline.seconds:.0f} ({pipeline.system.title})", f"{ddp.seconds:.0f} ({ddp.system.title})",
            f"{one.seconds:.0f}", f"{ours.bpd:.3f}", f"{one.bpd:.3f}",
        ])  # fmt: skip
    head = ["4 local + 2 end-to-end epochs", "seconds, the planner's choice", "fastest pipeline", "fastest DDP"]
    return _table([*head, "one worker", "bits/dim, the choice", "end to end"], rows) + _source("whole_run/results")


def learning() -> str:
    """Isolated parts without, and with few, end-to-end epochs, beside end to end of as many epochs and more."""
    found = {title: _learned()[arm] for arm, title in LEARNING.items()}
    rows = [
        [title, row.bits_in_words(), f"{row.macs:.2f}", row.forward_in_words()]
        + [f"{row.seconds[links]:.2f}" for links in RATES]
        for title, row in found.items()
    ]
    head = ["three parts, 12 epochs where none are named", "bits/dim (seeds)", "multiply-adds", "MB forward"]
    head += [f"seconds, {links}" for links in RATES]
    return _table(head, rows) + _source("learning/results", *_learned_on(*found.values()))


def parts() -> str:
    """What parts under linear heads lose without an end-to-end epoch, by the flow, their number and what they hand on."""
    learned = _learned()

    def cell(arm: str | None) -> str:
        row = learned.get(arm or "")
        return "-" if row is None else f"{row.above:+.3f} ({len(row.bits)})"

    rows = [[*about, *map(cell, arms)] for about, arms in PARTS.items()]
    shown = (learned[arm] for arms in PARTS.values() for arm in arms if arm in learned)
    head = ["bits/dim above end to end (seeds)", "parts", "concurrent, trained latents", "concurrent, averaged latents"]
    return _table([*head, "one after the other"], rows) + _source("learning/results", *_learned_on(*shown))


def step() -> str:
    """Images/s of a training step beside normflows' Glow."""
    document = _read("step/results")
    results = {
        (device, case["case"]["size"], case["case"]["batch_size"]): case
        for device in ("cpu", "cuda")
        for case in document[device]["cases"]
    }
    cases = [("cpu", "published", 16), ("cuda", "published", 512), ("cuda", "published", 64)]

    def cell(case: dict[str, Any], system: str) -> str:
        times = ratio(case, system, "normflows")
        if times is None and system in case["systems"]:  # measured in another call, one behind the other
            times = _mean(case, system) / _mean(case, "normflows")
        return "-" if times is None else f"{times:.2f}"

    rows = [[title, *(cell(results[case], system) for case in cases)] for system, title in STEPS.items()]
    head = ["images/s, normflows = 1", "2 CPU cores, batch 16", "H100, batch 512", "H100, batch 64"]
    machines = [document[device]["machine"] for device in ("cpu", "cuda")]
    return _table(head, rows) + _source("step/results", *machines)


def memory() -> str:
    """Memory and time of the ways to keep activations."""
    document = _read("step/memory")["cpu"]
    rows = [row for row in document["rows"] if row["num_steps"] == 96]
    keep = next(row for row in rows if row["way"] == "keep")
    cells = [
        [f"`{row['way']}`{' (default)' * (row is keep)}", ACTIVATIONS[row["way"]]]
        + [f"{row[key] / keep[key]:.2f}" for key in ("bytes", "step_s")]
        for row in rows
    ]
    head = ["`memory.activations`", "what a backward finds", "memory at 96 flow steps", "time of a step"]
    return _table(head, cells) + _source("step/memory", document["machine"])


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "schedules": schedules,
    "published": published,
    "pipelines": pipelines,
    "links": links,
    "whole-runs": whole_runs,
    "learning": learning,
    "parts": parts,
    "step": step,
    "memory": memory,
}
"""Each block of that name in a page."""


def _read(name: str) -> dict[str, Any]:
    return json.loads((BENCHMARKS / f"{name}.json").read_text())


def _schedules() -> dict[str, dict[str, Any]]:
    return {run["name"]: run for run in _read("schedules/results")["runs"].values()}


@cache
def _learned() -> dict[str, Row]:
    """Arms of benchmarks/learning, each beside the end-to-end one of its size."""
    values, document = _read("learning/results"), yaml.safe_load((BENCHMARKS / "learning" / "runs.yaml").read_text())
    studies = (study for study in read_studies(document) if study.name in ("heads", "end_to_end", "parts", "scale"))
    return {row.arm.name: row for study in studies for row in make_rows(values, study, document["seeds"])}


def _learned_on(*rows: Row) -> list[dict[str, str]]:
    """The machines that trained these arms."""
    machines = _read("learning/results")["machines"]
    return [machines[name] for name in dict.fromkeys(name for row in rows for name in row.machines)]


def _links() -> list[dict[str, Any]]:
    points = summarize(list(_read("links/results")["runs"].values()))
    return [point for point in points if point["batch"] == 64 and not point["delay"]]


def _at(point: dict[str, Any], rate: float | None) -> bool:
    return point["rate"] == rate


def _speed(points: Sequence[dict[str, Any]], systems: Sequence[str], rate: float | None) -> float:
    return max(point["images_per_s"] for point in points if point["system"] in systems and _at(point, rate))


def _compressed(system: str) -> str:
    """How a system's numbers travel, behind its speed."""
    words = {"int8": "int8", "bfloat16": "bfloat16", "bf16": "bfloat16", "PowerSGD": "PowerSGD"}
    return next((f" ({words[word]})" for word in system.split() if word in words), "")


def _mean(case: dict[str, Any], system: str) -> float:
    speeds = [each[system] for each in case["rounds"] if system in each]
    return sum(speeds) / len(speeds)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _machines(name: str, *machines: dict[str, str]) -> str:
    """The machines of a benchmark in words; by default the one that its JSON names."""
    machines = machines or (_read(name)["machine"],)
    return "; ".join(in_words(machine) for machine in machines)


def _source(name: str, *machines: dict[str, str]) -> str:
    """A line under a table: where it was measured, when, with which versions, and where all of it stands."""
    return f"\n\n{_machines(name, *machines)}. [All rows, and how](BENCHMARKS/{name}.md)."
