"""Labels reach the layers and priors that have a `num_classes`, as the keyword `labels`; all others never hear of them."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def num_classes_of(module: nn.Module) -> int | None:
    """Number of classes of the labels that a layer, prior or head takes; None: it takes none."""
    found: int | None = getattr(module, "num_classes", None)  # a head need not derive from Prior
    return found


def labels_for(module: nn.Module, labels: Tensor | None) -> dict[str, Tensor]:
    """The keyword arguments by which a layer, prior or head gets its batch's labels: none, if it takes none.

    Raises ValueError where it takes them and there are none.
    """
    if num_classes_of(module) is None:
        return {}
    if labels is None:
        raise ValueError(f"labels: {type(module).__name__} takes the label of each image, and none were given")
    return {"labels": labels}


def example_labels(module: nn.Module, num: int, device: torch.device | str) -> dict[str, Tensor]:
    """Keyword arguments that do for the labels of `num` images where nobody looks at the result."""
    return labels_for(module, torch.zeros(num, dtype=torch.int64, device=device))


def with_labels(layers: Iterable[Any], labels: Tensor | None) -> list[Callable[[Tensor], tuple[Tensor, ...]]]:
    """The layers as functions of a latent alone."""
    return [partial(layer, labels=labels) if labels_for(layer, labels) else layer for layer in layers]


def common_num_classes(modules: Iterable[nn.Module]) -> int | None:
    """Number of classes that all these modules which take labels agree on; None: none takes any.

    Raises ValueError where they differ.
    """
    found = {num for num in map(num_classes_of, modules) if num is not None}
    if len(found) > 1:
        listed = " and ".join(map(str, sorted(found)))
        raise ValueError(f"its layers and prior take labels of {listed} classes: give all of them one num_classes")
    return next(iter(found), None)


def check_labels(labels: object, num: int, num_classes: int | None) -> None:
    """Raises ValueError where labels are not int64, [num], from 0 to num_classes - 1, or are none's."""
    if num_classes is None:
        if labels is not None:
            raise ValueError("labels: this flow takes none, its density is not given the label")
        return
    wanted = f"give int64, [{num}], with values from 0 to {num_classes - 1}"
    if labels is None:
        raise ValueError(f"labels: this flow's density is given the label of each image: {wanted}")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (num,):
        kind = f"{labels.dtype}, {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels are {kind}: {wanted}")
    if num and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        wrong = next(label for label in labels.tolist() if not 0 <= label < num_classes)
        raise ValueError(f"labels: {wrong} is not one of the {num_classes} classes: {wanted}")
