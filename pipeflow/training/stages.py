"""The two stages of a run: a worker holds its parts with their links, and then the whole flow, nothing, or its parts.

local   a trainer for each of its parts, links to its neighbours, the images if it has the first part
whole   rank 0 (data-parallel: everybody) a trainer of the whole flow; the others nothing: their phases are empty
        in a pipeline, a trainer for each of its parts without heads, links forward and back

In both, workers that hold the same are replicas of each other: the first of them initialises, evaluates and saves.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

from pipeflow.config import Config
from pipeflow.data import Batches
from pipeflow.errors import ConfigError
from pipeflow.flow import Flow, Part, split_flow
from pipeflow.flow.balance import owners_of
from pipeflow.flow.part import is_head
from pipeflow.links.connect import connect, connect_back
from pipeflow.links.link import Link
from pipeflow.rundir.checkpoint import Checkpoints, check_tensors
from pipeflow.rundir.records import Manifest, Stage
from pipeflow.training import initial_values
from pipeflow.training.data_parallel import DataParallelTrainer
from pipeflow.training.gather import NOTHING, State, gather, spread, state_of, without_heads
from pipeflow.training.image_feed import ImageFeed
from pipeflow.training.labels import Labels
from pipeflow.training.pipeline import WHOLE, Pipeline, PipelineWorker
from pipeflow.training.schedule import Phase, Schedule
from pipeflow.training.trainer import PartTrainer
from pipeflow.training.worker import Worker
from pipeflow.workers.replicas import Replicas, share_of
from pipeflow.workers.world import World


class Stages:
    """Brings a worker into a stage, from the beginning, from a checkpoint, or from the stage before."""

    name: Stage
    worker: Worker
    replicas: Replicas
    """The workers that hold what this one holds."""

    def __init__(
        self,
        world: World,
        config: Config,
        flow: Flow,
        parts: Sequence[Part],
        schedule: Schedule,
        load_batches: Callable[[], Batches],
        labels: Labels,
        checkpoints: Checkpoints,
        manifest: Manifest | None,
    ):
        """load_batches: is called where the first part is. manifest: of the checkpoint to go on from."""
        self.world = world
        self.config = config
        self.flow = flow
        self.parts = parts
        self.schedule = schedule
        self.checkpoints = checkpoints
        self.manifest = manifest
        self.is_main = world.rank == 0
        self.is_pipelined = config.finetune.parallel == "pipeline" and world.num_places > 1
        """Whether the whole flow trains where its parts are, so that nothing is ever gathered."""
        self._images: ImageFeed | None = None
        self._load_batches = load_batches
        self._labels = labels

    @property
    def takes_part(self) -> bool:
        """Whether this worker evaluates and saves: one of its replicas does, after the gather rank 0 for all."""
        return self.is_main or (self.holds_parts and self.replicas.is_first)

    @property
    def holds_parts(self) -> bool:
        """Whether each worker has parts of its own."""
        return self.name == "local" or self.is_pipelined

    @property
    def own_losses(self) -> list[str]:
        """Keys of the losses that this worker takes down: its parts', in a pipeline the flow's in the last place."""
        if self.name == "whole" and self.is_pipelined:
            return [WHOLE] if self.world.place == self.world.num_places - 1 else []
        return [str(trainer.part.index) for trainer in self.worker.trainers]

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

    def start(self, next_is_local: bool) -> None:
        """Into the stage of the checkpoint, or the first one, with everything loaded or initialised."""
        if next_is_local or (self.manifest is not None and self.manifest.stage == "local"):
            self._start_local()
        else:
            self._start_whole()

    def gather(self) -> None:
        """From the local stage into the whole one: parts, optimizer states and averages go to rank 0, or stay."""
        self.close_links()
        if self.is_pipelined:
            gathered = without_heads(self.state())
        else:
            gathered = gather(without_heads(self.state()) if self.takes_part else NOTHING, self.world.control)
        self.close_images()
        # A new stage begins: warm-up and decay start over, while the optimizer's own counts go on.
        counts = {owner: [0, count[1]] for owner, count in gathered.counts.items()}
        self._start_whole(State(gathered.tensors, counts))

    def close_links(self) -> None:
        """Ends this worker's links; the workers at their other ends do so at the same point of the run."""
        for link in [*self.worker.links.values(), *self.worker.backward_links.values()]:
            link.close()

    def close_images(self) -> None:
        """Ends the thread that loads this worker's images, if there is one."""
        if self._images is not None:
            self._images.close()

    def _start_local(self) -> None:
        world, config = self.world, self.config
        if world.num_places > len(self.parts):
            raise ConfigError(
                f"{world.num_places} workers for {len(self.parts)} parts, and the checkpoint is from before the gather: "
                f"start at most {len(self.parts)} workers."
            )
        self.name = "local"
        owners = self._spread_parts()
        rates = config.optim.part_lr or [config.optim.lr] * len(self.parts)
        trainers = [
            self._make_trainer(part, rates[part.index], self.schedule.num_updates(part.index))
            for part, owner in zip(self.parts, owners)
            if owner == world.place
        ]
        links = connect(world, self.parts, owners, config)
        self.worker = self._make_worker(trainers, links, has_images=world.place == 0)
        self._load_or_initialize()
        self._hand_to_replicas("replicas")

    def _spread_parts(self) -> list[int]:
        """Meets the replicas of this worker's parts, and hands out labels; the place that holds each part."""
        self.replicas = self.world.replicas_of_parts()
        owners = owners_of([max(1, part.multiply_adds()) for part in self.parts], self.world.num_places)
        self.world.tell_parts(owners)
        self._labels.hand_out(self.parts, owners)
        return owners

    def _start_pipeline(self, state: State | None) -> None:
        """state: of this worker's parts; None: from the checkpoint, or initialised here."""
        world, config = self.world, self.config
        self.name = "whole"
        owners = self._spread_parts()
        cuts = [part.names[0] for part in self.parts[1:]]
        parts = split_flow(self.flow, cuts, None, config.memory.activations)
        trainers = [
            PartTrainer(part, world.device, config, self._finetune_lr(), self.schedule.num_finetune_updates())
            for part, owner in zip(parts, owners)
            if owner == world.place
        ]
        links = connect(world, parts, owners, config)
        back = connect_back(world, parts, owners, config)
        pipeline = Pipeline(world, config, trainers, links, back, self.replicas, len(parts))
        self.worker = self._make_worker(trainers, links, world.place == 0, pipeline)
        if state is None:
            self._load_or_initialize()
            self._hand_to_replicas("replicas")
        else:
            _load(trainers, state)
        initial_values.are_final(self.worker)

    def _finetune_lr(self) -> float:
        lr = self.config.finetune.lr
        return self.config.optim.lr if lr is None else lr

    def _start_whole(self, state: State | None = None) -> None:
        """state: what the gather brought together; None: from the checkpoint, or initialised here."""
        if self.is_pipelined:
            self._start_pipeline(state)
            return
        world, config = self.world, self.config
        is_shared = config.finetune.parallel != "single" and world.size > 1 and config.ends_whole
        self.name = "whole"
        self.replicas = world.replicas_of_all() if is_shared else Replicas((world.rank,), world.rank)
        trainers = []
        if self.is_main or is_shared:
            whole = split_flow(self.flow, [], activations=config.memory.activations)[0]
            trainers = [self._make_trainer(whole, self._finetune_lr(), self.schedule.num_finetune_updates())]
        self.worker = self._make_worker(trainers, {}, has_images=bool(trainers))
        if self.is_main:
            self._load_or_initialize() if state is None else _load(trainers, state)
        self._hand_to_replicas()
        initial_values.are_final(self.worker)

    def _make_trainer(self, part: Part, lr: float, num_updates: int) -> PartTrainer:
        """A trainer that shares each batch with the part's replicas, or a plain one."""
        world, config = self.world, self.config
        if self.replicas.size == 1:
            return PartTrainer(part, world.device, config, lr, num_updates)
        trainer = DataParallelTrainer(part, world.device, config, lr, num_updates)
        trainer.join(self.replicas, config, world.device, world.traffic, world.alarm)
        return trainer

    def _make_worker(
        self,
        trainers: Sequence[PartTrainer],
        links: Mapping[int, Link],
        has_images: bool,
        pipeline: Pipeline | None = None,
    ) -> Worker:
        world, config = self.world, self.config
        self._images = None
        if has_images:
            self._images = ImageFeed(self._load_batches(), world.device, world.timeline, self.replicas, world.control)
        takes_labels = any(trainer.part.num_classes is not None for trainer in trainers)
        make = Worker if pipeline is None else functools.partial(PipelineWorker, pipeline)
        worker = make(
            trainers,
            links,
            self._images,
            self._labels.feed(self.replicas) if takes_labels else None,
            world.device,
            config.optim.batch_size,
            self._micro_batches(),
            world.alarm,
            world.timeline,
            config.memory.max_error,
            is_preempted=lambda: bool(world.notice),
        )
        if world.monitor is not None:
            parts = [trainer.part.index for trainer in trainers]
            world.monitor.status = lambda: {**worker.progress, "parts": parts, "sent": world.traffic.training}
        return worker

    def _micro_batches(self) -> list[slice]:
        """The images of each micro-batch, among those that this worker has of a batch."""
        share, num = self.replicas.share(self.config.optim.batch_size), self.config.memory.micro_batches
        return [share_of(share.stop - share.start, num, number) for number in range(num)]

    def _hand_to_replicas(self, kind: str | None = None) -> None:
        """The first replica's state goes to the others. kind: under which it is counted."""
        if self.replicas.size > 1:
            state = spread(self.state() if self.replicas.is_first else NOTHING, self.world.control, self.replicas, kind)
            if not self.replicas.is_first:
                _load(self.worker.trainers, state)

    def initialize(self, phase: Phase) -> None:
        """Initialises the parts whose turn comes for the first time, on what the parts before them have come to give."""
        if not phase.initialize:
            return
        new = [each for each in self.worker.trainers if each.part.index in phase.initialize and not each.updates]
        if self.replicas.is_first:
            initial_values.before_their_turn(self.worker, phase, new)
        if new:
            self._hand_to_replicas("replicas")

    def _load_or_initialize(self) -> None:
        """Initialises on the first batch whatever the checkpoint, if there is one, does not bring."""
        manifest, trainers = self.manifest, self.worker.trainers
        tensors = {}
        if manifest is not None and self.replicas.is_first:
            owners = [owner for trainer in trainers for owner in trainer.part.owners()]
            wanted = [owner for owner in owners if owner in manifest.counts or not is_head(owner)]
            tensors = self.checkpoints.read(manifest, wanted)
            check_tensors(tensors, manifest, [trainer.part for trainer in trainers], self.config.optim.name)
        known = {} if manifest is None else manifest.counts
        new_heads = [trainer.part.head_name for trainer in trainers if trainer.part.head_name not in known]
        for trainer in trainers:
            trainer.load_model(tensors)
        is_new = manifest is None
        if self.name == "local" and not is_new:  # a head that is new anywhere needs a batch through all parts
            is_wanted = any(self.world.control.share(bool(new_heads), "the new heads"))
        else:
            is_wanted = is_new
        if is_wanted and self.replicas.is_first:
            later = self.schedule.initialized_later if self.name == "local" else ()
            initial_values.before_the_run(self.worker, len(self.parts), is_new, new_heads, later)
        same_stage = manifest is not None and manifest.stage == self.name
        for trainer in trainers:
            trainer.load_training(tensors, known, same_stage)


def _load(trainers: Sequence[PartTrainer], state: State) -> None:
    """Loads what another worker, or the gather, gives."""
    for trainer in trainers:
        trainer.load_model(state.tensors)
        trainer.load_training(state.tensors, state.counts, same_stage=True)
