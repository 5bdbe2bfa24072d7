"""Makes a pipeflow flow of the trained Glow of another code: y0ast/Glow-PyTorch, with equal likelihood.

That model is pipeflow's Glow under other names, from the dequantization to the top prior. Four things differ:

    its flow.layers.0, 1, ...   number squeezes, flow steps and factor-outs in one row
    its ActNorms                scale by exp(logs), ours by exp(3 log_scale)
    its top prior               is a zero convolution of an image of zeros, of which only the bias is left
    its classifier of latents   (`project_class`, of models with labels) is no part of the likelihood, and is left out
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeflow.config import Config
from pipeflow.errors import CheckpointError
from pipeflow.flow import Flow, build_flow
from pipeflow.rundir.model import MODEL_FILE, check_shape, save_flow
from pipeflow.safe_files import brief
from pipeflow.use.torch_file import read_state_dict

_SOURCE = "y0ast/Glow-PyTorch"
_NAMES = {
    "actnorm.": "actnorm.",
    "invconv.permutation": "invconv.p",
    "invconv.sign": "invconv.sign_s",
    "invconv.": "invconv.",
    "coupling.net.conv_in.": "block.0.conv.",
    "coupling.net.norm_in.": "block.0.actnorm.",
    "coupling.net.conv_mid.": "block.2.conv.",
    "coupling.net.norm_mid.": "block.2.actnorm.",
    "coupling.net.conv_out.conv.": "block.4.conv.",
    "coupling.net.conv_out.": "block.4.",
    "prior.conv.": "conv.conv.",
    "prior.": "conv.",
}
"""Beginnings of names in a flow step or factor-out of pipeflow, with those in the other; the first that fits counts."""
_TOP = "learn_top_fn.conv.weight", "learn_top_fn.conv.bias", "learn_top_fn.logs"
_LABEL = "project_ycond.linear.weight", "project_ycond.linear.bias", "project_ycond.logs"
_CLASSIFIER = "project_class.linear.weight", "project_class.linear.bias", "project_class.logs"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A flow that was imported."""

    path: Path
    """The model file, which `load_flow`, `pipeflow evaluate`, `pipeflow sample` and `model.init` take."""
    shape: tuple[int, ...]
    """Shape of an image."""
    config: Config
    """Its section `model` builds the flow."""


def import_glow(path: str | Path, out: str | Path | None = None) -> Imported:
    """Reads a state dict of y0ast/Glow-PyTorch and writes the flow of equal likelihood as a `model.safetensors`.

    Args:
        path: file of `torch.save`: the state dict, or a checkpoint that holds it under `model` or `state_dict`; names may
            begin with `module.`. Its flow has invertible 1x1 convolutions, plain or LU, and affine or additive couplings.
            The density of one that was trained with labels is given the label here too.
        out: folder for the model file. By default it is named after `path`, in the current folder.

    Raises CheckpointError where the file is none such, or `out` has a model already.
    """
    path = Path(path).expanduser()
    out = Path(path.stem) if out is None else Path(out).expanduser()
    if (out / MODEL_FILE).exists():
        raise CheckpointError(f"{out / MODEL_FILE} is there already: choose another folder, or remove it.")
    tensors = read_state_dict(path)
    try:
        config, shape = _recognize(tensors)
        with torch.device("meta"):  # no memory for what the file claims to hold
            flow = build_flow(config, shape)
        flow.load_state_dict(_convert(tensors, flow, config), assign=True)
    except ValueError as error:
        raise CheckpointError(f"{path} is no Glow of {_SOURCE} that can be imported: {error}") from None
    out.mkdir(parents=True, exist_ok=True)
    save_flow(flow, out, config)
    return Imported(path=out / MODEL_FILE, shape=shape, config=config)


def describe(imported: Imported) -> str:
    """Describes what was imported, and the commands that use it."""
    model, folder = imported.config.model, imported.path.parent
    size = "x".join(map(str, imported.shape[1:]))
    options = " ".join(f"--model.{name} {value}" for name, value in _options(imported.config).items())
    label = "" if model.num_classes is None else f"given the label of {model.num_classes} classes, "
    return (
        f"{imported.path}: Glow of {model.num_blocks} blocks of {model.num_steps} steps, width {model.width}, "
        f"{model.coupling}, {model.invconv}, {label}for images of {size} pixels and {imported.shape[0]} channels\n"
        f"bits/dim:  pipeflow evaluate {folder} --data PATH\n"
        f"training:  pipeflow train --model.init {folder} {options} --data.name images --data.path PATH --run.dir DIR"
    )


def _options(config: Config) -> dict[str, object]:
    names = ("num_blocks", "num_steps", "width", "coupling", "invconv", "num_classes")
    return {name: value for name in names if (value := getattr(config.model, name)) is not None}


def _recognize(tensors: Mapping[str, Tensor]) -> tuple[Config, tuple[int, ...]]:
    """The options of the flow whose tensors these are, and the shape of an image. Raises ValueError where there is none."""
    layers = sorted({int(found[1]) for name in tensors if (found := re.match(r"flow\.layers\.(\d{1,6})\.", name))})
    if not layers or "prior_h" not in tensors:
        some = ", ".join(brief(name, str) for name in list(tensors)[:3])
        raise ValueError(
            f"it holds {len(tensors)} tensors, of which the first are {some}; expected are flow.layers.1.actnorm.bias and "
            f"so on, and prior_h."
        )
    if not any(".invconv." in name for name in tensors):
        raise ValueError(
            "it has no invertible 1x1 convolutions: it was trained with --flow_permutation shuffle or reverse, and the "
            "file does not hold the order of the channels; expected is invconv."
        )
    if tensors["prior_h"].any():
        raise ValueError("its prior_h has values other than 0; expected are zeros, as that code leaves them.")
    num_blocks = 1 + sum(f"flow.layers.{layer}.conv.logs" in tensors for layer in layers)
    num_steps = sum(f"flow.layers.{layer}.actnorm.bias" in tensors for layer in layers) // num_blocks
    conv_in, conv_out = (_taken(tensors, f"flow.layers.1.block.{index}.conv.weight") for index in (0, 4))
    _, _, height, width = _four_sizes(tensors, "prior_h")
    channels = _taken(tensors, "flow.layers.1.actnorm.bias").numel() // 4
    config = Config.from_dict(
        {
            "model": {
                "num_blocks": num_blocks,
                "num_steps": num_steps,
                "width": len(conv_in),
                "coupling": "affine" if len(conv_out) == 4 * channels else "additive",
                "invconv": "plain" if "flow.layers.1.invconv.weight" in tensors else "lu",
                "num_classes": tensors[_LABEL[0]].shape[-1] if _LABEL[0] in tensors else None,
            },
            "parts": {"num": 1},  # however short, it has one
        }
    )
    return config, check_shape([channels, height * 2**num_blocks, width * 2**num_blocks])


def _four_sizes(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int, int, int]:
    shape = tuple(tensors[name].shape)
    if len(shape) != 4:
        raise ValueError(f"its {name} has the shape {list(shape)}; expected are four numbers.")
    return shape


def _taken(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"it has no {name}.")
    return tensors[name]


def _convert(tensors: Mapping[str, Tensor], flow: Flow, config: Config) -> dict[str, Tensor]:
    """The flow's state dict with the values of the other. Raises ValueError where a tensor is missing, left or of another
    shape or type."""
    converted, used, wanted = {}, {"prior_h"}, flow.state_dict()
    for name, theirs in _sources(flow, config):
        expected = wanted[name]
        if theirs is None:
            converted[name] = torch.tensor(True)
            continue
        value = _taken(tensors, theirs)
        is_vector = expected.ndim == 1 and value.numel() == expected.numel()
        if value.dtype != expected.dtype or not (is_vector or value.shape == expected.shape):
            raise ValueError(
                f"its {brief(theirs)} is {value.dtype} {list(value.shape)}; expected is {expected.dtype} "
                f"{list(expected.shape)}."
            )
        value = value.reshape(expected.shape).clone()
        converted[name] = value / 3 if re.search(r"(actnorm|norm_in|norm_mid)\.log_scale$", name) else value
        used.add(theirs)
    converted |= _top_prior(tensors, flow)
    left = sorted(tensors.keys() - used - {*_TOP, *_LABEL, *_CLASSIFIER})
    if left:
        raise ValueError(f"it has {len(left)} tensors more than that model, the first of them {brief(left[0])}.")
    return converted


def _sources(flow: Flow, config: Config) -> Iterator[tuple[str, str | None]]:
    """The names of the flow's tensors but the top prior's, each with its name in the other; None for a flag of ActNorms."""
    for name in flow.state_dict():
        found = re.match(r"blocks\.(\d+)\.(?:steps\.(\d+)|factor_out)\.(.*)", name)
        if found is None:
            continue
        block, step, rest = found.groups()
        if rest.endswith("initialized"):
            yield name, None
            continue
        place = int(block) * (config.model.num_steps + 2) + 1
        place += config.model.num_steps if step is None else int(step)
        ours, theirs = next(pair for pair in _NAMES.items() if rest.startswith(pair[0]))
        rest = f"{theirs}{rest.removeprefix(ours)}".replace("log_scale", "logs")
        yield name, f"flow.layers.{place}.{rest}"


def _top_prior(tensors: Mapping[str, Tensor], flow: Flow) -> dict[str, Tensor]:
    """Mean and log-scale of the last latent: learned, or zeros (`--no_learn_top`); and what a label adds to them."""
    size = 2 * flow.shapes[-1][0]
    moments, prior = torch.zeros(size), {}
    if _TOP[0] in tensors:
        bias, logs = (_sized(tensors, name, size) for name in _TOP[1:])
        moments = bias * torch.exp(3 * logs)
    if _LABEL[0] in tensors:
        num_classes = flow.num_classes or 0
        weight = _sized(tensors, _LABEL[0], size * num_classes).view(size, num_classes)
        bias, logs = (_sized(tensors, name, size) for name in _LABEL[1:])
        prior["prior.embedding"] = ((weight.T + bias) * torch.exp(3 * logs)).contiguous()
    mean, log_scale = moments.chunk(2)
    return {"prior.mean": mean.clone(), "prior.log_scale": log_scale.clone(), **prior}


def _sized(tensors: Mapping[str, Tensor], name: str, size: int) -> Tensor:
    """A tensor as one row of numbers. Raises ValueError where it has not so many, or of another type."""
    value = _taken(tensors, name)
    if value.numel() != size or value.dtype != torch.float32:
        raise ValueError(
            f"its {name} is {value.dtype} {list(value.shape)}; expected are {size} numbers, torch.float32."
        )
    return value.flatten()
