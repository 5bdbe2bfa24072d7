"""The trained flow as one file, `model.safetensors`, and back: no heads, no workers, one process."""

import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeflow.config import Config
from pipeflow.errors import CheckpointError
from pipeflow.flow import Flow, build_flow
from pipeflow.rundir.reading import read_config
from pipeflow.safe_files import brief, open_file, parse_json

MODEL_FILE = "model.safetensors"
MAX_IMAGE_VALUES = 4_000_000
"""Values of the largest image of a saved flow, 1024 x 1024 in colour. A line of text must not ask for more memory."""


def save_flow(flow: Flow, run_dir: str | Path) -> None:
    """Writes the flow's parameters and buffers, and its images' shape, into a run folder."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in flow.state_dict().items()}
    partial = Path(run_dir) / (MODEL_FILE + ".partial")
    save_file(tensors, partial, metadata={"shape": json.dumps(list(flow.shape))})
    partial.replace(partial.with_name(MODEL_FILE))


def load_flow(run_dir: str | Path, flow: Flow | None = None) -> Flow:
    """Loads the trained flow of a run that has ended.

    flow: an untrained flow of the same layers, for a run whose flow was given from Python.
    Raises CheckpointError where the run has not ended, its file is damaged, or it needs `flow`.
    """
    config, path = read_config(run_dir), Path(run_dir) / MODEL_FILE
    if not path.exists():
        raise CheckpointError(
            f"{run_dir} has no {MODEL_FILE}: the run has not ended, or the file was removed. Remove summary.json, if it is "
            f"there, and start the run's command again."
        )
    if flow is None and config.model.name == "python":
        raise CheckpointError(f"{run_dir}: its flow was given from Python; load it with load_flow(run_dir, flow=...).")
    try:
        with open_file(path), safe_open(path, framework="pt") as file:
            shape = _shape_in(file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        is_glow = flow is None and config.model.name == "glow"
        if flow is None:
            flow = _without_memory(config, shape, len(tensors)) if is_glow else build_flow(config, shape)
        _check_fits(tensors, flow)
        flow.load_state_dict(tensors, assign=is_glow)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged or of another model: {' '.join(str(error).split())[:300]}") from None
    return flow


def _shape_in(metadata: dict[str, str] | None) -> tuple[int, ...]:
    """Reads the shape of an image, which stands beside the tensors. Raises ValueError where it cannot be one."""
    shape = parse_json((metadata or {}).get("shape", "null"))
    if not isinstance(shape, list) or not shape or not all(type(each) is int and each > 0 for each in shape):
        raise ValueError(f"its images have the shape {brief(shape)}")
    if math.prod(shape) > MAX_IMAGE_VALUES:
        raise ValueError(f"its images have the shape {brief(shape)}, the limit is {MAX_IMAGE_VALUES:,} values")
    return tuple(shape)


def _without_memory(config: Config, shape: tuple[int, ...], num_tensors: int) -> Flow:
    """Builds the configuration's Glow without memory for its parameters: the file may hold far smaller ones."""
    if config.model.num_blocks * config.model.num_steps > num_tensors:
        raise ValueError(f"config.yaml asks for more flow steps than the file's {num_tensors} tensors are for")
    with torch.device("meta"):
        return build_flow(config, shape)


def _check_fits(tensors: dict[str, Tensor], flow: Flow) -> None:
    """Raises ValueError where a tensor is missing, or has another type or shape than the flow's."""
    for name, expected in flow.state_dict().items():
        found = tensors.get(name)
        if found is None:
            raise ValueError(f"it has no {name}")
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise ValueError(
                f"{name} is {found.dtype} {list(found.shape)}, the flow has {expected.dtype} {list(expected.shape)}"
            )
