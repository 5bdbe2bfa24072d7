"""Finds and builds the trained flow that a path stands for: a run folder, a checkpoint in it, or a model file anywhere.

run folder    that of a run which has ended: its model.safetensors; else its newest good checkpoint
checkpoint    a folder such as runs/mine/checkpoints/epoch-000003
model file    a model.safetensors, in its run folder or by itself; also a folder with nothing else of a run

The weights are those that the run evaluates: averaged ones where it keeps averages.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeflow.config import Config
from pipeflow.config.loading import show
from pipeflow.errors import CheckpointError, ConfigError
from pipeflow.flow import Flow, build_flow
from pipeflow.rundir.checkpoint import MANIFEST_FILE, Checkpoints, read_manifest, read_tensors
from pipeflow.rundir.model import MODEL_FILE, Weights, check_shape, check_values, damaged, read_weights
from pipeflow.rundir.reading import read_config, read_summary, to_config
from pipeflow.rundir.records import GivenLabel, Manifest, Summary
from pipeflow.safe_files import brief, in_full
from pipeflow.user_function import load_function

GivenFlow = Flow | Callable[..., object] | str | None
"""A flow of one's own: untrained, or a function that builds it, or its name `module:function`."""

_GIVE = "give it: load_flow(path, flow=...) in Python, --flow module:function on the command line"
_log = logging.getLogger("pipeflow")


@dataclass(frozen=True, kw_only=True)
class SavedFlow:
    """A trained flow, on the CPU, and where it was found."""

    flow: Flow
    source: Path
    """The model file or the checkpoint folder that the weights are from."""
    config: Config | None
    """The run's configuration; None where a model file stands by itself."""
    manifest: Manifest | None = None
    """Manifest of the checkpoint that the weights are from."""
    summary: Summary | None = None
    """Summary of the run that ended with these weights."""

    classes: tuple[str, ...] = ()
    """Names of the classes whose label the flow's density is given, where they have names."""

    @property
    def data(self) -> str | None:
        """Fingerprint of the run's images (`ImageData.fingerprint`), where it noted one."""
        told = self.summary or self.manifest
        return None if told is None else told.data

    @property
    def given_label(self) -> GivenLabel | None:
        """The record of the label that the flow's density is given, where the run noted one."""
        told = self.summary or self.manifest
        return None if told is None else told.given_label


def open_flow(path: str | Path, given: GivenFlow = None) -> SavedFlow:
    """Reads the trained flow that a path stands for.

    given: for a run whose flow was given from Python. The same flow untrained, which gets the trained parameters, or a
    function that builds it: `function(config, shape)`, or one that needs no arguments.

    Raises CheckpointError where there is no such flow, it is damaged or of another model, or `given` is needed; ConfigError
    where `given` is no flow or one for other images.
    """
    path = Path(path).expanduser()  # as run.dir is
    if not path.exists():
        raise CheckpointError(f"there is no {in_full(path)}: give a run folder, a checkpoint in it, or a {MODEL_FILE}.")
    if (path / MANIFEST_FILE).exists():
        return _from_checkpoint(path, read_manifest(path), given)
    if not path.is_dir() and path.suffix == ".safetensors":
        return _from_file(path, given)
    return _from_run(path, given)


def _from_run(run_dir: Path, given: GivenFlow) -> SavedFlow:
    if not (run_dir / "config.yaml").exists():
        if (run_dir / MODEL_FILE).exists():
            return _from_file(run_dir / MODEL_FILE, given)
        raise CheckpointError(
            f"{in_full(run_dir)} is not a run folder (it has no config.yaml), nor a checkpoint of one, nor a {MODEL_FILE}: "
            f"give one of these."
        )
    has_ended, has_model = read_summary(run_dir) is not None, (run_dir / MODEL_FILE).exists()
    if has_ended and has_model:
        return _from_file(run_dir / MODEL_FILE, given)
    manifest, complaints = Checkpoints(run_dir, keep=1).newest()
    for complaint in complaints:
        _log.warning("%s", complaint)
    if manifest is not None:
        folder = run_dir / "checkpoints" / manifest.folder
        why = f"has no {MODEL_FILE}" if has_ended else "has not ended"
        _log.warning("%s %s: this is its newest checkpoint, %s", run_dir, why, folder)
        return _from_checkpoint(folder, manifest, given)
    if has_model:
        return _from_file(run_dir / MODEL_FILE, given)
    raise CheckpointError(
        f"{run_dir} has no {MODEL_FILE} and no good checkpoint: the run has not saved any yet, or they were removed. Start "
        f"the run's command again (remove summary.json, if it is there)."
    )


def _from_file(path: Path, given: GivenFlow) -> SavedFlow:
    weights = read_weights(path)
    if path.name == MODEL_FILE and (path.parent / "config.yaml").exists():
        config, summary = read_config(path.parent, for_use=True), read_summary(path.parent)
        flow = _build(path, weights, config, given)
        return SavedFlow(
            flow=flow, source=path, config=config, summary=summary, classes=_checked(path, flow, weights.classes)
        )
    flow = _build(path, weights, _config_in(path, weights, given), given)
    return SavedFlow(flow=flow, source=path, config=None, classes=_checked(path, flow, weights.classes))


def _config_in(path: Path, weights: Weights, given: GivenFlow) -> Config:
    """The options that a model file by itself has of its flow. It does not name functions to be called: it is only data."""
    if weights.settings is None:
        if given is None:
            raise CheckpointError(
                f"{path} is of pipeflow 0.1 and does not tell its model: keep it beside its run's config.yaml, or {_GIVE}."
            )
        return Config()
    try:
        config = to_config({**weights.settings, "parts": {"num": 1}})  # however it was cut, it is one now
    except (ValueError, TypeError) as error:
        raise damaged(path, error) from None
    if given is None and config.model.name not in ("glow", "python"):
        raise CheckpointError(
            f"{path}: its flow was built by {brief(config.model.name)}. A model file by itself calls no functions: if you "
            f"trust that one, {_GIVE}."
        )
    return config


def _from_checkpoint(folder: Path, manifest: Manifest, given: GivenFlow) -> SavedFlow:
    try:
        config = read_config(folder.parents[1], for_use=True) if manifest.config is None else to_config(manifest.config)
        if manifest.shape is None and not isinstance(given, Flow):
            raise CheckpointError(
                f"checkpoint {folder} is of pipeflow 0.1 and does not tell the shape of an image: start the run's command "
                f"again, or load it from Python with load_flow(path, flow=...) and a Flow."
            )
        values = check_values(manifest.values, check_shape(given.shape if isinstance(given, Flow) else manifest.shape))
    except ValueError as error:
        raise CheckpointError(f"checkpoint {folder}: {error}") from None
    read = read_tensors(folder, manifest, lambda key: key.startswith(("model/", "ema/")) and "/heads." not in key)
    trained = {key.removeprefix("model/"): value for key, value in read.items() if key.startswith("model/")}
    averages = {key.removeprefix("ema/"): value for key, value in read.items() if key.startswith("ema/")}
    weights = Weights({**trained, **averages}, values, None)
    classes = () if manifest.given_label is None else manifest.given_label.classes
    flow = _build(folder, weights, config, given)
    return SavedFlow(
        flow=flow, source=folder, config=config, manifest=manifest, classes=_checked(folder, flow, classes)
    )


def _checked(source: Path, flow: Flow, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a flow's classes. Raises CheckpointError where they are not as many as the flow's."""
    if classes and len(classes) != flow.num_classes:
        raise damaged(source, ValueError(f"it names {len(classes)} classes, its flow has {flow.num_classes or 'none'}"))
    return classes


def _build(source: Path, weights: Weights, config: Config, given: GivenFlow) -> Flow:
    """The flow that the weights are of, with the weights in it."""
    if isinstance(given, str):
        given = load_function("flow", given)
    if given is not None and not callable(given):
        kind = type(given).__name__
        raise ConfigError(f"flow: a {kind}: give a Flow, a function that builds it, or its name, module:function.")
    if given is None and config.model.name == "python":
        raise CheckpointError(f"{source}: its flow was given from Python; {_GIVE}.")
    shape = weights.values.padded_shape
    is_glow = given is None and config.model.name == "glow"
    # Compiling pays off in a training; here it would take longer than most uses.
    config = dataclasses.replace(config, precision=dataclasses.replace(config.precision, compile=False))
    try:
        if isinstance(given, Flow):
            flow = given
        elif is_glow:
            flow = _without_memory(config, weights)
        else:
            flow = build_flow(config, shape, given)
    except ConfigError as error:
        if given is not None:
            raise
        raise CheckpointError(f"{source}: its flow cannot be built: {error}") from None
    if flow.shape != shape:
        raise ConfigError(f"flow: made for images of shape {flow.shape}, but {source} is of {shape}.")
    flow.values = weights.values
    try:
        _check_fits(weights.tensors, flow)
        flow.load_state_dict(weights.tensors, assign=is_glow)
    except (ValueError, RuntimeError) as error:
        if given is not None:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{source} holds another flow than the one that is given or built: {reason}.{_options_of(config)}"
            ) from None
        raise damaged(source, error) from None
    return flow


def _options_of(config: Config) -> str:
    """The end of a message: the options that a saved Glow was built by."""
    model = config.model
    if model.name != "glow":
        return ""
    names = ("num_blocks", "num_steps", "width", "coupling", "invconv", "num_classes")
    return f" It was built by {', '.join(f'model.{name} {show(getattr(model, name))}' for name in names)}."


def _without_memory(config: Config, weights: Weights) -> Flow:
    """Builds the configuration's Glow without memory for its parameters: the file may hold far smaller ones."""
    if config.model.num_blocks * config.model.num_steps > len(weights.tensors):
        raise ConfigError(f"it asks for more flow steps than the {len(weights.tensors)} tensors are for")
    with torch.device("meta"):
        return build_flow(config, weights.values.padded_shape)


def _check_fits(tensors: Mapping[str, Tensor], flow: Flow) -> None:
    """Raises ValueError where a tensor is missing, or has another type or shape than the flow's."""
    for name, expected in flow.state_dict().items():
        found = tensors.get(name)
        if found is None:
            raise ValueError(f"it has no {name}")
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise ValueError(
                f"{name} is {found.dtype} {list(found.shape)}, the flow has {expected.dtype} {list(expected.shape)}"
            )
