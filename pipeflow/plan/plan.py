"""A run that is yet to be made: its parts, its phases, and what travels, by formula.

No image is loaded for the data that comes along, and of a folder or a zip only the first is decoded.
"""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from pipeflow.config import Config
from pipeflow.config.checks import check_batch_size
from pipeflow.data import load_data
from pipeflow.data.image_folder import measure_images
from pipeflow.data.sources import DEAD_LEAVES_NUM
from pipeflow.errors import ConfigError, DataError
from pipeflow.flow import Flow, Part, build_flow, cut_names, split_flow
from pipeflow.flow.layers import Shape
from pipeflow.plan.traffic import eval_link_bytes, gather_bytes, gradient_bytes, phase_link_bytes, replica_bytes
from pipeflow.plan.without_memory import build_without_memory
from pipeflow.training.schedule import Phase, Schedule

SMALL_IMAGE = (3, 32, 32)
"""Shape of the images of cifar10 and dead_leaves."""

CIFAR10_NUM = {"train": 50_000, "test": 10_000}


class Images(NamedTuple):
    """What a plan knows of the data."""

    shape: Shape
    """Of one image, without the batch."""
    num_train: int
    num_test: int


@dataclass(frozen=True)
class Plan:
    """A run that is yet to be made, with a worker for each replica of each part."""

    config: Config
    flow: Flow
    """Of fake tensors where it is pipeflow's own: it has shapes, but no values."""
    parts: list[Part]
    phases: list[Phase]
    num_train: int
    num_test: int

    @property
    def forward(self) -> list[int]:
        """Bytes over each link in all of training."""
        optim, dtype = self.config.optim, self.config.link.dtype
        by_phase = [phase_link_bytes(phase, self.parts, optim.batch_size, dtype) for phase in self.phases]
        return [sum(link) for link in zip(*by_phase)]

    @property
    def evaluation(self) -> int:
        """Bytes over the links in all evaluations before the gather: twice, where there are averaged weights."""
        local = [phase for phase in self.phases if phase.is_local]
        if not local:
            return 0
        num_images = min(self.config.eval.num_images or self.num_test, self.num_test)
        in_training = num_images * (1 + sum(phase.evaluate for phase in local))
        return sum(eval_link_bytes(self.parts, in_training + self.num_test)) * (2 if self.config.optim.ema > 0 else 1)

    @property
    def gather(self) -> dict[str, int]:
        """Bytes of the gather, by kind; before data-parallel epochs rank 0 also sends everything to all others."""
        local = [phase for phase in self.phases if phase.is_local]
        trained = {part for phase in local for part in phase.trained}
        ema = self.config.optim.ema > 0
        counts = Counter(gather_bytes(self.parts, range(len(self.parts)), trained, ema) if local else {})
        if self._is_data_parallel:
            for _ in range(self.num_workers - 1):
                counts.update(gather_bytes(self.parts, [1] * len(self.parts), trained, ema))
        return dict(counts)

    @property
    def num_workers(self) -> int:
        """One for each replica of each part."""
        return len(self.parts) * self.config.parts.replicas

    @property
    def gradients(self) -> int:
        """Bytes of gradients in data-parallel epochs."""
        steps = sum(phase.steps for phase in self.phases if not phase.is_local)
        return gradient_bytes(self.parts, self.num_workers, steps) if self._is_data_parallel else 0

    @property
    def replicas(self) -> int:
        """Bytes of gradients that replicas of parts average before the gather."""
        return sum(replica_bytes(phase, self.parts, self.config.parts.replicas) for phase in self.phases)

    @property
    def _is_data_parallel(self) -> bool:
        return self.config.finetune.parallel == "ddp" and not self.phases[-1].is_local


def make_plan(config: Config, images: Images | None = None) -> Plan:
    """Builds the flow and the schedule, without images.

    images: None: those that the configuration names, which must be there.

    Raises:
        ConfigError: the parts, the model or the batch size cannot be.
        DataError: the images are not there, or fewer than asked for.
    """
    shape, num_train, num_test = images or _measure_data(config)
    check_batch_size(config.optim.batch_size, num_train, config.data.name)
    if config.model.name == "python":
        raise ConfigError("model.name is python: a flow given from Python cannot be planned from a configuration.")

    def build() -> tuple[Flow, list[Part]]:
        flow = build_flow(config, shape)
        return flow, split_flow(flow, cut_names(flow, config.parts.split, config.parts.num), config.parts.head)

    flow, parts = build_without_memory(config, build)
    phases = Schedule(config, len(parts), num_train // config.optim.batch_size).phases()
    return Plan(config, flow, parts, phases, num_train, num_test)


def _measure_data(config: Config) -> Images:
    data = config.data
    if data.name == "python":
        raise DataError("data.name is python: images given from Python cannot be planned from a configuration.")
    if data.name == "dead_leaves":
        num_train, num_test = data.num_train or DEAD_LEAVES_NUM["train"], data.num_test or DEAD_LEAVES_NUM["test"]
        return Images(SMALL_IMAGE, num_train, num_test)
    if data.name == "cifar10":
        shape, train, test = SMALL_IMAGE, CIFAR10_NUM["train"], CIFAR10_NUM["test"]
    elif data.name == "images":
        shape, train, test = measure_images(data.path)
    else:
        images = load_data(data)
        shape, train, test = images.shape, len(images.train), len(images.test)
    for option, num, there in (("num_train", data.num_train, train), ("num_test", data.num_test, test)):
        if num is not None and num > there:
            raise DataError(
                f"data.{option} is {num}, but there are only {there} images; lower it, or set null for all."
            )
    return Images(shape, data.num_train or train, data.num_test or test)
