"""Sizes and systems that are compared, as dictionaries of options, and the training step of each system.

A system of pipeflow is sections of `pipeflow.config.Config` laid over the size's; one of normflows is the arguments of
`benchmarks.step.rival.NormflowsStep`.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeflow.config import Config
from pipeflow.data import Batches, load_data
from pipeflow.flow import Flow, FlowStep, Part, build_flow, configured_cuts, head_maker, split_flow
from pipeflow.training.image_feed import ImageFeed
from pipeflow.training.trainer import PartTrainer
from pipeflow.workers.alarm import Alarm
from pipeflow.workers.control import Control
from pipeflow.workers.replicas import Replicas
from pipeflow.workers.timeline import Timeline
from pipeflow.workers.traffic import Traffic

PUBLISHED = {"num_blocks": 3, "num_steps": 32, "width": 512}
SMALL = {"num_blocks": 3, "num_steps": 4, "width": 64}
TOY = {"num_blocks": 1, "num_steps": 2, "width": 32}
"""Tells nothing; for trying the benchmark itself."""
MODELS = {"published": PUBLISHED, "small": SMALL, "toy": TOY}
NUM_PARTS = 3

NORMFLOWS = {
    "normflows": {"net_actnorm": True},
    "normflows-plain": {"net_actnorm": False},
    "normflows-compile": {"net_actnorm": True, "compiled": True},
}
"""`normflows` has ActNorms in its coupling nets, which is openai's Glow and ours; `plain` is its default, without."""

PIPEFLOW = {
    "reference": {"precision": {"step": "reference"}},
    "fast": {"precision": {"step": "fast"}},
    "fast-compile": {"precision": {"step": "fast", "compile": True}},
    "fast-bf16": {"precision": {"step": "fast", "coupling": "bfloat16"}},
    "fast-bf16-compile": {"precision": {"step": "fast", "coupling": "bfloat16", "compile": True}},
}

SYSTEMS = {**NORMFLOWS, **PIPEFLOW}

CLIP_NORM = 1.0
_NUM_IMAGES, _NUM_BATCHES = 64, 8
"""Different images, for making them takes milliseconds each, and batches in which they are repeated."""
NUM_LATENTS = 4
"""Batches of latents that a part which is not the first trains on, in turn."""


@dataclass(frozen=True)
class Case:
    """A flow and a batch: what all systems of a table compute."""

    size: str
    """A name of MODELS, or part K of the published size."""
    model: dict
    batch_size: int
    device: str
    part: int | None = None
    """Part of a balanced cut in NUM_PARTS; None: the whole flow."""

    @property
    def name(self) -> str:
        """Name in tables and files."""
        return f"{self.size}, batch {self.batch_size}"


def cases(sizes: list[str], batch_sizes: dict[str, list[int]], device: str) -> list[Case]:
    """One for each size and batch; `parts` gives one for each part."""
    made = []
    for size in sizes:
        for batch_size in batch_sizes[size]:
            if size == "parts":
                made += [
                    Case(f"part {part} of {NUM_PARTS}", PUBLISHED, batch_size, device, part)
                    for part in range(NUM_PARTS)
                ]
            else:
                made.append(Case(size, MODELS[size], batch_size, device))
    return made


def configuration(case: Case, options: dict) -> Config:
    """The case's run with a system's options."""
    sections = {
        "run": {"device": case.device},
        "data": {"num_train": _NUM_IMAGES, "num_test": 1},
        "model": case.model,
        "parts": {"split": "balanced", "num": 1 if case.part is None else NUM_PARTS},
        "optim": {"batch_size": case.batch_size, "lr": 1e-4, "clip_norm": CLIP_NORM},
    }
    for section, values in options.items():
        sections[section] = {**sections.get(section, {}), **values}
    return Config.from_dict(sections)


class Images:
    """Training batches one after the other, epoch after epoch, dequantized ahead as a run does it."""

    def __init__(self, config: Config, device: torch.device):
        data = load_data(config.data)
        repeats = -(-_NUM_BATCHES * config.optim.batch_size // len(data.train))
        data = replace(data, train=data.train.repeat(repeats, 1, 1, 1))
        self.batches = Batches(data, config.run.seed, config.optim.batch_size, config.data.flip)
        alone = Replicas((0,), 0), Control(1, None, Traffic(), Alarm())
        self._ahead = ImageFeed(self.batches, device, Timeline(config.timeline, device), *alone)
        self._step = 0

    def __call__(self) -> Tensor:
        """The next batch, on the device: float32 in [-0.5, 0.5)."""
        position = divmod(self._step, self.batches.steps_per_epoch)
        self._step += 1
        return self._ahead.train(*position)


class PipeflowStep:
    """The trainer's own step of a flow, or of one of its parts."""

    def __init__(self, case: Case, options: dict, images: Images, device: torch.device):
        config = configuration(case, options)
        flow = build_flow(config, images.batches.data.shape)
        cuts = configured_cuts(flow, config)
        parts = split_flow(flow, cuts, head_maker(config.parts), config.memory.activations)
        latent = images.batches.initial().to(device)
        for part in parts:
            latent = part.to(device).initialize(latent)
        self.part = parts[case.part or 0]
        self._next = _latents_in_turn(parts[: case.part], images) if case.part else images
        for part in parts:
            if part is not self.part:
                part.cpu()
        self.trainer = PartTrainer(self.part, device, config, config.optim.lr, num_updates=10**6)
        self.num_parameters = sum(parameter.numel() for parameter in self.part.parameters())
        self.multiply_adds = _multiply_adds(flow, self.part)

    def __call__(self) -> Tensor:
        """Trains on the next batch; the loss."""
        _, loss = self.trainer.forward(self._next())
        self.trainer.update(loss)
        return loss.detach()

    @property
    def reconstruction_error(self) -> float | None:
        """Error of `memory.activations: invert`, where the part tells it."""
        error = self.part.reconstruction_error
        return None if error is None else float(error)


def _multiply_adds(flow: Flow, part: Part) -> dict[str, int]:
    """Multiply-adds of one forward of one image, in the coupling nets and in all else, which may run in different types."""
    shapes = dict(zip(flow.names, flow.shapes))
    layers = [(layer, shapes[name]) for name, layer in flow.named_layers() if name in part.names]
    coupling = sum(layer.coupling.multiply_adds(shape) for layer, shape in layers if isinstance(layer, FlowStep))
    return {"coupling": coupling, "other": part.multiply_adds() - coupling}


def _latents_in_turn(earlier: list[Part], images: Images) -> Callable[[], Tensor]:
    """The latents that the parts before make of a few batches, one after the other, over and over."""
    with torch.no_grad():
        latents = [images() for _ in range(NUM_LATENTS)]
        for part in earlier:
            latents = [part(latent).latent for latent in latents]
    turn = itertools.cycle(latents)
    return lambda: next(turn)


def bits_per_dim(nats: Tensor, num_dims: int) -> Tensor:
    """A loss of so many nats an image, as pipeflow scales it: in bits per dimension, but for the constant 8."""
    return nats / (num_dims * math.log(2))
