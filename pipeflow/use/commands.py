"""The commands that write what a trained flow makes: sample, encode, interpolate. Each returns what to tell the user."""

from collections.abc import Sequence
from pathlib import Path

from pipeflow.data.image_files import read_images
from pipeflow.device import choose_device
from pipeflow.errors import DataError
from pipeflow.rundir.saved_flow import SavedFlow, open_flow
from pipeflow.use.sample import sample_grid
from pipeflow.use.trained_flow import TrainedFlow


def sample(
    path: str | Path,
    num: int = 64,
    temperature: float = 0.7,
    seed: int = 0,
    out: str | Path | None = None,
    flow: str | None = None,
    device: str = "auto",
) -> str:
    """Writes samples of a flow as one PNG: `out`, or by default a file in the run folder, if `path` is one, or here.

    path, flow, device: as `load_flow` takes them. Raises what it and `TrainedFlow.sample` raise, and DataError where the
    flow's images cannot be drawn.
    """
    _, trained = _load(path, flow, device)
    if out is None:
        folder = Path(path) if (Path(path) / "config.yaml").exists() else Path()
        out = folder / f"samples_t{temperature:g}_seed{seed}.png"
    _check_drawn(trained)
    sample_grid(trained.sample(num, temperature, seed), _with_folder(out))
    return f"{num} samples, temperature {temperature:g}, seed {seed}: {out}"


def encode(
    path: str | Path, images: Sequence[str], out: str | Path, flow: str | None = None, device: str = "auto"
) -> str:
    """Writes the latents of image files, as `Latents.save` does.

    path, flow, device: as `load_flow` takes them. Raises what it raises, and DataError where a file is no such image.
    """
    saved, trained = _load(path, flow, device)
    latents = trained.encode(read_images(images, trained.shape, _channels(saved)))
    latents.save(_with_folder(out))
    shapes = {"last": latents.last, **{f"taken_out.{index}": each for index, each in enumerate(latents.taken_out)}}
    return f"{', '.join(f'{name} {list(each.shape)}' for name, each in shapes.items())}: {out}"


def interpolate(
    path: str | Path,
    a: str,
    b: str,
    num: int = 8,
    out: str | Path = "interpolation.png",
    flow: str | None = None,
    device: str = "auto",
) -> str:
    """Writes the images on the way from one image file to another, side by side in one PNG.

    path, flow, device: as `load_flow` takes them. Raises what it and `TrainedFlow.interpolate` raise, and DataError where a
    file is no such image.
    """
    saved, trained = _load(path, flow, device)
    _check_drawn(trained)
    ends = read_images([a, b], trained.shape, _channels(saved))
    sample_grid(trained.interpolate(ends[0], ends[1], num), _with_folder(out), columns=num)
    return f"{num} images from {a} to {b}: {out}"


def _load(path: str | Path, flow: str | None, device: str) -> tuple[SavedFlow, TrainedFlow]:
    saved = open_flow(path, flow)
    return saved, TrainedFlow(saved, choose_device(device))


def _channels(saved: SavedFlow) -> int | None:
    return None if saved.config is None else saved.config.data.channels


def _check_drawn(trained: TrainedFlow) -> None:
    if len(trained.shape) != 3 or trained.shape[0] not in (1, 3):
        raise DataError(
            f"{trained.source}: its flow makes images of shape {list(trained.shape)}; only [1 or 3, height, width] can be "
            f"drawn. From Python, pipeflow.load_flow(path) gives them as tensors."
        )


def _with_folder(path: str | Path) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return Path(path)
