"""The trained flow as one file, `model.safetensors`, and back: no heads, no workers, one process."""

import json
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeflow.config import Config
from pipeflow.errors import CheckpointError, ConfigError
from pipeflow.flow import Flow, build_flow

MODEL_FILE = "model.safetensors"


def save_flow(flow: Flow, run_dir: str | Path) -> None:
    """Writes the flow's parameters and buffers, and its images' shape, into a run folder."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in flow.state_dict().items()}
    partial = Path(run_dir) / (MODEL_FILE + ".partial")
    save_file(tensors, partial, metadata={"shape": json.dumps(list(flow.shape))})
    partial.replace(partial.with_name(MODEL_FILE))


def read_config(run_dir: str | Path) -> Config:
    """The configuration a run was made with. Raises CheckpointError where this is no run folder."""
    path = Path(run_dir) / "config.yaml"
    try:
        return Config.from_dict(yaml.safe_load(path.read_text()))
    except OSError:
        raise CheckpointError(f"{run_dir} is not a run folder: it has no config.yaml.") from None
    except (yaml.YAMLError, ConfigError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def load_flow(run_dir: str | Path, flow: Flow | None = None) -> Flow:
    """The trained flow of a run that has ended.

    flow: an untrained flow of the same layers, for a run whose flow was given from Python.
    Raises CheckpointError where the run has not ended, its file is damaged, or it needs `flow`.
    """
    config, path = read_config(run_dir), Path(run_dir) / MODEL_FILE
    if not path.exists():
        raise CheckpointError(f"{run_dir} has no {MODEL_FILE}: the run has not ended. Start its command again.")
    if flow is None and config.model.name == "python":
        raise CheckpointError(f"{run_dir}: its flow was given from Python; load it with load_flow(run_dir, flow=...).")
    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}
            shape = tuple(json.loads(file.metadata()["shape"]))
        flow = build_flow(config, shape) if flow is None else flow
        flow.load_state_dict(tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged or of another model: {' '.join(str(error).split())[:300]}") from None
    return flow


def to_images(samples: Tensor) -> Tensor:
    """Values in [-0.5, 0.5) back to uint8: the bin they fall into, clamped."""
    return torch.nan_to_num((samples + 0.5) * 256).clamp(0, 255).to(torch.uint8).cpu()
