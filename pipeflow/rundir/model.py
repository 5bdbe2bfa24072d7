"""The trained flow as one file, `model.safetensors`: its parameters, and what is needed to build it again."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeflow.config import Config
from pipeflow.errors import CheckpointError
from pipeflow.flow import Flow, Values
from pipeflow.rundir.records import ValuesRecord
from pipeflow.safe_files import brief, open_file, parse_json

MODEL_FILE = "model.safetensors"
MAX_IMAGE_VALUES = 4_000_000
"""Values of the largest image of a saved flow, 1024 x 1024 in colour. A line of text must not ask for more memory."""

_LONGEST_NAME = 500
"""Characters of the name of a class, as of every text in a run's records."""


@dataclass(frozen=True)
class Weights:
    """A trained flow's parameters and buffers by name, the values it was trained on, and the options that built it."""

    tensors: Mapping[str, Tensor]
    values: Values
    settings: Mapping[str, Any] | None
    """Sections of a configuration, as plain values that nobody has checked; None in files of pipeflow 0.1."""
    classes: tuple[str, ...] = ()
    """Names of the classes 0, 1, ... whose label the flow's density is given, where they have names."""


def save_flow(flow: Flow, run_dir: str | Path, config: Config, classes: Sequence[str] = ()) -> None:
    """Writes the flow into a run folder, in a file that can be moved anywhere and loaded there.

    classes: names of the classes, if the flow's density is given the label.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in flow.state_dict().items()}
    write_tensors(Path(run_dir) / MODEL_FILE, tensors, model_metadata(flow, config, classes))


def model_metadata(flow: Flow, config: Config, classes: Sequence[str] = ()) -> dict[str, str]:
    """The text that a model file tells its flow by. classes: as for `save_flow`."""
    settings = config.to_dict()
    built_by = {
        "model": {name: value for name, value in settings["model"].items() if name != "init"},
        "precision": {key: settings["precision"][key] for key in ("step", "coupling")},
        "run": {"seed": config.run.seed},
    }
    about = {"shape": json.dumps(list(flow.shape)), "config": json.dumps(built_by)}
    if classes:
        about["classes"] = json.dumps(list(classes))
    record = ValuesRecord.of(flow.values)
    return about if record is None else {**about, "values": json.dumps(record.to_json())}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file that is whole or not there, and as readable as the umask has it."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.touch()
    except OSError as error:
        error.filename = str(path)  # the name that was asked for
        raise
    mode = partial.stat().st_mode  # safetensors makes files that only their owner can read
    save_file(dict(tensors), partial, metadata=metadata)
    partial.chmod(mode)
    partial.replace(path)


def read_weights(path: Path) -> Weights:
    """Reads a model file. Raises CheckpointError where it is damaged or none."""
    try:
        with open_file(path), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "shape" not in metadata:
                raise CheckpointError(
                    f"{path} is a safetensors file without a flow, as of latents: give a {MODEL_FILE} or a run folder."
                )
            shape = check_shape(parse_json(metadata["shape"]))
            record = ValuesRecord.from_json(parse_json(metadata["values"])) if "values" in metadata else None
            values = check_values(record, shape)
            settings = parse_json(metadata.get("config", "null"))
            classes = _check_classes(parse_json(metadata.get("classes", "[]")))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise damaged(path, error) from None
    return Weights(tensors, values, settings, classes)


def check_shape(shape: object) -> tuple[int, ...]:
    """The shape of an image, as it stands in a file. Raises ValueError where it cannot be one."""
    if not isinstance(shape, Sequence) or not shape or not all(type(each) is int and each > 0 for each in shape):
        raise ValueError(f"its images have the shape {brief(shape)}")
    if math.prod(shape) > MAX_IMAGE_VALUES:
        raise ValueError(f"its images have the shape {brief(shape)}, the limit is {MAX_IMAGE_VALUES:,} values")
    return tuple(shape)


def check_values(record: ValuesRecord | None, shape: tuple[int, ...]) -> Values:
    """The values that a flow of a shape was trained on. Raises ValueError where a file's record has those of another."""
    values = Values(shape) if record is None else record.values()
    if len(values.shape) != len(shape) or values.padded_shape != shape or 0 in values.shape:
        raise ValueError(f"its values have the shape {brief(values.shape)}, its flow {brief(shape)}")
    return values


def _check_classes(names: object) -> tuple[str, ...]:
    """Names of classes, as they stand in a file. Raises ValueError where they cannot be such."""
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name.isprintable() and len(name) <= _LONGEST_NAME for name in names
    ):
        raise ValueError(f"its classes are {brief(names)}")
    return tuple(names)


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error of a file that does not hold what it should."""
    return CheckpointError(f"{path} is damaged or of another model: {' '.join(str(error).split())[:300]}")
