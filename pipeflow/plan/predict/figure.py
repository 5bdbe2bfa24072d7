"""Seconds an epoch against the speed of the links, for the best of each system."""

import dataclasses
from pathlib import Path

from matplotlib.figure import Figure

from pipeflow.plan.predict.prediction import Prediction
from pipeflow.plan.predict.predictor import Predictor
from pipeflow.report.colors import color_of

SPEEDS = tuple(10.0 ** (6 + step / 2) for step in range(13))
"""1 Mbit/s to 1 Tbit/s."""

_SHOWN = ("end_to_end", "concurrent", "alternate", "gpipe", "1f1b", "ddp", "ddp, batch a worker")


def best_by_speed(predictor: Predictor, speeds: tuple[float, ...] = SPEEDS) -> dict[str, list[Prediction]]:
    """The fastest cut of each system, for each speed of the links in bit/s."""
    found: dict[str, list[Prediction]] = {}
    for speed in speeds:
        machines = dataclasses.replace(predictor.machines, bandwidth=speed, reduce_bandwidth=None)
        other = Predictor(predictor.plan, machines, predictor.batch_size, shared=predictor)
        everything = other.all()
        for system in _SHOWN:
            of_system = [each for each in everything if each.system == system]
            if of_system:
                found.setdefault(system, []).append(min(of_system, key=lambda each: each.seconds))
    return found


def plot_by_speed(predictor: Predictor, path: str | Path) -> None:
    """Draws `best_by_speed` as PNG; alternate is dashed, since its epoch trains one part and the others' train all."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for index, (system, best) in enumerate(best_by_speed(predictor).items()):
        style = "--" if system == "alternate" else "-"
        axes.plot(SPEEDS, [each.seconds for each in best], style, color=color_of(index), label=system.replace("_", " "))
    axes.set(xscale="log", yscale="log", xlabel="speed of each link (bit/s)", ylabel="predicted seconds an epoch")
    axes.set_title(f"{predictor.machines.workers} workers, batch {predictor.batch_size}, best cut of each")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
