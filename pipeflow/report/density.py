"""The picture of a flow on the plane: data, samples, and the density, side by side."""

from pathlib import Path

import matplotlib.style
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeflow.data import load_data
from pipeflow.errors import PipeflowError
from pipeflow.output import say
from pipeflow.rundir.reading import SavedRun, read_config
from pipeflow.use.trained_flow import TrainedFlow, load_flow

_NUM_POINTS = 2000
_PIXELS = 200
"""Pixels of the density in each direction."""
_MARGIN = 0.15
"""Margin on each side, as a share of the range of the data."""


def is_of_the_plane(run: SavedRun) -> bool:
    """Whether a run has ended with a flow of points of the plane, two floats each."""
    values = run.summary.values
    return run.ended and values is not None and values.dtype == "float32" and tuple(values.shape) == (2,)


def density_of_run(run_dir: Path) -> Figure | None:
    """The picture of a run's flow. None, which a line says, where flow or data were given from Python or are gone."""
    try:
        trained = load_flow(run_dir, device="cpu")
        data = load_data(read_config(run_dir).data)
    except PipeflowError as error:
        say(f"{run_dir}: no density.png: {error}")
        return None
    return draw_density(trained, data.test[:], None if trained.num_classes is None else data.test_labels)


@torch.no_grad()
def draw_density(trained: TrainedFlow, data: Tensor, labels: Tensor | None = None) -> Figure:
    """Draws points of the plane, as many samples, and the flow's density on the same square.

    data: float32, [points, 2]; of many, the first 2000 are drawn. `figure.savefig(path)` writes the picture.
    labels: int64, [points], for a flow whose density is given the label. Points and samples are coloured by it, and the
        density is the mean of those given the labels.
    """
    points, shown_labels = data[:_NUM_POINTS], None if labels is None else labels[:_NUM_POINTS]
    nats = -trained.log_prob(data, labels=labels).mean().item()
    least, most = data.min(dim=0).values, data.max(dim=0).values
    (left, bottom), (right, top) = least - _MARGIN * (most - least), most + _MARGIN * (most - least)
    grid = torch.cartesian_prod(torch.linspace(bottom, top, _PIXELS), torch.linspace(left, right, _PIXELS)).flip(1)
    samples = trained.sample(len(points), temperature=1.0, labels=shown_labels)
    given = "" if labels is None else " given the label"
    with matplotlib.style.context({"figure.constrained_layout.use": True, "axes.grid": False}):
        figure = Figure(figsize=(10, 3.7))
        panels = figure.subplots(1, 3, sharex=True, sharey=True)
        for axes, shown in zip(panels, (points, samples)):
            if shown_labels is None:
                axes.scatter(*shown.T.numpy(), s=2, linewidths=0, color="#0072b2")
            else:
                axes.scatter(*shown.T.numpy(), s=2, linewidths=0, c=shown_labels.numpy(), cmap="tab10")
        square = (float(left), float(right), float(bottom), float(top))
        density = _density(trained, grid, labels).view(_PIXELS, _PIXELS)
        panels[2].imshow(density.numpy(), origin="lower", extent=square, aspect="auto", cmap="Blues")
        for axes, title in zip(panels, ("data", "samples", f"density, {nats:.3f} nats a point{given}")):
            axes.set_title(title, loc="left", fontsize=10)
            axes.set(xlim=square[:2], ylim=square[2:])
        return figure


def _density(trained: TrainedFlow, grid: Tensor, labels: Tensor | None) -> Tensor:
    """The density at each point of the grid, [points]; of labels, with the shares that they have."""
    if labels is None:
        return trained.log_prob(grid, batch_size=4096).exp()
    shares = labels.bincount() / len(labels)
    return torch.stack(
        [
            share * trained.log_prob(grid, batch_size=4096, labels=label).exp()
            for label, share in enumerate(shares)
            if share > 0
        ]
    ).sum(dim=0)
