"""What a worker holds at each stage of a run: its parts with their links, and after the gather the whole flow or nothing.

local   a trainer for each of its parts, links to its neighbours, the images if it has the first part
whole   rank 0 (data-parallel: everybody) a trainer of the whole flow; the others nothing: their phases are empty
"""

import contextlib
from collections.abc import Iterator, Sequence

from pipeflow.config import Config
from pipeflow.data import Batches
from pipeflow.errors import ConfigError
from pipeflow.flow import Flow, Part
from pipeflow.flow.parts import balance
from pipeflow.training.checkpoint import Checkpoints
from pipeflow.training.draws import Draws
from pipeflow.training.finetune import (
    State,
    gather,
    is_data_parallel,
    spread,
    state_of,
    whole_flow_trainer,
    without_heads,
)
from pipeflow.training.graphs import make_trainer
from pipeflow.training.images import ImagesAhead, ImageSource, SharedImages
from pipeflow.training.manifest import check_tensors
from pipeflow.training.schedule import Schedule
from pipeflow.training.trainer import PartTrainer
from pipeflow.training.worker import Worker
from pipeflow.training.world import World


class Stages:
    """Brings a worker into a stage, from the beginning, from a checkpoint, or from the stage before."""

    def __init__(
        self,
        world: World,
        config: Config,
        flow: Flow,
        parts: Sequence[Part],
        schedule: Schedule,
        batches: Batches | None,
        checkpoints: Checkpoints,
        manifest: dict | None,
    ):
        """batches: on rank 0. manifest: of the checkpoint to go on from."""
        self.world = world
        self.config = config
        self.flow = flow
        self.parts = parts
        self.schedule = schedule
        self.batches = batches
        self.checkpoints = checkpoints
        self.manifest = manifest
        self.is_main = world.rank == 0
        self.name = ""
        """`local` or `whole`."""
        self.worker: Worker

    @property
    def takes_part(self) -> bool:
        """Whether this worker evaluates and saves: after the gather rank 0 does so for all."""
        return self.name == "local" or self.is_main

    def state(self) -> State:
        """All that this worker's trainers hold."""
        return state_of(self.worker.trainers)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the trained ones, where there are any."""
        with contextlib.ExitStack() as stack:
            for trainer in self.worker.trainers:
                stack.enter_context(trainer.averaged())
            yield

    def gather(self) -> None:
        """From the local stage into the whole one: parts, optimizer states and averages go to rank 0."""
        self.world.close_links()
        tensors, counts = gather(without_heads(self.state()), self.world.control)
        # A new stage begins: warm-up and decay start over, while the optimizer's own counts go on.
        self._start_whole((tensors, {owner: [0, count[1]] for owner, count in counts.items()}))

    def start(self, next_is_local: bool) -> None:
        """Into the stage of the checkpoint, or the first one, with everything loaded or initialised."""
        if next_is_local or (self.manifest is not None and self.manifest["stage"] == "local"):
            self._start_local()
        else:
            self._start_whole()

    def _start_local(self) -> None:
        world, config = self.world, self.config
        if world.size > len(self.parts):
            raise ConfigError(
                f"{world.size} workers for {len(self.parts)} parts, and the checkpoint is from before the gather: "
                f"start at most {len(self.parts)} workers."
            )
        starts = balance([max(1, part.multiply_adds()) for part in self.parts], world.size)
        owners = [sum(part.index >= start for start in starts) - 1 for part in self.parts]
        trainers = []
        for part, owner in zip(self.parts, owners):
            if owner == world.rank:
                lr = config.optim.part_lr[part.index] if config.optim.part_lr else config.optim.lr
                trainers.append(make_trainer(part, world.device, config, lr, self.schedule.num_updates(part.index)))
        links = world.make_links(self.parts, owners, config)
        self.worker = self._make_worker(trainers, links, self._images_ahead())
        self.name = "local"
        self._load_or_initialize(trainers)

    def _start_whole(self, state: tuple | None = None) -> None:
        """state: what the gather brought together; None: from the checkpoint, or initialised here."""
        world, config = self.world, self.config
        data_parallel = is_data_parallel(config, world)
        images, trainers = self._images_ahead(), []
        if self.is_main or data_parallel:
            trainers = [whole_flow_trainer(self.flow, config, self.schedule, world)]
        if data_parallel:
            images = SharedImages(
                self.batches, config.run.seed, config.optim.batch_size, self.flow.shape, self.world.control
            )
        self.worker = self._make_worker(trainers, {}, images)
        self.name = "whole"
        is_loaded = state is None and self.is_main
        if is_loaded:
            self._load_or_initialize(trainers)
            state = state_of(trainers)
        if data_parallel:
            state = spread(state if self.is_main else ({}, {}), self.world.control)
        if not is_loaded:
            for trainer in trainers:
                trainer.load_model(state[0])
                trainer.load_training(*state, same_stage=True)

    def _images_ahead(self) -> ImagesAhead | None:
        if self.batches is None:
            return None
        return ImagesAhead(self.batches, self.world.device, self.world.timeline)

    def _make_worker(self, trainers: list, links: dict, images: ImageSource | None) -> Worker:
        world, config, batch_size = self.world, self.config, self.config.optim.batch_size
        draws = Draws(config.link, config.run.seed, self.schedule.steps_per_epoch * batch_size)
        max_error = config.memory.max_error
        worker = Worker(
            trainers,
            links,
            images,
            world.device,
            batch_size,
            world.alarm,
            draws,
            world.timeline,
            max_error,
            lambda: bool(world.notice),
        )
        if world.monitor is not None:
            parts = [trainer.part.index for trainer in trainers]
            world.monitor.status = lambda: {**worker.progress, "parts": parts, "sent": world.traffic.training}
        return worker

    def _load_or_initialize(self, trainers: list[PartTrainer]) -> None:
        """Initialises on the first batch whatever the checkpoint, if there is one, does not bring."""
        manifest, tensors = self.manifest, {}
        if manifest is not None:
            wanted = [owner for trainer in trainers for owner in trainer.part.owners()]
            tensors = self.checkpoints.read(manifest, wanted)
            check_tensors(tensors, manifest, [trainer.part for trainer in trainers], self.config.optim.name)
        known = {} if manifest is None else manifest["counts"]
        new_heads = [trainer.part.head_name for trainer in trainers if trainer.part.head_name not in known]
        for trainer in trainers:
            trainer.load_model(tensors)
        fresh = manifest is None
        if fresh or (self.name == "local" and any(self.world.control.share(bool(new_heads), "the new heads"))):
            self.worker.initialize(layers=fresh, heads=new_heads)
        same_stage = manifest is not None and manifest["stage"] == self.name
        for trainer in trainers:
            trainer.load_training(tensors, known, same_stage)
