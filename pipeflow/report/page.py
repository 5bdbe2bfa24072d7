"""One page about runs that needs nothing but itself: HTML with pictures, figures and the library that draws them."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeflow.config.loading import show
from pipeflow.errors import CheckpointError
from pipeflow.output import say
from pipeflow.report.charts import bar_charts
from pipeflow.report.colors import SPAN_COLORS, color_of, dash_of
from pipeflow.report.curves import AXES, MOST_CURVES
from pipeflow.report.drawing import draw_panel, draw_timeline, embedded, library
from pipeflow.report.panels import Panel, Shown, megabytes_per_second
from pipeflow.report.pictures import data_of, data_uri, sample_epochs, samples_of
from pipeflow.report.runs import ReportedRun, changed_options, differing_options
from pipeflow.report.table import notes, row
from pipeflow.report.trace import read_trace
from pipeflow.rundir.folder import SAMPLES
from pipeflow.rundir.records import PartSummary, Summary
from pipeflow.safe_files import brief
from pipeflow.units import count_text

_MOST_PICTURES = 24
_MOST_EPOCHS = 8
"""Epochs whose samples are shown of one run."""
_MOST_TIMELINES = 3
_SECTIONS = {
    "runs": "Runs",
    "curves": "Bits/dim and train loss",
    "costs": "Costs",
    "exits": "Exits",
    "updates": "Rates and gradients",
    "samples": "Samples",
    "links": "Links and workers",
    "timeline": "Timeline",
    "configuration": "Configuration",
}


class _Figures:
    """Figures of a page, by the keys under which the template finds them."""

    def __init__(self) -> None:
        self._drawn: dict[str, Any] = {}

    def add(self, drawn: Any) -> str:
        key = f"figure{len(self._drawn)}"
        self._drawn[key] = drawn
        return key

    def panels(self, panels: Sequence[Panel]) -> list[dict[str, Any]]:
        return [{"key": self.add(draw_panel(panel)), "panel": panel} for panel in panels]

    def embedded(self) -> tuple[str, dict[str, str]]:
        return embedded(self._drawn)


def render(runs: Mapping[str, ReportedRun], stamp: str = "") -> str:
    """The page, as HTML text.

    runs: by name, in the order in which they are shown.
    stamp: of the files that the page is made of, for a page that is served and loads itself anew once it is another one.
    """
    figures = _Figures()
    summaries = {name: run.saved.summary for name, run in runs.items()}
    shown = Shown(summaries)
    differing = differing_options(runs) if len(runs) > 1 else {}
    context: dict[str, Any] = {
        "several": len(runs) > 1,
        "title": next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs",
        "subtitle": _subtitle(runs),
        "axes": list(AXES.values()),
        "differing": list(differing),
        "headings": [heading.replace("\n", " ") for heading in list(row("", next(iter(runs.values())).saved))[1:]],
        "runs": [_entry(index, name, run, differing) for index, (name, run) in enumerate(runs.items())],
        "notes": notes({name: run.saved for name, run in runs.items()}),
        "curves": {
            name: figures.panels([*shown.bits_per_dim(axis), *shown.losses(axis)]) for name, axis in AXES.items()
        },
        "charts": bar_charts(summaries),
        "parts": [] if shown.alone is None else [_part(part) for part in shown.alone.parts],
        "exits": figures.panels(shown.exits()),
        "updates": figures.panels(shown.updates()),
        "galleries": _galleries(runs),
        "has_epochs": any((run.folder / SAMPLES).is_dir() for run in runs.values()),
        "links": figures.panels(shown.links()),
        "timelines": _timelines(runs, figures),
        "timeline_kinds": [{"name": kind, "color": color, "dash": "solid"} for kind, color in SPAN_COLORS.items()],
    }
    script, elements = figures.embedded()
    absent = {name for name in ("exits", "updates", "samples", "timeline") if not context[_LISTS.get(name, name)]}
    sections = [{"id": name, "title": title} for name, title in _SECTIONS.items() if name not in absent]
    template = _environment().get_template("page.html")
    return template.render(
        **context, sections=sections, script=script, elements=elements, library=library(), stamp=stamp,
        nonce=secrets.token_hex(16),
    )  # fmt: skip


_LISTS = {"samples": "galleries", "timeline": "timelines"}
"""Names of sections whose list in the template's context is called otherwise."""


def _environment() -> Environment:
    return Environment(loader=PackageLoader("pipeflow.report", "."), autoescape=True, undefined=StrictUndefined)


def _subtitle(runs: Mapping[str, ReportedRun]) -> str:
    going = sum(not run.saved.ended for run in runs.values())
    if len(runs) == 1:
        return "The run has not ended: this is what there is so far." if going else "The run has ended."
    return f"Runs that have not ended: {going}." if going else "All have ended."


def _entry(index: int, name: str, run: ReportedRun, differing: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """A run as the template shows it."""
    changes = [
        {
            "after": count_text(change.epoch, "epoch")
            + (f", {count_text(change.step, 'batch', 'es')}" if change.step else ""),
            "option": option,
            "before": brief(before, show),
            "since": brief(since, show),
        }
        for change in run.changes
        for option, (before, since) in change.options.items()
    ]
    summary = run.saved.summary
    return {
        "name": name,
        "color": color_of(index),
        "dash": dash_of(index),
        "differing": [values.get(name, "") for values in differing.values()],
        "changed": changed_options(run),
        "cells": list(row(name, run.saved).values())[1:],
        "links": _links(summary),
        "idle": _idle(summary),
        "facts": _facts(run),
        "changes": changes,
        "options": "\n".join(f"{option}: {value}" for option, value in (run.options or {}).items()),
    }


def _links(run: Summary) -> str:
    """Mean MB/s of each link over the epochs in which it carries latents."""
    of_link: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for record in run.epochs:
        for link, rate in megabytes_per_second(record).items():
            if rate > 0:
                of_link.setdefault(link, []).append((rate * record.seconds, record.seconds))
    means = {link: sum(mb for mb, _ in epochs) / sum(s for _, s in epochs) for link, epochs in of_link.items()}
    return ", ".join(f"{source} → {target}: {mean:.3g}" for (source, target), mean in means.items())


def _idle(run: Summary) -> str:
    """Mean idle share of each worker over the epochs that tell it."""
    known = [record for record in run.epochs if record.idle]
    workers = range(min(MOST_CURVES, max((len(record.idle or ()) for record in known), default=0)))
    shares = []
    for rank in workers:
        of = [(record.idle[rank], record.seconds) for record in known if record.idle and rank < len(record.idle)]
        shares.append(f"{rank}: {sum(idle * each for idle, each in of) / sum(each for _, each in of):.0%}")
    return ", ".join(shares)


def _facts(run: ReportedRun) -> str:
    summary = run.saved.summary
    facts = [f"folder {run.folder}"]
    facts += [] if summary.world_size is None else [count_text(summary.world_size, "worker")]
    facts += [f"{name} {value}" for name, value in (("device", summary.device), ("backend", summary.backend)) if value]
    facts += [f"{name} {version}" for name, version in (summary.versions or {}).items()]
    return ", ".join(facts)


def _part(part: PartSummary) -> dict[str, str]:
    layers = part.layers
    return {
        "layers": f"{layers[0]} to {layers[-1]}" if len(layers) > 1 else "".join(layers),
        "parameters": f"{part.parameters:,}",
        "head_parameters": f"{part.head_parameters:,}",
        "macs": f"{part.forward_macs / 1e6:,.1f} M",
        "shape": " x ".join(map(str, part.output_shape)),
    }


def _galleries(runs: Mapping[str, ReportedRun]) -> list[dict[str, Any]]:
    """Samples by epoch beside data; of a flow on the plane, or a run of an earlier version, the picture that it left."""
    found: list[dict[str, Any]] = []
    most = min(_MOST_EPOCHS, max(1, _MOST_PICTURES // len(runs)))
    of_all = {name: data_of(run.folder) for name, run in runs.items()}
    is_same = len(runs) > 1 and len(set(of_all.values()) - {None}) == 1
    if is_same:
        found.append({"title": "", "pictures": [("data of all", next(filter(None, of_all.values())))], "wide": False})
    for name, run in runs.items():
        epochs = sample_epochs(run.folder, run.saved.summary.num_epochs, most)
        pictures = [(f"epoch {epoch}", samples_of(run.folder, epoch)) for epoch in epochs]
        wide = False
        if pictures and not is_same:
            pictures.insert(0, ("data", of_all[name]))
        elif not pictures and (run.folder / "density.png").is_file():
            pictures, wide = [("data, samples at temperature 1, density", data_uri(run.folder / "density.png"))], True
        elif not pictures:
            pictures = [("samples at the end, temperature 0.7", data_uri(run.folder / "samples.png"))]
        there = [(caption, address) for caption, address in pictures if address is not None]
        if there:
            found.append({"title": name, "pictures": there, "wide": wide})
    return found


def _timelines(runs: Mapping[str, ReportedRun], figures: _Figures) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for name, run in runs.items():
        path = run.folder / "timeline.json"
        if path.is_file() and len(found) < _MOST_TIMELINES:
            try:
                found.append({"name": name, "key": figures.add(draw_timeline(read_trace(path)))})
            except CheckpointError as error:
                say(str(error))
    return found
