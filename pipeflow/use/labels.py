"""Labels as a user gives them: numbers or names of classes, one for all images or one for each."""

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeflow.errors import DataError
from pipeflow.safe_files import brief

Labels = Tensor | Sequence[int | str] | int | str
"""The label of each image, by its number or its class's name; a single one is that of all."""


def each_label(given: Labels | None, num: int, num_classes: int | None, classes: Sequence[str]) -> Tensor | None:
    """The label of each of `num` images, int64, [num]; None for a flow that takes none.

    classes: names of the labels 0, 1, ..., where they have names.

    Raises DataError where there is not one class for each image, or a flow that takes no labels is given some.
    """
    if num_classes is None or given is None:
        _check_wanted(given, num_classes, classes)
        return None
    if isinstance(given, int | str):
        return torch.full((num,), _label(given, num_classes, classes))
    labels = _labels(given, num_classes, classes)
    if len(labels) != num:
        raise DataError(f"labels: {len(labels)} for {num} images: give one for each, or a single one for all.")
    return labels


def sampled_labels(given: Labels | None, num: int, num_classes: int | None, classes: Sequence[str]) -> Tensor | None:
    """The label of each of `num` samples, int64, [num]: those given, in turn. None leaves the choice to `draw_samples`.

    Raises DataError as `each_label` does.
    """
    if given is None:
        return None
    _check_wanted(given, num_classes, classes)
    assert num_classes is not None, "it is seen to take labels"
    labels = _labels([given] if isinstance(given, int | str) else given, num_classes, classes)
    if not len(labels):
        raise DataError("labels: the list is empty: give one class or more, or leave it out.")
    return labels[torch.arange(num) % len(labels)]


def _check_wanted(given: Labels | None, num_classes: int | None, classes: Sequence[str]) -> None:
    if given is not None and num_classes is None:
        raise DataError("labels: this flow takes none: its density is not given the label. Leave them out.")
    if given is None and num_classes is not None:
        raise DataError(
            f"labels: this flow's density is given the label: give labels=..., one for each image, of the classes "
            f"{_listed(num_classes, classes)}."
        )


def _labels(given: Tensor | Sequence[int | str], num_classes: int, classes: Sequence[str]) -> Tensor:
    each = given.tolist() if isinstance(given, Tensor) and given.ndim == 1 else given
    if not isinstance(each, list | tuple):
        raise DataError(f"labels are a {type(given).__name__}: give whole numbers or names, one for each image.")
    return torch.tensor([_label(label, num_classes, classes) for label in each], dtype=torch.int64)


def _label(given: object, num_classes: int, classes: Sequence[str]) -> int:
    """The number of a class. A name goes before a number: a folder may be called 10 and be the second."""
    if given in classes:
        return list(classes).index(str(given))
    number = int(given) if isinstance(given, str) and given.isascii() and given.isdigit() else given
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < num_classes:
        return number
    near = difflib.get_close_matches(str(given), classes, n=1)
    meant = f" ({near[0]!r} is meant?)" if near else ""
    raise DataError(f"labels: {brief(given)} is not one of the classes {_listed(num_classes, classes)}{meant}.")


def _listed(num_classes: int, classes: Sequence[str]) -> str:
    numbers = f"0 to {num_classes - 1}"
    if not classes:
        return numbers
    return f"{', '.join(classes[:20])}{', ...' * (len(classes) > 20)} or {numbers}"
