"""A run that is yet to be made: its parts, its phases, and the bytes that it sends, by formula.

Images of the built-in data are not loaded, and of a folder or a zip only the first is decoded.
"""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from pipeflow.config import Config
from pipeflow.config.checks import check_batch_size
from pipeflow.data import load_data
from pipeflow.data.array_files import holds_arrays
from pipeflow.data.image_data import padded_values
from pipeflow.data.image_folder import measure_images
from pipeflow.data.sources import DEAD_LEAVES_NUM, num_taken
from pipeflow.errors import ConfigError, DataError
from pipeflow.flow import Flow, Part, build_flow, configured_cuts, local_heads, split_flow
from pipeflow.flow.layers import Shape
from pipeflow.plan import traffic
from pipeflow.plan.without_memory import build_without_memory
from pipeflow.training.schedule import Phase, Schedule

SMALL_IMAGE = (3, 32, 32)
"""Shape of the images of cifar10 and dead_leaves."""
CIFAR10_NUM = {"train": 50_000, "test": 10_000}


class Images(NamedTuple):
    """The data as a plan needs it."""

    shape: Shape
    """Shape of one image, without the batch."""
    num_train: int
    num_test: int


@dataclass(frozen=True)
class Plan:
    """A run that is yet to be made, with a worker for each replica of each part."""

    config: Config
    flow: Flow
    """The flow, whose tensors have shapes but no values where it is pipeflow's own."""
    parts: list[Part]
    phases: list[Phase]
    num_train: int
    num_test: int

    @property
    def num_workers(self) -> int:
        """Workers with one for each replica of each part."""
        return len(self.parts) * self.config.parts.replicas

    @property
    def local_phases(self) -> list[Phase]:
        """The phases before the gather."""
        return [phase for phase in self.phases if phase.is_local]

    @property
    def is_pipelined(self) -> bool:
        """Whether end-to-end epochs run over the links, so that nothing is gathered."""
        return self.config.finetune.parallel == "pipeline" and len(self.parts) > 1

    def link_bytes(self, phase: Phase) -> list[tuple[int, int]]:
        """Bytes over each link in a phase's training, forward and back."""
        if not phase.is_local and self.is_pipelined:
            return traffic.pipeline_link_bytes(phase, self.parts, self.config)
        batch_size, dtype = self.config.optim.batch_size, self.config.link.dtype
        messages = traffic.latent_messages(self.config)
        forward = traffic.phase_link_bytes(phase, self.parts, batch_size, dtype, messages)
        return [(count, 0) for count in forward]

    @property
    def forward_bytes(self) -> list[int]:
        """Bytes over each link in all of training."""
        return [sum(forward for forward, _ in link) for link in zip(*map(self.link_bytes, self.phases))]

    @property
    def backward_bytes(self) -> list[int]:
        """Bytes that go back over each link in all of training."""
        return [sum(back for _, back in link) for link in zip(*map(self.link_bytes, self.phases))]

    @property
    def evaluation_bytes(self) -> int:
        """Bytes over the links in all evaluations of parts: twice, where there are averaged weights."""
        phases = self.phases if self.is_pipelined else self.local_phases
        if not phases:
            return 0
        num_images = min(self.config.eval.num_images or self.num_test, self.num_test)
        num_images *= 1 + sum(phase.evaluate for phase in phases)
        # All test images: behind the last local epoch, and at the end.
        num_images += self.num_test * (2 if self.is_pipelined and 0 < len(self.local_phases) < len(phases) else 1)
        once = sum(traffic.eval_link_bytes(self.parts, num_images))
        return once * (2 if self.config.optim.ema > 0 else 1)

    @property
    def gather_bytes(self) -> dict[str, int]:
        """Bytes of the gather, by kind, none before a pipeline; before data-parallel epochs rank 0 also sends it to all."""
        trained = {part for phase in self.local_phases for part in phase.trained}
        ema = self.config.optim.ema > 0
        counts: Counter[str] = Counter()
        if self.local_phases and not self.is_pipelined:
            counts.update(traffic.gather_bytes(self.parts, range(len(self.parts)), trained, ema))
        if self._is_data_parallel:
            everything = traffic.gather_bytes(self.parts, [1] * len(self.parts), trained, ema)
            counts.update({kind: count * (self.num_workers - 1) for kind, count in everything.items()})
        return dict(counts)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of whole gradients in end-to-end epochs: of all workers, or of the replicas of each part in a pipeline."""
        steps = sum(phase.steps for phase in self.phases if not phase.is_local)
        if self.is_pipelined:
            return traffic.gradient_bytes(self.parts, self.config.parts.replicas, steps)
        return traffic.gradient_bytes(self.parts, self.num_workers, steps) if self._is_data_parallel else 0

    @property
    def replica_bytes(self) -> int:
        """Bytes of gradients that replicas of parts average before the gather."""
        return sum(traffic.replica_bytes(phase, self.parts, self.config.parts.replicas) for phase in self.phases)

    @property
    def label_bytes(self) -> int:
        """Bytes of the images' labels, to the workers behind the first part whose parts take them."""
        if not self.local_phases and not self.is_pipelined:
            return 0
        return traffic.label_bytes(self.parts, self.config.parts.replicas, self.num_train + self.num_test)

    @property
    def _is_data_parallel(self) -> bool:
        return self.config.finetune.parallel == "ddp" and not self.phases[-1].is_local


def make_plan(config: Config, images: Images | None = None) -> Plan:
    """Builds the flow and the schedule, without images.

    images: shape and numbers; those of the configuration's data, which must be there, if not given.

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
        return flow, split_flow(flow, configured_cuts(flow, config), local_heads(config))

    flow, parts = build_without_memory(config, build)
    phases = Schedule(config, len(parts), num_train // config.optim.batch_size).phases()
    return Plan(config, flow, parts, phases, num_train, num_test)


def _measure_data(config: Config) -> Images:
    data = config.data
    if data.name == "python":
        raise DataError("data.name is python: images given from Python cannot be planned from a configuration.")
    shape: Shape = SMALL_IMAGE
    if data.name == "dead_leaves":  # there are as many as are asked for
        shape = padded_values(shape, False, data.pad, data.name).padded_shape
        return Images(shape, data.num_train or DEAD_LEAVES_NUM["train"], data.num_test or DEAD_LEAVES_NUM["test"])
    if data.name == "cifar10":
        train, test = CIFAR10_NUM["train"], CIFAR10_NUM["test"]
    elif data.name == "images" and not holds_arrays(data.path):
        shape, train, test = measure_images(data)
    else:
        images = load_data(data)
        return Images(images.values(data.pad).padded_shape, len(images.train), len(images.test))
    shape = padded_values(shape, False, data.pad, data.name).padded_shape
    return Images(shape, num_taken(data.num_train, train, "num_train"), num_taken(data.num_test, test, "num_test"))
