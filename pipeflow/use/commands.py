"""The commands that write what a trained flow makes: sample, encode, interpolate. Each returns what to tell the user."""

import re
from collections.abc import Sequence
from pathlib import Path

from pipeflow.data.image_files import read_images
from pipeflow.data.picture import AS_IS, Conversion
from pipeflow.device import choose_device
from pipeflow.errors import DataError
from pipeflow.rundir.saved_flow import SavedFlow, open_flow
from pipeflow.units import count_text
from pipeflow.use.labels import sampled_labels
from pipeflow.use.sample import file_suffix, labels_in_turn, sample_grid, save_samples
from pipeflow.use.trained_flow import TrainedFlow


def sample(
    path: str | Path,
    num: int = 64,
    temperature: float = 0.7,
    seed: int = 0,
    out: str | Path | None = None,
    flow: str | None = None,
    device: str = "auto",
    labels: Sequence[str] | None = None,
) -> str:
    """Writes samples of a flow as one PNG or, where they are no pictures, as an array of NumPy, .npy.

    path, flow, device: as `load_flow` takes them. out: file, by default one in the run folder, if `path` is one, or here.
    labels: classes of the samples, as for `TrainedFlow.sample`. Raises what `load_flow` and `TrainedFlow.sample` raise, and
    DataError where `out` is of the other kind.
    """
    _, trained = _load(path, flow, device)
    chosen = sampled_labels(labels, num, trained.num_classes, trained.classes)
    if chosen is None:
        chosen = labels_in_turn(num, trained.num_classes)
    suffix = file_suffix(trained.flow.values)
    if out is None:
        folder = Path(path) if (Path(path) / "config.yaml").exists() else Path()
        names = "".join(re.sub(r"\W", "-", f"_{label}") for label in labels or ())
        out = folder / f"samples{names}_t{temperature:g}_seed{seed}{suffix}"
    if Path(out).suffix.lower() != suffix:
        kind = "floats" if trained.flow.values.is_float else "8-bit values"
        raise DataError(
            f"--out {out}: {trained.source} makes {kind} of shape {list(trained.shape)}, which go into a file that ends in "
            f"{suffix}."
        )
    samples = trained.sample(num, temperature, seed, labels=chosen)
    save_samples(samples, _with_folder(out), chosen, trained.classes)
    of_classes = "" if chosen is None else f" of {count_text(len(chosen.unique()), 'class', 'es')}"
    return f"{count_text(num, 'sample')}{of_classes}, temperature {temperature:g}, seed {seed}: {out}"


def encode(
    path: str | Path, images: Sequence[str], out: str | Path, flow: str | None = None, device: str = "auto"
) -> str:
    """Writes the latents of image files, as `Latents.save` does.

    path, flow, device: as `load_flow` takes them. Raises what it raises, and DataError where a file is no such image.
    """
    saved, trained = _load(path, flow, device)
    _check_drawn(trained)
    latents = trained.encode(read_images(images, trained.shape, _conversion(saved)))
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
    ends = read_images([a, b], trained.shape, _conversion(saved))
    sample_grid(trained.interpolate(ends[0], ends[1], num), _with_folder(out), columns=num)
    return f"{num} images from {a} to {b}: {out}"


def _load(path: str | Path, flow: str | None, device: str) -> tuple[SavedFlow, TrainedFlow]:
    saved = open_flow(path, flow)
    return saved, TrainedFlow(saved, choose_device(device))


def _conversion(saved: SavedFlow) -> Conversion:
    return AS_IS if saved.config is None else Conversion.of(saved.config.data)


def _check_drawn(trained: TrainedFlow) -> None:
    if file_suffix(trained.flow.values) != ".png":
        kind = "floats" if trained.flow.values.is_float else "8-bit values"
        raise DataError(
            f"{trained.source}: its flow is of {kind} of shape {list(trained.shape)}; only 8-bit values of [1 or 3, "
            f"height, width] are images that can be read and drawn. From Python, pipeflow.load_flow(path) takes and gives "
            f"tensors."
        )


def _with_folder(path: str | Path) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return Path(path)
