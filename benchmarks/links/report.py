"""results.md and the figures, from what results.json holds."""

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean

from benchmarks.machine import in_words
from pipeflow.report.colors import color_of

IMAGES = 4992
"""To which bytes are scaled: an epoch."""
KEPT = 0.9
"""Share of the unlimited speed below which a system counts as held up by its links."""

Point = dict
"""One system at one batch size, rate and delay: the mean of all rounds, at its best number of micro-batches."""


def summarize(runs: Sequence[dict]) -> list[Point]:
    """A point for each system, batch size and link; the number of micro-batches is the best one there."""

    def by(run: dict) -> tuple:
        return run["system"], run["batch"], run["rate"] or math.inf, run["delay"]

    points = []
    order = {name: index for index, name in enumerate(dict.fromkeys(run["system"] for run in runs))}
    for _, group in groupby(sorted(runs, key=by), key=by):
        same = list(group)
        variants = [_mean([run for run in same if run["label"] == label]) for label in {run["label"] for run in same}]
        points.append(max(variants, key=lambda point: point["images_per_s"]))
    for point in points:
        free = [
            other for other in points if _line(other) == _line(point) and other["rate"] is None and not other["delay"]
        ]
        point["kept"] = point["images_per_s"] / free[0]["images_per_s"] if free else None
    return sorted(points, key=lambda point: (order[point["system"]], point["batch"], -(point["rate"] or math.inf)))


def _line(point: dict) -> tuple:
    return point["system"], point["batch"]


def _mean(runs: list[dict]) -> Point:
    """Means over the rounds; bytes for an epoch's images."""
    speeds = [run["images_per_s"] for run in runs]
    scale = [IMAGES / (run["steps"] * run["batch"]) for run in runs]
    num_hosts = len(runs[0]["sent"])
    point = {key: runs[0][key] for key in ("system", "pipeflow", "micro_batches", "rate", "delay", "batch")}
    return point | {
        "images_per_s": mean(speeds),
        "spread": (max(speeds) - min(speeds)) / mean(speeds),
        "steps": runs[0]["steps"],
        "payload": mean(sum(run["payload"]) * factor for run, factor in zip(runs, scale)),
        "sent": [mean(run["sent"][host] * factor for run, factor in zip(runs, scale)) for host in range(num_hosts)],
    }


def falls_below(points: Sequence[Point], share: float = KEPT) -> str:
    """The rate, in Mbit/s, at which a system keeps this share of its speed: between two rates, linear over log(rate).

    points: of one system and batch size without delay.
    """
    curve = sorted((point["rate"], point["kept"]) for point in points if point["rate"] is not None and point["kept"])
    if not curve:
        return "-"
    if curve[0][1] >= share:
        return f"below {curve[0][0]:g}"
    if curve[-1][1] < share:
        return f"above {curve[-1][0]:g}"
    last_low = max(index for index, (_, kept) in enumerate(curve) if kept < share)
    if last_low == len(curve) - 1:  # cannot be: the last keeps enough
        return "-"
    (low, kept_low), (high, kept_high) = curve[last_low], curve[last_low + 1]
    position = (share - kept_low) / (kept_high - kept_low)
    return f"{math.exp(math.log(low) + position * (math.log(high) - math.log(low))):.3g}"


def write_report(results: dict, folder: Path) -> None:
    """results.md and a figure for each batch size into `folder`."""
    points = summarize(list(results["runs"].values()))
    batches = sorted({point["batch"] for point in points})
    lines = [
        "# Training over slow links",
        "",
        f"`python -m benchmarks.links.run --seconds {results['settings']['seconds']:g} --workers "
        f"{results['settings']['workers']}`, some of its systems and rates at a time, on {in_words(results['machine'])}; "
        "each worker in a network namespace of its own, one thread a worker, gloo, TCP with CUBIC, MTU 1500.",
        "",
        "Rates are of each link in each direction, in Mbit/s. Images/s are of training alone, warm; all workers share "
        "this machine's cores, so compare shares rather than speeds. In brackets: share of the system's own speed over "
        "unlimited links. GPipe and 1F1B: the best number of micro-batches at each rate, named after it as m. "
        "Alternate: a pass trains one part at a time, so its images/s are passes of images.",
        "",
        *_links_table(results["links"]),
    ]
    for batch in batches:
        here = [point for point in points if point["batch"] == batch]
        lines += ["", f"## Batch {batch}", "", *_speed_table(here)]
        if any(point["delay"] for point in here):
            lines += ["", *_delay_table(here)]
        lines += ["", *_bytes_table(here)]
        _plot([point for point in here if not point["delay"]], folder / f"speed_batch{batch}.png", batch)
        lines += ["", f"![Images/s and share kept by rate, batch {batch}](speed_batch{batch}.png)"]
    (folder / "results.md").write_text("\n".join(lines) + "\n")


def _links_table(links: dict) -> list[str]:
    lines = [
        "The links themselves, one TCP connection at a time, there / back; wire counts all headers:",
        "",
        "| rate asked for | delay one way, ms | achieved on the wire, Mbit/s | of payload, Mbit/s | round trip, ms |",
        "|---|---|---|---|---|",
    ]
    for link in links.values():
        wire, payload = (" / ".join(f"{value:,.4g}" for value in link[f"{kind}_mbit"]) for kind in ("wire", "payload"))
        lines.append(
            f"| {_name(link['rate'])} | {link['delay']:g} | {wire} | {payload} | {link['round_trip_ms']:.2f} |"
        )
    return lines


def _speed_table(points: list[Point]) -> list[str]:
    still = [point for point in points if not point["delay"]]
    rates = sorted({point["rate"] or math.inf for point in still}, reverse=True)
    names = [_name(None if rate == math.inf else rate) for rate in rates]
    lines = [
        f"| images/s | {' | '.join(names)} | below {KEPT:.0%} under |",
        f"|---|{'---|' * len(rates)}---|",
    ]
    for system, group in groupby(still, key=lambda point: point["system"]):
        line = {point["rate"] or math.inf: point for point in group}
        cells = [_speed(line[rate]) if rate in line else "-" for rate in rates]
        lines.append(f"| {system} | {' | '.join(cells)} | {falls_below(list(line.values()))} |")
    return [*lines, "", f"Between rounds speeds differ by up to {max(point['spread'] for point in still):.0%}."]


def _speed(point: Point) -> str:
    best = "" if point["micro_batches"] is None else f" m{point['micro_batches']}"
    kept = "" if point["kept"] is None else f" ({point['kept']:.2f})"
    return f"{point['images_per_s']:.4g}{kept}{best}"


def _delay_table(points: list[Point]) -> list[str]:
    delayed = [point for point in points if point["delay"]]
    lines = ["| with a delay | rate | ms one way | images/s | without the delay | share |", "|---|---|---|---|---|---|"]
    for point in delayed:
        same = [other for other in points if other["system"] == point["system"] and other["rate"] == point["rate"]]
        without = next((other for other in same if not other["delay"]), None)
        speeds = "- | -" if without is None else (
            f"{_speed(without)} | {point['images_per_s'] / without['images_per_s']:.2f}"
        )  # fmt: skip
        lines.append(
            f"| {point['system']} | {_name(point['rate'])} | {point['delay']:g} | {_speed(point)} | {speeds} |"
        )
    return lines


def _bytes_table(points: list[Point]) -> list[str]:
    lines = [
        f"Bytes for {IMAGES:,} images of training, MB = 1e6. On the wire: all that the hosts' links carried while it was "
        "measured, with headers, acknowledgements and control. Payload: latents, gradients or parameters, as each "
        "system counts what it sends. The first host sends forward only and the last back only.",
        "",
        "| system | rate | ms one way | MB payload | MB on the wire | wire / payload | by the first host | by the last "
        "| back / forward | batches |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for point in points:
        sent, payload = point["sent"], point["payload"]
        ratio = f"{sum(sent) / payload:.3f}" if payload else "-"
        lines.append(
            f"| {point['system']} | {_name(point['rate'])} | {point['delay']:g} | {payload / 1e6:.3f} "
            f"| {sum(sent) / 1e6:.3f} | {ratio} | {sent[0] / 1e6:.3f} | {sent[-1] / 1e6:.3f} "
            f"| {sent[-1] / sent[0]:.4f} | {point['steps']} |"
        )
    return lines


def _name(rate: float | None) -> str:
    return "no limit" if rate is None else f"{rate:g}"


def _plot(points: list[Point], path: Path, batch: int) -> None:
    """Images/s, and the share kept, over the rate; unlimited links at the right edge."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    limited = sorted({point["rate"] for point in points if point["rate"] is not None})
    edge = 4 * limited[-1] if limited else 1.0
    figure, (speed, kept) = plt.subplots(1, 2, figsize=(13, 5.5), constrained_layout=True)
    for index, (system, group) in enumerate(groupby(points, key=lambda point: point["system"])):
        line = sorted(group, key=lambda point: point["rate"] or math.inf)
        rates = [point["rate"] or edge for point in line]
        style = {
            "label": system,
            "color": color_of(index),
            "marker": "o" if line[0]["pipeflow"] else "s",
            "linestyle": "-" if line[0]["pipeflow"] else "--",
            "linewidth": 2.2 if line[0]["pipeflow"] else 1.3,
            "markersize": 5,
        }
        speed.plot(rates, [point["images_per_s"] for point in line], **style)
        kept.plot(rates, [point["kept"] or math.nan for point in line], **style)
    for axes, title in ((speed, "images/s"), (kept, "share of its own speed over unlimited links")):
        axes.set_xscale("log")
        axes.set_xticks([*limited, edge], [*(f"{rate:g}" for rate in limited), "no limit"], minor=False)
        axes.minorticks_off()
        axes.set_xlabel("rate of each link, Mbit/s")
        axes.set_title(f"{title}, batch {batch}", fontsize=11)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    kept.axhline(KEPT, color="black", linewidth=0.8, linestyle=":")
    kept.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)
