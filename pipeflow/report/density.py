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
"""Of the density, in each direction."""
_MARGIN = 0.15
"""Of the range of the data, on each side."""


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
    return draw_density(trained, data.test[:])


@torch.no_grad()
def draw_density(trained: TrainedFlow, data: Tensor) -> Figure:
    """Draws points of the plane, as many samples, and the flow's density on the same square.

    data: float32, [points, 2]; of many, the first 2000 are drawn. `figure.savefig(path)` writes the picture.
    """
    points = data[:_NUM_POINTS]
    nats = -trained.log_prob(data).mean().item()
    least, most = data.min(dim=0).values, data.max(dim=0).values
    (left, bottom), (right, top) = least - _MARGIN * (most - least), most + _MARGIN * (most - least)
    grid = torch.cartesian_prod(torch.linspace(bottom, top, _PIXELS), torch.linspace(left, right, _PIXELS)).flip(1)
    density = trained.log_prob(grid, batch_size=4096).exp().view(_PIXELS, _PIXELS)
    samples = trained.sample(len(points), temperature=1.0)
    with matplotlib.style.context({"figure.constrained_layout.use": True, "axes.grid": False}):
        figure = Figure(figsize=(10, 3.7))
        panels = figure.subplots(1, 3, sharex=True, sharey=True)
        for axes, shown in zip(panels, (points, samples)):
            axes.scatter(*shown.T.numpy(), s=2, linewidths=0, color="#0072b2")
        square = (float(left), float(right), float(bottom), float(top))
        panels[2].imshow(density.numpy(), origin="lower", extent=square, aspect="auto", cmap="Blues")
        for axes, title in zip(panels, ("data", "samples", f"density, {nats:.3f} nats a point")):
            axes.set_title(title, loc="left", fontsize=10)
            axes.set(xlim=square[:2], ylim=square[2:])
        return figure
