"""Typed records of a run: the content of `summary.json`, of `metrics.jsonl` and of a checkpoint's manifest."""

from collections.abc import Mapping
from typing import Literal, Self

from pipeflow.config import FINETUNE
from pipeflow.flow import Values
from pipeflow.rundir.typed_json import Count, Finite, Number, Positive, Record, RecordError, Seconds, Text

Mode = Literal["concurrent", "alternate", "sequential", "finetune", "end_to_end"]
Stage = Literal["local", "whole"]
GatherKind = Literal["parameters", "optimizer", "ema"]


class PartSummary(Record):
    """A part of the flow, as `Part.describe` gives it; `forward_macs` are with the head's, parameters are not."""

    layers: tuple[Text, ...]
    parameters: Count
    head_parameters: Count
    forward_macs: Count
    head_macs: Count = 0
    output_shape: tuple[Count, ...]


class ValuesRecord(Record):
    """The values that a flow was trained on, where they are not 8-bit values of its own shape; see `Values`."""

    shape: tuple[Count, ...]
    padding: tuple[Count, Count]
    dtype: Literal["uint8", "float32"]

    @classmethod
    def of(cls, values: Values) -> "ValuesRecord | None":
        """The record of some values; None for 8-bit ones without padding."""
        if values == Values(values.shape):
            return None
        return cls(shape=values.shape, padding=values.padding, dtype="float32" if values.is_float else "uint8")

    def values(self) -> Values:
        """The values that the record is of."""
        return Values(self.shape, self.padding, self.dtype == "float32")


class GivenLabel(Record):
    """The label that a flow's density is given: its bits/dim are of p(image | label)."""

    num_classes: Count
    classes: tuple[Text, ...] = ()
    """Names of the labels 0, 1, ..., where they have names."""
    fingerprint: Text
    """Fingerprint of the images' labels, `ImageData.labels_fingerprint`."""


class EpochBytes(Record):
    """Bytes that an epoch moved between workers, or between parts in one process."""

    latents: tuple[tuple[Count, Count, Count], ...]
    """For each link: source part, target part, bytes of training's latents."""
    backward: tuple[tuple[Count, Count, Count], ...] = ()
    """For each link of a pipeline: source part, target part, bytes of the latents' gradients that went back."""
    eval: Count
    gradients: Count
    images: Count = 0
    control: Count


class Epoch(Record):
    """A finished epoch. Tuples have a value for each worker, mappings one for each part, unless said otherwise."""

    epoch: Count
    phase: Mode
    trained: tuple[Count, ...]
    steps: Count
    train_loss: Mapping[Text, Number]
    """Mean loss in bits/dim by part, or of `flow` after the gather."""
    updates: Mapping[Text, Count] | None = None
    rate: Mapping[Text, Number] | None = None
    """Learning rate of the epoch's last update since its last resume, by part, or of `flow` after the gather."""
    gradient_norm: Mapping[Text, Number] | None = None
    """Norm of the gradient before clipping, likewise: the root mean square over every sixteenth update."""
    test_bpd: Number | None
    """The whole flow's, None where the epoch was not evaluated."""
    exit_bpd: tuple[Number, ...] | None
    """Bits/dim at the exit of each part, None where there are no heads or no evaluation."""
    seconds: Positive
    idle: tuple[Number, ...] | None = None
    """Fraction of the time that a worker waited for others; of a resumed epoch, since its last resume."""
    cpu_seconds: tuple[Seconds, ...] | None = None
    """Seconds of its processor cores; of a resumed epoch, since its last resume."""
    images: Count
    macs: Count
    bytes: EpochBytes
    test_bpd_raw: Number | None = None
    """Bits/dim of the weights themselves, where `test_bpd` is that of their average."""

    @property
    def is_local(self) -> bool:
        """Whether parts trained by themselves, before the gather."""
        return self.phase not in FINETUNE

    @property
    def training_bytes(self) -> int:
        """Bytes of latents, gradients and, in runs of 0.1, images. Evaluation and control are not training's."""
        links = sum(count for _, _, count in [*self.bytes.latents, *self.bytes.backward])
        return links + self.bytes.gradients + self.bytes.images


class RunSeconds(Record):
    """Seconds of a run by what was done in them; `total` has set-up and waiting in it too."""

    local: Seconds = 0.0
    gather: Seconds = 0.0
    finetune: Seconds = 0.0
    eval: Seconds = 0.0
    checkpoint: Seconds = 0.0
    total: Seconds = 0.0


class ReplicaBytes(Record):
    """Bytes between replicas of a part in local epochs, and those of the state that they start from."""

    gradients: Count = 0
    images: Count = 0
    start: Count = 0


class RunBytes(Record):
    """Bytes of a whole run. forward: latents of training by link; backward: their gradients, which a pipeline sends."""

    forward: tuple[Count, ...]
    backward: tuple[Count, ...]
    eval: Count = 0
    initial: Count = 0
    gather: Mapping[GatherKind, Count]
    finetune: Count
    replicas: ReplicaBytes = ReplicaBytes()
    control: Count = 0
    labels: Count = 0
    samples: Count = 0
    """labels: to workers that load no images and whose parts take them. samples: their latents, back through the parts."""
    total: Count


class Memory(Record):
    """Bytes of memory that each worker held at first, and at most."""

    before: tuple[Count, ...]
    peak: tuple[Count, ...]


class Change(Record):
    """Options that changed where a run was resumed."""

    epoch: Count
    """Epochs that were done before."""
    step: Count = 0
    """Batches of the next epoch that were done before."""
    options: Mapping[Text, tuple[object, object]]
    """For each option, its value before and since."""


class Summary(Record):
    """A run's results and costs. Fields with a default are unknown while a run has not ended."""

    name: Text
    test_bpd: Number
    initial_bpd: Finite
    exit_bpd: tuple[Number, ...] | None
    num_epochs: Count
    train_macs: Count
    epochs: tuple[Epoch, ...]
    parts: tuple[PartSummary, ...]
    seconds: RunSeconds
    bytes: RunBytes
    memory: Memory | None = None
    wire: bool | None = None
    """Whether there were several workers, so that the bytes went from one to another."""
    world_size: Count | None = None
    replicas: Count | None = None
    backend: Text | None = None
    device: Text | None = None
    versions: Mapping[Text, Text] | None = None
    test_bpd_raw: Number | None = None
    data: Text | None = None
    """Fingerprint of the images, `ImageData.fingerprint`."""
    values: ValuesRecord | None = None
    given_label: GivenLabel | None = None
    """None where the bits/dim are not given the label."""
    changes: tuple[Change, ...] = ()

    @property
    def unit(self) -> str:
        """The unit of the whole flow's bits/dim, in words."""
        return "bits/dim" if self.given_label is None else "bits/dim given the label"


class Start(Record):
    """The fields of a log's `start` event that are read back."""

    initial_bpd: Finite
    parts: tuple[PartSummary, ...]
    world_size: Count | None = None
    values: ValuesRecord | None = None
    given_label: GivenLabel | None = None


class Gather(Record):
    """The `gather` event of a log."""

    seconds: Seconds
    bytes: Mapping[GatherKind, Count]


class Carried(Record):
    """Seconds and bytes of an interrupted epoch so far. The epoch's record will include them."""

    seconds: Seconds
    bytes: EpochBytes


class Position(Record):
    """Where an epoch was interrupted: before batch `step`, or during evaluation if that is the number of its steps."""

    step: Count
    losses: tuple[Mapping[Text, tuple[Number, ...]], ...]
    """For each worker, the losses of its parts' batches so far."""
    replicas: Count = 1
    carried: Carried | None = None


class Totals(Record):
    """Sums over a run so far."""

    seconds: RunSeconds
    bytes: Mapping[Text, Count]
    """Bytes by kind, those of links by link too: `latents/0`, and of a pipeline `pipeline/0` and `backward/0`."""
    macs: Count
    initial_bpd: Finite
    exit_bpd: tuple[Number, ...] | None
    wire: bool = False
    """Whether bytes went from one worker to another at some time."""


class File(Record):
    """A worker's file in a checkpoint."""

    file: Text
    bytes: Count
    sha256: Text


class Manifest(Record):
    """A checkpoint after `epoch` epochs, without its tensors."""

    epoch: Count
    files: tuple[File, ...]
    stage: Stage
    config: Mapping[Text, Mapping[Text, object]] | None = None
    shape: tuple[Count, ...] | None = None
    """Shape of an image as the flow takes it, so that the flow can be built without the images."""
    cuts: tuple[Text, ...] | None = None
    """Names of the layers that the parts begin with, but for the first part."""
    counts: Mapping[Text, tuple[Count, Count]]
    """For each layer and head that has them: updates in this stage, and the optimizer's own count."""
    history: tuple[Epoch, ...]
    state: Totals
    log_position: Count
    """Bytes of `metrics.jsonl` that belong to the checkpoint."""
    position: Position | None = None
    data: Text | None = None
    """Fingerprint of the images, `ImageData.fingerprint`."""
    values: ValuesRecord | None = None
    given_label: GivenLabel | None = None
    changes: tuple[Change, ...] = ()
    """Options that changed on the way to the checkpoint."""

    @property
    def step(self) -> int:
        """Batches of the next epoch that are done."""
        return 0 if self.position is None else self.position.step

    @property
    def folder(self) -> str:
        """Name of the checkpoint's folder."""
        return checkpoint_name(self.epoch, self.step)

    @classmethod
    def from_json(cls, value: object, name: str = "") -> Self:
        """Reads what `to_json` wrote. Raises RecordError."""
        manifest = super().from_json(value, name)
        epochs = [record.epoch for record in manifest.history]
        if len(epochs) != manifest.epoch or epochs != list(range(len(epochs))):
            raise RecordError(f"its history is not that of the {manifest.epoch} epochs that are done")
        return manifest


def checkpoint_name(epoch: int, step: int = 0) -> str:
    """Names the folder of a checkpoint after `epoch` epochs and `step` batches of the next."""
    return f"epoch-{epoch:06d}{f'-step-{step:06d}' if step else ''}"
