"""Test bits/dim of a trained flow, computed again in one process from what its run saved."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeflow.config import DataConfig
from pipeflow.data import ImageData, dequantized_batches, load_data
from pipeflow.data.given import GivenData, as_image_data
from pipeflow.data.sources import TooFewImages, take
from pipeflow.device import choose_device
from pipeflow.errors import CheckpointError, ConfigError, DataError
from pipeflow.flow import Part, Values, split_flow
from pipeflow.flow.part import PartOutput
from pipeflow.rundir.saved_flow import GivenFlow, SavedFlow, open_flow
from pipeflow.units import count_text
from pipeflow.use.likelihood import exit_bits_per_dim, sum_over_batches
from pipeflow.use.trained_flow import BATCH_SIZE

_SAY_WHERE = "say where the run's are, with --data PATH on the command line, evaluate(path, data=...) in Python"


@dataclass(frozen=True, kw_only=True)
class ClassEvaluation:
    """Test bits/dim of the images of one class, given their label."""

    name: str
    """The class's name, or its number where it has none."""
    test_bpd: float
    num_images: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Test bits/dim of a trained flow."""

    test_bpd: float
    summary_bpd: float | None
    """The run's own, from its summary; None where these are not the weights that it ended with."""
    num_images: int
    values: Values
    """The values that the bits/dim are of."""
    device: str
    source: Path
    """The model file, or the folder of the checkpoint, that the weights are from."""
    by_class: tuple[ClassEvaluation, ...] | None = None
    """Bits/dim of each class that has images; None for a flow whose bits/dim are not given the label."""


def evaluate(
    path: str | Path, device: str = "auto", data: GivenData | str | Path | None = None, flow: GivenFlow = None
) -> Evaluation:
    """Bits/dim of all test images of a run's data, under the flow that it trained; given the label, if the flow takes it.

    For a run that has ended they are computed as the run did it: same images, noise, batches and order of the sums. So
    they are the summary's to the last bit on the CPU, with the same number of threads and without `precision.compile`.

    Args:
        path: as `load_flow` takes it.
        device: auto, cpu or cuda.
        data: the run's images, as `train` takes them, or the folder, zip or file where they are now.
            None: as the run's configuration says.
        flow: as `load_flow` takes it.

    Raises:
        CheckpointError: there is no such flow, it is damaged, or `flow` is needed.
        DataError: the images or their labels are not there or others than the run's, or `data` is needed.
        ConfigError: there is no such device.
    """
    saved = open_flow(path, flow)
    images = _load_images(path, saved, data)
    batch_size = BATCH_SIZE if saved.config is None else saved.config.optim.batch_size
    parts = _cut_as_run(saved)
    where = choose_device(device)
    for part in parts:
        part.to(where)
    values = saved.flow.values
    batches = dequantized_batches(images.test, values, batch_size)
    labels = None if saved.flow.num_classes is None else images.test_labels
    moved = (batch.to(where) for batch in batches)
    by_class = None
    if labels is None:
        sums = sum_over_batches(parts, moved)
    else:
        log_probs, each = _LogProbs(parts[-1]), labels.to(where).split(batch_size)
        sums = sum_over_batches(parts, moved, labels_of=each.__getitem__, see=log_probs.add)
        by_class = log_probs.by_class(labels, images.classes or saved.classes, values)
    exits = exit_bits_per_dim([sums[part.index] for part in parts], len(images.test), values)
    return Evaluation(
        test_bpd=exits[-1],
        summary_bpd=None if saved.summary is None else saved.summary.test_bpd,
        num_images=len(images.test),
        values=values,
        device=where.type,
        source=saved.source,
        by_class=by_class,
    )


class _LogProbs:
    """log p(image | label) of each image, [batch], of one batch after the other."""

    def __init__(self, last: Part):
        self._last = last
        self._batches: list[Tensor] = []
        self._so_far: Tensor | float = 0.0

    def add(self, part: Part, output: PartOutput) -> None:
        """Adds what a part says of a batch; parts come in order."""
        self._so_far = output.contribution + self._so_far
        if part is self._last:
            self._batches.append((self._so_far + output.log_head).cpu())
            self._so_far = 0.0

    def by_class(self, labels: Tensor, classes: Sequence[str], values: Values) -> tuple[ClassEvaluation, ...]:
        log_prob = torch.cat(self._batches)
        return tuple(
            ClassEvaluation(
                name=classes[label] if classes else str(label),
                test_bpd=values.bits_per_dim(log_prob[labels == label].mean().item()),
                num_images=int((labels == label).sum()),
            )
            for label in labels.unique().tolist()
        )


def describe(evaluation: Evaluation) -> str:
    """An evaluation in one line, and in one more for each class."""
    lines = [_describe_all(evaluation)]
    by_class = evaluation.by_class or ()
    width = max((len(each.name) for each in by_class), default=0)
    for each in by_class:
        measured = evaluation.values.text(each.test_bpd, digits=6)
        lines.append(f"  {each.name:<{width}}  {measured} on {count_text(each.num_images, evaluation.values.item)}")
    return "\n".join(lines)


def _describe_all(evaluation: Evaluation) -> str:
    measured = evaluation.values.text(evaluation.test_bpd, digits=6)
    given = "" if evaluation.by_class is None else " given the label"
    num_items = count_text(evaluation.num_images, evaluation.values.item)
    result = f"test {measured}{given} on {num_items} ({evaluation.device})"
    if evaluation.summary_bpd is None:
        return f"{result}; {evaluation.source}"
    if evaluation.test_bpd == evaluation.summary_bpd:
        return f"{result}; summary.json: the same to the last bit"
    difference = evaluation.test_bpd - evaluation.summary_bpd
    return f"{result}; summary.json: {evaluation.summary_bpd:.6f} ({difference:+.1e} here)"


def _load_images(path: str | Path, saved: SavedFlow, data: GivenData | str | Path | None) -> ImageData:
    """The run's images, or those that are given, once they are seen to be the run's."""
    if isinstance(data, ImageData | tuple | list):
        images = as_image_data(data)
        which = images.name
        try:
            images = images if saved.config is None else take(saved.config.data, images)
        except TooFewImages:
            raise _others(path, which, "they are fewer") from None
    else:
        options = DataConfig(name="python") if saved.config is None else saved.config.data
        if data is not None:
            name = "images" if options.name in ("python", "dead_leaves") else options.name
            options = dataclasses.replace(options, name=name, path=str(data))
        elif options.name == "python":
            if saved.config is None:
                why = "this model file stands by itself and does not tell of any images"
            else:
                why = "its images were given from Python"
            raise DataError(
                f"{path}: {why}: give them, as evaluate(path, data=ImageData(train, test, name)) in Python, or as --data "
                f"PATH on the command line, a folder or zip with train/ and test/."
            )
        which = options.name if options.path is None else options.path
        try:
            images = load_data(options)
        except TooFewImages:
            raise _others(path, which, "they are fewer") from None
        except DataError as error:
            raise DataError(
                f"{path}: the run's images cannot be loaded: {error} If they moved, {_SAY_WHERE}."
            ) from None
    expected = saved.flow.values
    if images.shape != expected.shape:
        raise _others(path, which, f"its flow takes shape {list(expected.shape)}, they have {list(images.shape)}")
    if images.train.is_floating_point() != expected.is_float:
        kind = "floats" if expected.is_float else "8-bit values"
        raise _others(path, which, f"its flow takes {kind}, they are {images.train.dtype}")
    if saved.data is not None and images.fingerprint != saved.data:
        raise _others(path, which, "their contents differ")
    num_classes, given = saved.flow.num_classes, saved.given_label
    if num_classes is not None and images.test_labels is None:
        raise DataError(f"{path}: its flow's density is given the label, but the images of {which} have no labels.")
    if num_classes is not None and given is not None and images.labels_fingerprint != given.fingerprint:
        raise _others(path, which, "their labels differ")
    if num_classes is not None and images.test_labels is not None and int(images.test_labels.max()) >= num_classes:
        raise _others(path, which, f"they have a label {int(images.test_labels.max())}, the flow {num_classes} classes")
    return images


def _others(path: str | Path, which: str, how: str) -> DataError:
    return DataError(
        f"{path}: the images of {which} are not those of the run ({how}), and bits/dim would not compare: "
        f"{_SAY_WHERE}; bits/dim of any images of the flow's shape are pipeflow.load_flow(path).bits_per_dim(images)."
    )


def _cut_as_run(saved: SavedFlow) -> list[Part]:
    """The parts that the run ended with. Sums that are grouped by others differ in the last bit.

    New heads do not count: only the flow's own prior enters its bits/dim.
    """
    summary, cuts = saved.summary, []
    try:
        if summary is not None and summary.epochs[-1].is_local:
            cuts = [part.layers[0] for part in summary.parts[1:]]
        return split_flow(saved.flow, cuts)
    except (ConfigError, IndexError) as error:
        path = saved.source.with_name("summary.json")
        raise CheckpointError(f"{path} is damaged (parts: {error}): take it from a copy, or run again.") from None
