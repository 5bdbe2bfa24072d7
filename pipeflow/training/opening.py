"""The opening of a run: its folder, its images, its flow and the flow's parts.

Rank 0 opens the folder and loads the images first; the others hear of them what they need to build the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from pipeflow.config import Config
from pipeflow.config.checks import check_part_rates
from pipeflow.data import Batches, ImageData, load_data
from pipeflow.data.sources import take
from pipeflow.device import has_bfloat16
from pipeflow.errors import CheckpointError, ConfigError, DataError
from pipeflow.flow import Flow, Part, Values, build_flow, configured_cuts, local_heads, split_flow
from pipeflow.flow.glow import check_num_classes
from pipeflow.flow.timing import layer_seconds
from pipeflow.rundir.folder import RunFolder
from pipeflow.rundir.records import Manifest
from pipeflow.rundir.saved_flow import open_flow
from pipeflow.units import count_text
from pipeflow.workers import parent
from pipeflow.workers.world import World


def open_folder(world: World, folder: RunFolder) -> Manifest | None:
    """The checkpoint to resume from, on every worker, once all have been seen to share the folder."""
    opened = None
    launchers = world.control.gather(parent.launcher(), "the name of its launcher")
    if world.rank == 0:
        manifest, notes = folder.open([name for name in launchers if name])
        for note in notes:
            print(note, flush=True)
        opened = [manifest and manifest.to_json(), folder.show_token()]
    found, token = world.control.broadcast(opened, "the run folder")
    seen = world.control.gather(folder.sees(token), "a look at the run folder")
    if world.rank == 0:
        folder.remove_token(token)
        if not all(seen):
            raise CheckpointError(
                f"run.dir: {folder.path} of rank 0 is not seen by worker {seen.index(False)}: choose a folder that all "
                f"workers share, by its full path."
            )
    return found and Manifest.from_json(found)


@dataclass(frozen=True)
class ImagesInfo:
    """Facts about the images that all workers know, though only some hold the images."""

    values: Values
    num_train: int
    num_test: int
    fingerprint: str
    """`ImageData.fingerprint`: replicas that load their own must load the same, and so must a run that is resumed."""
    labels: "LabelsInfo | None"
    """None where the images have no labels."""

    @classmethod
    def of(cls, batches: Batches) -> "ImagesInfo":
        """Describes images that are loaded in this process."""
        data, labels = batches.data, None
        if data.train_labels is not None and data.test_labels is not None and data.labels_fingerprint is not None:
            both = torch.cat([data.train_labels, data.test_labels])
            labels = LabelsInfo(data.labels_fingerprint, int(both.min()), int(both.max()), data.classes)
        return cls(batches.values, len(data.train), len(data.test), data.fingerprint, labels)

    def to_json(self) -> list[Any]:
        """The facts as plain values."""
        values, labels = self.values, self.labels
        about = labels and [labels.fingerprint, labels.smallest, labels.largest, list(labels.classes)]
        of_values = [list(values.shape), list(values.padding), values.is_float]
        return [of_values, self.num_train, self.num_test, self.fingerprint, about]

    @classmethod
    def from_json(cls, facts: list[Any]) -> "ImagesInfo":
        """Reads what `to_json` gave."""
        (shape, padding, is_float), num_train, num_test, fingerprint, labels = facts
        values = Values(tuple(shape), tuple(padding), is_float)
        about = None if labels is None else LabelsInfo(labels[0], labels[1], labels[2], tuple(labels[3]))
        return cls(values, num_train, num_test, fingerprint, about)


@dataclass(frozen=True)
class LabelsInfo:
    """Facts about the labels of the images that all workers know."""

    fingerprint: str
    smallest: int
    largest: int
    classes: tuple[str, ...]
    """Names of the labels 0, 1, ..., where they have names."""


class Images:
    """The images of a run, loaded where they are needed: by rank 0 at once, by other workers of the first part later."""

    def __init__(self, world: World, config: Config, data: ImageData | None):
        """data: images that were given, instead of what the configuration names."""
        self._config = config
        self._data = data
        self._rank = world.rank
        self.batches = cache(self._load)
        about = None
        if world.rank == 0:
            batches = self.batches()
            images, values = batches.data, batches.values
            for note in (*images.notes, *_notes(values)):
                print(note, flush=True)
            about = ImagesInfo.of(batches).to_json()
        self.info = ImagesInfo.from_json(world.control.broadcast(about, "the data's shape"))

    def _load(self) -> Batches:
        config = self._config
        data = load_data(config.data) if self._data is None else take(config.data, self._data)
        batches = Batches(data, config.run.seed, config.optim.batch_size, config.data.flip, config.data.pad)
        if self._rank != 0:
            found = ImagesInfo.of(batches)
            if found != self.info:
                raise DataError(
                    f"data: worker {self._rank} has {found.num_train} training images of shape {list(data.shape)} that "
                    f"are not those of worker 0 ({self.info.num_train} of shape {list(self.info.values.shape)}): give all "
                    f"workers the same data."
                )
        return batches


def _notes(values: Values) -> list[str]:
    """Lines for the user about the bits/dim, if they are not of 8-bit values alone."""
    if values.is_float:
        return [
            f"the data are floats: bits/dim and nats are of a density in their unit, and may be negative; 1 bit/dim is "
            f"{values.nats(1):.4g} nats an item"
        ]
    if values.padding != (0, 0):
        (_, height, width), (_, rows, columns) = values.shape, values.padded_shape
        return [
            f"data.pad: images of {width}x{height} (width x height) are padded to {columns}x{rows} by their edges; "
            f"bits/dim are a bound on those of the {width}x{height} values alone"
        ]
    return []


def make_flow(world: World, config: Config, flow: Flow | None, data: Values) -> Flow:
    """The flow of the configuration, or the one that was given, once it is seen to fit and to be the same everywhere.

    The flow's `values` become those of the data.
    """
    made = _make_flow(world, config, flow, data.padded_shape)
    made.values = data
    return made


def _make_flow(world: World, config: Config, flow: Flow | None, shape: tuple[int, ...]) -> Flow:
    if flow is None:
        if world.rank == 0 and config.precision.coupling == "bfloat16" and not has_bfloat16(world.device):
            print(
                f"precision.coupling: bfloat16 is many times slower than float32 on this {world.device.type}, which has no "
                f"instructions for it, or whose ONEDNN_MAX_CPU_ISA forbids them: set it to float32, or train elsewhere",
                flush=True,
            )
        return build_flow(config, shape)
    if flow.shape != shape:
        raise ConfigError(f"flow: made for images of shape {flow.shape}, but the data has {shape}.")
    check_num_classes(config, flow)
    values = [float(parameter.detach().double().sum()) for parameter in flow.parameters()]
    if any(theirs != values for theirs in world.control.share(values, "the flow's values")):
        raise ConfigError("flow: its initial values differ between workers: build it under torch.manual_seed(...).")
    return flow


def load_initial(world: World, path: str, flow: Flow) -> None:
    """Gives the flow the parameters of a trained one (`model.init`), once they are seen to be the same everywhere.

    Raises ConfigError where there is no such flow, or one of other layers.
    """
    values = flow.values  # of this run's data, whatever the other was trained on
    try:
        saved = open_flow(path, flow)
    except (CheckpointError, ConfigError) as error:
        raise ConfigError(f"model.init: {error}") from None
    flow.values = values
    for name, parameter in flow.named_parameters():
        if not parameter.isfinite().all():
            raise ConfigError(
                f"model.init: {name} in {saved.source} has values that are NaN or infinite: give another flow."
            )
    sums = [float(parameter.detach().double().sum()) for parameter in flow.parameters()]
    if any(theirs != sums for theirs in world.control.share(sums, "the parameters of model.init")):
        raise ConfigError(f"model.init: {path} is another flow on other workers: give all workers the same file.")
    if world.rank == 0:
        print(f"model.init: the run starts from the parameters of {saved.source}", flush=True)


def make_parts(world: World, config: Config, flow: Flow, manifest: Manifest | None) -> list[Part]:
    """The flow's parts. Timed cuts of a run that is resumed stay, for times would not come out the same again."""
    timed = {"split": "balanced", "balance": "time"}
    before = None if manifest is None or not timed.items() <= _parts_section(manifest).items() else manifest.cuts
    if config.parts.split != "balanced" or config.parts.balance == "macs":
        cuts = configured_cuts(flow, config)
    elif before is not None and len(before) + 1 == config.num_parts:
        cuts = list(before)
    else:
        cuts = []
        if world.rank == 0:
            cuts = configured_cuts(flow, config, layer_seconds(flow, world.device, config.optim.batch_size))
        cuts = world.control.broadcast(cuts, "the cuts")
    parts = split_flow(flow, cuts, local_heads(config), config.memory.activations)
    if config.needs_parts:
        config.check_world_size(world.size, len(parts))
    else:
        check_part_rates(config, len(parts))
    return parts


def _parts_section(manifest: Manifest) -> dict[str, object]:
    return dict((manifest.config or {}).get("parts", {}))


def check_timeline(config: Config, num_steps: int) -> None:
    """Raises ConfigError where the batches to be recorded are not there."""
    asked = config.timeline
    if asked.steps and (asked.epoch >= config.num_epochs or asked.first_step + asked.steps > num_steps):
        raise ConfigError(
            f"timeline.steps: {asked.steps} batches from number {asked.first_step} of epoch {asked.epoch}, but there "
            f"are {config.num_epochs} epochs of {num_steps} batches: record others (timeline.first_step, "
            f"timeline.epoch)."
        )


def first_lines(config: Config, parts: Sequence[Part], world: World, folder: RunFolder) -> list[str]:
    """The lines that tell the user what is about to train, and where."""
    lines = []
    for part in parts:
        about = part.describe()
        lines.append(
            f"part {part.index}: {about['layers'][0]} to {about['layers'][-1]}, {about['parameters']:,} parameters, "
            f"{about['forward_macs'] / 1e6:.1f} M multiply-adds an image"
        )
    lines.append(f"{count_text(world.size, 'worker')} on {world.device.type}, run folder {folder.path}")
    if world.size > 1 and config.finetune.parallel == "single" and config.num_local_epochs == 0:
        lines.append(
            "end to end on rank 0's device: the other workers wait (finetune.parallel ddp or pipeline uses them)"
        )
    if config.is_pipelined and world.num_places == 1:
        how = "on its device" if world.size == 1 else "as in finetune.parallel ddp: each worker has it all"
        lines.append(f"finetune.parallel pipeline: a single place in line trains the whole flow end to end, {how}")
    return lines
