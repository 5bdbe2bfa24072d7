"""The options of a run, one dataclass a section: each option with its default, bounds and line of help in one place.

Those of the flow and its parts are in flow_options.py.

This room imports neither torch nor numpy, so that a mistyped option is reported before anything slow happens.
"""

import os
import re
from dataclasses import dataclass
from typing import Literal

from pipeflow.config.option import option
from pipeflow.errors import ConfigError
from pipeflow.safe_files import brief
from pipeflow.units import read_quantity

FINETUNE = ("finetune", "end_to_end")
"""Modes of phases in which the gathered flow trains as one."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run: its folder, seed and device."""

    dir: str = option("runs/quickstart", "folder of the run, which all workers must see; ~ is the home folder")
    seed: int = option(0, "seed of initial values, order of the images, noise and flips", at_least=0, at_most=2**63 - 1)
    resume: Literal["auto", "never", "must"] = option(
        "auto",
        "what to do where run.dir has a run already",
        {
            "auto": "go on from its newest good checkpoint; without one, start",
            "never": "put its folder aside, under another name, and start",
            "must": "go on from its newest good checkpoint; without one, that is an error",
        },
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto",
        "where to compute",
        {
            "auto": "on GPUs if there are any, else on the processor",
            "cpu": "on the processor",
            "cuda": "on GPUs, or an error without them",
        },
    )
    figures: bool = option(
        True, "when the run has ended, write its page and its picture: report.html, bpd_by_epoch.png"
    )
    heartbeat_timeout_s: float = option(25.0, "seconds without a heartbeat, then a worker counts as lost", at_least=1)
    control_timeout_s: float = option(300.0, "seconds to wait for a control message that others have begun", at_least=1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dir", os.path.expanduser(self.dir))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images that the flow learns."""

    name: str = option(
        "dead_leaves",
        "source of the images",
        {
            "dead_leaves": "images of 32 x 32 pixels that are drawn here: nothing is downloaded",
            "cifar10": "CIFAR-10; torchvision downloads it into data.path unless it is there",
            "images": "data.path: a folder or zip of image files in train/ and test/, or .npy and .npz files",
            "module:function": "your function(data options), which returns (train, test)",
        },
    )
    path: str | None = option(
        None, "folder or zip of images, .npy or .npz file; folder of the CIFAR-10 archive (null: ./data for cifar10)"
    )
    channels: Literal[1, 3] | None = option(
        None, "channels of images", {"null": "as in the files", "1": "grey", "3": "red, green and blue"}
    )
    resize: int | None = option(
        None,
        "resize image files so that the shorter side has this many pixels, by Lanczos (null: no resizing)",
        at_least=1,
        at_most=4096,
    )
    crop: int | None = option(
        None,
        "cut the middle out of image files, with this many pixels in height and width (null: no cutting)",
        at_least=1,
        at_most=4096,
    )
    test_fraction: float | None = option(
        None, "share of the images held out as test images, if data.path has none (null: it has)", above=0, below=1
    )
    num_train: int | None = option(None, "training images (null: all; dead_leaves: 2560)", at_least=1, at_most=10**7)
    num_test: int | None = option(None, "test images (null: all; dead_leaves: 512)", at_least=1, at_most=10**7)
    flip: bool = option(False, "random horizontal flips in training")
    pad: int | None = option(
        None,
        "pad height and width to multiples of this number, as blocks need: 8 for 3 blocks (null: no padding)",
        at_least=2,
        at_most=1024,
    )
    memory: str = option(
        "2 GB", "memory for the images of files; if they need more, they are read from the disk, batch by batch"
    )

    @property
    def memory_bytes(self) -> float:
        """`memory` in bytes. Raises ConfigError where it is no amount of memory."""
        return read_quantity("data.memory", "memory", self.memory)

    def __post_init__(self) -> None:
        if self.path is not None:
            object.__setattr__(self, "path", os.path.expanduser(self.path))


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The order in which parts train."""

    mode: Literal["end_to_end", "sequential", "alternate", "concurrent"] = option(
        "concurrent",
        "what trains in the local epochs",
        {
            "concurrent": "all parts, on every batch",
            "alternate": "one part at a time, in turns of alternate_every",
            "sequential": "one part after the other, each for its share of the epochs",
            "end_to_end": "no parts: the whole flow trains as one in the local epochs too",
        },
    )
    local_epochs: int = option(8, "passes over the data with isolated parts", at_least=0, at_most=1_000_000)
    finetune_epochs: int = option(2, "passes end to end after the gather", at_least=0, at_most=1_000_000)
    alternate_every: str = option("1 epoch", "length of a turn: '1 epoch', '3 epochs' or '200 steps'")

    @property
    def turn(self) -> tuple[int, Literal["epochs", "steps"]]:
        """Length of a turn, `alternate_every`: '200 steps' is (200, "steps"). Raises ConfigError for any other form."""
        found = re.fullmatch(r"\s*([0-9]{1,18}) \s*(epoch|step)s?\s*", self.alternate_every)
        if found is None or int(found[1]) == 0:
            expected = "schedule.alternate_every: expected '1 epoch' or '200 steps'"
            raise ConfigError(f"{expected}, got {brief(self.alternate_every)}.")
        return int(found[1]), "epochs" if found[2] == "epoch" else "steps"


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The updates of a part."""

    name: Literal["adam", "adamax"] = option(
        "adam", "optimizer", {"adam": "Adam", "adamax": "Adam with the largest gradient, not the mean square"}
    )
    lr: float = option(2e-3, "learning rate", above=0)
    part_lr: tuple[float, ...] | None = option(
        None, "each part's own in the local epochs, such as 1e-3,5e-4 (null: lr for all)", above=0
    )
    batch_size: int = option(64, "images in a batch, over all workers", at_least=1, at_most=1_000_000)
    warmup_steps: int = option(50, "number of updates over which a part's learning rate rises from 0", at_least=0)
    decay: Literal["none", "cosine"] = option(
        "cosine",
        "course of the learning rate after the warm-up",
        {"cosine": "falls to 0 over a part's own updates, and starts anew after the gather", "none": "constant"},
    )
    clip_norm: float = option(
        0.0, "largest norm of a part's gradient; larger ones are clipped (0: none is)", at_least=0
    )
    ema: float = option(
        0.0, "decay of averaged weights, which are evaluated and sampled (0: none)", at_least=0, below=1
    )


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """The arithmetic of a training step: faster ways round differently, or compute with fewer than 32 bits."""

    step: Literal["fast", "reference"] = option(
        "fast",
        "how a step is computed",
        {"fast": "ActNorms folded into convolutions, fused optimizer", "reference": "operation by operation"},
    )
    coupling: Literal["float32", "bfloat16"] = option(
        "float32",
        "type inside the coupling nets; everything else is float32",
        {"float32": "32 bits", "bfloat16": "16 bits: faster where the processor or GPU has instructions for them"},
    )
    compile: bool = option(False, "torch.compile the flow steps; numbers may change in the last bits")


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """The links, on which latents travel from part to part."""

    backend: Literal["auto", "nccl", "gloo"] = option(
        "auto",
        "library that moves latents",
        {"auto": "nccl for workers with a GPU each, else gloo", "nccl": "between GPUs", "gloo": "between processors"},
    )
    dtype: Literal["float32", "bfloat16", "int8"] = option(
        "float32",
        "type in which training latents travel",
        {"float32": "as they are", "bfloat16": "half the bytes", "int8": "a quarter: a range a channel, and dither"},
    )
    depth: int = option(4, "batches, or micro-batches, that each end of a link can hold", at_least=1)
    timeout_s: float = option(300.0, "seconds without a latent after which a worker gives up", above=0)


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Memory of a training step: what a part keeps of how many layers and images."""

    activations: Literal["keep", "recompute", "invert"] = option(
        "keep",
        "what a part keeps for its backward",
        {
            "keep": "all activations",
            "recompute": "the inputs of the layers; the rest is computed again, for a third to a half more time",
            "invert": "the output of the part, which is inverted layer by layer, for a half to two thirds more time",
        },
    )
    max_error: float = option(1e-3, "invert: a larger error of a part's recovered input stops the run", above=0)
    micro_batches: int = option(
        1,
        "slices of a batch that a part takes one after the other: activations of one slice, one update for all",
        at_least=1,
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """The end-to-end epochs: those after the local ones, and all epochs of schedule.mode end_to_end."""

    parallel: Literal["single", "ddp", "pipeline"] = option(
        "single",
        "who trains",
        {
            "single": "rank 0's device, while the other workers wait",
            "ddp": "all workers, each on its share of a batch",
            "pipeline": "all workers, each with the parts it holds: nothing is gathered, gradients go back over the links",
        },
    )
    schedule: Literal["gpipe", "1f1b"] = option(
        "1f1b",
        "pipeline: order of forwards and backwards",
        {"gpipe": "all forwards, then all backwards", "1f1b": "each backward as soon as possible: less memory"},
    )
    micro_batches: int = option(4, "pipeline: slices in which a batch goes through the workers", at_least=1)
    gradient_dtype: Literal["float32", "bfloat16"] = option(
        "float32", "pipeline: type in which gradients go back", {"float32": "as they are", "bfloat16": "half the bytes"}
    )
    lr: float | None = option(None, "learning rate (null: optim.lr)", above=0)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluations of test bits/dim during training. The last one always takes all test images."""

    every_epochs: int = option(1, "epochs from one evaluation to the next", at_least=1)
    num_images: int | None = option(512, "test images in an evaluation during training (null: all)", at_least=1)
    num_samples: int = option(
        16, "number of samples to draw in each evaluation, if they are images (0: none)", at_least=0, at_most=256
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The checkpoints, from which an interrupted run goes on."""

    every_epochs: int = option(1, "epochs from one checkpoint to the next", at_least=1)
    keep: int = option(2, "newest checkpoints kept", at_least=1)
    grace_s: float = option(25.0, "seconds after SIGTERM until a worker ends, saved or not (torchrun: 30)", above=0)


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """A program beside TensorBoard that gets each epoch's numbers and samples."""

    to: Literal["tensorboard", "wandb", "mlflow", "trackio"] = option(
        "tensorboard",
        "where the numbers and samples go",
        {
            "tensorboard": "to files in the run folder",
            "wandb": "there, and to Weights & Biases",
            "mlflow": "there, and to MLflow",
            "trackio": "there, and to trackio on this machine",
        },
    )
    project: str = option("pipeflow", "project, or experiment, of the run in that program")


@dataclass(frozen=True, kw_only=True)
class TimelineConfig:
    """A recording of what each worker does at what time: timeline.json, which ui.perfetto.dev shows."""

    steps: int = option(0, "batches recorded (0: none)", at_least=0)
    epoch: int = option(0, "epoch of the recording", at_least=0)
    first_step: int = option(10, "first batch recorded", at_least=0)
