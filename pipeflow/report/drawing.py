"""Panels and timelines as Bokeh figures, which draw themselves in the page.

Names of runs stand in hover texts alone, as data: Bokeh takes titles for TeX, whose fonts it fetches from the network.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.document import Document
from bokeh.embed import components
from bokeh.models import BasicTicker, ColumnDataSource, HoverTool, Range1d
from bokeh.plotting import figure
from bokeh.resources import Resources

from pipeflow.report.colors import SPAN_COLORS
from pipeflow.report.curves import Curve, alone
from pipeflow.report.panels import Line, Panel
from pipeflow.report.trace import TracedSpan

_TOOLS = "box_zoom,wheel_zoom,pan,reset"
_TALLEST = 1600
_MARKED = 40
"""Points of a curve are marked up to so many."""


def library() -> str:
    """The library itself, 1.3 MB."""
    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)


def embedded(figures: Mapping[str, figure]) -> tuple[str, dict[str, str]]:
    """The script that draws the figures, and for each the element that it stands in. Bokeh escapes its data."""
    if not figures:
        return "", {}
    document = Document()
    with document.models.freeze():  # looks at all figures once, and not again with each that is added
        for each in figures.values():
            document.add_root(each)
    script, elements = components(dict(figures), wrap_script=False)
    return str(script), dict(elements)


def draw_panel(panel: Panel) -> figure:
    """The curves of a panel, as wide as the page lets them be."""
    drawn = _figure(x_axis_label=panel.x_label, y_axis_type="log" if panel.is_log else "linear", height=290)
    if panel.y_limits is not None and not panel.is_log:
        drawn.y_range = Range1d(start=panel.y_limits[0], end=panel.y_limits[1])
    if panel.has_whole_costs:
        drawn.xaxis.ticker = BasicTicker(min_interval=1)
    if panel.bands:
        begins, ends = [each.begin for each in panel.bands], [each.end for each in panel.bands]
        colors = [each.color for each in panel.bands]
        drawn.vstrip(x0=begins, x1=ends, fill_color=colors, fill_alpha=0.16, line_width=0)
    curves = [_shown(line, panel.is_log) for line in panel.lines]
    source = ColumnDataSource(
        {
            "xs": [costs for costs, _ in curves],
            "ys": [values for _, values in curves],
            "name": [line.name for line in panel.lines],
            "color": [line.color for line in panel.lines],
            "dash": [line.dash for line in panel.lines],
            "width": [line.width for line in panel.lines],
        }
    )
    drawn_lines = drawn.multi_line("xs", "ys", source=source, color="color", line_dash="dash", line_width="width")
    marked = [
        (line.color, curve if len(curve[0]) <= _MARKED else alone(curve)) for line, curve in zip(panel.lines, curves)
    ]
    drawn.scatter(
        [cost for _, (costs, _) in marked for cost in costs],
        [value for _, (_, values) in marked for value in values],
        color=[color for color, (costs, _) in marked for _ in costs],
        size=4,
    )
    value = "$snap_y{0.00e+0}" if panel.is_log else "$snap_y{0.0000}"
    tips = [("", "@name"), (panel.x_label, "$snap_x{0.[000]}"), ("value", value)]
    drawn.add_tools(HoverTool(tooltips=tips, renderers=[drawn_lines], line_policy="nearest"))
    return drawn


def _shown(line: Line, is_log: bool) -> Curve:
    """The points of a curve that are drawn, to six digits; a log axis has no place for others than positive values."""
    costs, values = ([float(f"{number:.6g}") for number in numbers] for numbers in line.thinned())
    return costs, [value if value > 0 else math.nan for value in values] if is_log else values


def draw_timeline(workers: Sequence[Sequence[TracedSpan]]) -> figure:
    """What each worker did when: a row for each of its threads that did something."""
    rows = [(rank, thread) for rank, spans in enumerate(workers) for thread in dict.fromkeys(s.thread for s in spans)]
    names = [f"{rank}: {thread}" for rank, thread in rows]
    drawn = _figure(
        x_axis_label="milliseconds", y_range=names[::-1] or [""], height=min(70 + 24 * max(len(names), 2), _TALLEST)
    )
    for kind, color in SPAN_COLORS.items():
        shown = [
            (f"{rank}: {span.thread}", span)
            for rank, spans in enumerate(workers)
            for span in spans
            if span.kind == kind
        ]
        if shown:
            source = ColumnDataSource(
                {
                    "row": [row for row, _ in shown],
                    "left": [span.begin for _, span in shown],
                    "right": [span.begin + span.length for _, span in shown],
                    "length": [span.length for _, span in shown],
                    "name": [span.name for _, span in shown],
                }
            )
            drawn.hbar(y="row", left="left", right="right", height=0.8, source=source, color=color, line_color="white")
    drawn.add_tools(HoverTool(tooltips=[("", "@name"), ("begins", "@left{0.00} ms"), ("takes", "@length{0.00} ms")]))
    return drawn


def _figure(**options: Any) -> figure:
    drawn = figure(
        sizing_mode="stretch_width",
        tools=_TOOLS,
        toolbar_location="above",
        active_drag=None,
        active_scroll=None,
        **options,
    )
    drawn.toolbar.logo = None
    drawn.outline_line_color = None
    drawn.axis.minor_tick_line_color = None
    drawn.grid.grid_line_color = "#e5e7eb"
    drawn.axis.axis_label_text_font_style = "normal"
    return drawn
