"""Seconds, bytes, memory and idle share of an epoch, for every schedule, cut and rival on the machines described.

Rivals on the same workers: a pipeline with gradients (GPipe, 1F1B; the fastest of 2, 4, 8, 16 micro-batches), and data
parallelism with a ring all-reduce, at the same batch in all (`ddp`) and at the same batch a worker (`ddp, batch a worker`,
which makes fewer updates). An epoch of taking turns trains one part: its seconds are the mean over the turns.

`memory.activations` counts for all ways alike, and so does, with `run.device: cpu`, the copy that a checkpoint is written
from. Not predicted: where `parts.balance: time` will cut (here cuts are by multiply-adds).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from pipeflow.config import Config
from pipeflow.flow import Part, cut_names, split_flow
from pipeflow.flow.balance import balance
from pipeflow.plan.fake import build_without_memory
from pipeflow.plan.plan import Plan
from pipeflow.plan.predict.machines import Machines
from pipeflow.plan.predict.memory import Activations, copied_bytes, flow_bytes, trained_bytes
from pipeflow.plan.predict.programs import Handling, Stage, local_programs, pipeline_programs
from pipeflow.plan.predict.simulate import Link, Operation, Timeline, simulate
from pipeflow.plan.predict.work import layer_work, part_work
from pipeflow.plan.traffic import gradient_bytes, latent_bytes, phase_link_bytes, replica_bytes
from pipeflow.training.schedule import Phase, Schedule

Counted = TypeVar("Counted")

MODES = ("concurrent", "alternate", "sequential")
PIPELINES = ("gpipe", "1f1b")
MICRO_BATCHES = (2, 4, 8, 16)
_NUMBERS_OF_PARTS = (2, 3, 4, 8, 16, 32, 64, 128, 256)
"""Of balanced cuts that are tried, beside one for each worker."""
_MOST_TURNS = 64
"""Parts up to which taking turns is predicted: each turn is a simulation."""
_DENSITY = 8
"""Bytes an image that a pipeline sends beside each latent, and beside its gradient: the log-density so far, float64."""
_FIRST_BUCKET, _BUCKET = 2**20, 25 * 2**20
"""Bytes of gradients that torch's DistributedDataParallel reduces together: the first, and each after it."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One way to use the machines."""

    system: str
    """end_to_end, concurrent, alternate, sequential, gpipe, 1f1b, ddp, or `ddp, batch a worker`."""
    cut: str
    """`balanced 3`, ...; empty where the flow is not cut."""
    parts: int
    replicas: int
    """Of each part."""
    workers: int
    """That have something to do."""
    batch_size: int
    micro_batches: int | None
    seconds: float
    """Of an epoch's training."""
    bytes: float
    """Sent between workers in an epoch, all together."""
    memory: float
    """Bytes that the fullest worker holds at most."""
    idle: float
    """Share of these workers' time in which they do not compute."""
    largest_part: float
    """Its share of the multiply-adds: 1 / this bounds the speed-up of parts."""
    run_seconds: float
    """Of all the configured epochs, fine-tuning and the gather included."""
    fits: bool

    @property
    def trains_all(self) -> bool:
        """Whether every batch updates every part, so that epochs compare."""
        return self.system not in ("alternate", "sequential")

    @property
    def is_ours(self) -> bool:
        """Whether it trains gradient-isolated parts."""
        return self.system in MODES


@dataclass(frozen=True)
class Cut:
    """A way to cut the flow, with a worker for each part where there are enough."""

    name: str
    parts: list[Part]


class Predictor:
    """Predicts one configuration on one description of machines."""

    def __init__(
        self, plan: Plan, machines: Machines, batch_size: int | None = None, shared: "Predictor | None" = None
    ):
        """shared: a predictor of the same plan; its counts of activations and its cuts are taken over."""
        self.plan = plan
        self.config: Config = plan.config
        self.machines = machines
        self.batch_size = batch_size or plan.config.optim.batch_size
        activations = plan.config.memory.activations
        self._layers = layer_work(plan.flow, machines, activations)
        self._activations = shared._activations if shared else Activations(plan.flow, activations)
        self._all_cuts = shared._all_cuts if shared else {}
        self._whole = shared._whole if shared else self._split([])[0]
        self._counted: dict[tuple, Any] = shared._counted if shared else {}
        self._of_turn: dict[tuple, tuple[float, float]] = {}
        self._handling = Handling(machines.message_seconds, machines.byte_seconds)

    # --- all there are ------------------------------------------------------------------------------------------------

    def all(self, modes: Sequence[str] = MODES) -> list[Prediction]:
        """Every way: one worker, parts in these modes, pipelines, data parallelism."""
        found = [self.end_to_end()]
        for cut in self.cuts():
            found += [self.local(mode, cut) for mode in modes if mode == "concurrent" or len(cut.parts) <= _MOST_TURNS]
            for replicas in self._replicas(cut):
                configured = replicas == self.config.parts.replicas
                found += [self.local(mode, cut, replicas) for mode in modes if mode == "concurrent" or configured]
        if self.machines.workers > 1:
            found += [
                self.pipeline(kind, cut) for kind in PIPELINES for cut in self.cuts() if self._has_worker_each(cut)
            ]
            found += self.data_parallel()
        return found

    def cuts(self) -> list[Cut]:
        """The configured cut, by blocks, across blocks, and balanced, into as many parts as there are workers or fewer."""
        return self.cuts_for(self.machines.workers)

    def cuts_for(self, workers: int) -> list[Cut]:
        """The same for another number of workers."""
        if workers not in self._all_cuts:
            cuts = [Cut(_name_of(self.config), self.plan.parts)] if len(self.plan.parts) > 1 else []
            for name, split, num in self._splits(workers):
                known = next((cut for each in self._all_cuts.values() for cut in each if cut.name == name), None)
                parts = known.parts if known else self._split(cut_names(self.plan.flow, split, num))
                if 1 < len(parts) <= workers and _starts(parts) not in [_starts(cut.parts) for cut in cuts]:
                    cuts.append(Cut(name, parts))
            self._all_cuts[workers] = cuts
        return self._all_cuts[workers]

    @property
    def most_parts(self) -> int:
        """Into which the flow can be cut: a squeeze stays with the step behind it, a factor-out with the one before."""
        layers = [layer for _, layer in self.plan.flow.named_layers()]
        pairs = zip(layers, layers[1:])
        return 1 + sum(not before.stays_with_next and not layer.stays_with_previous for before, layer in pairs)

    def _splits(self, workers: int) -> list[tuple[str, str, int | None]]:
        blocks = {name.split(".")[1] for name in self.plan.flow.names if name.startswith("blocks.")}
        limit = min(workers, self.most_parts)
        nums = sorted({limit, *(num for num in _NUMBERS_OF_PARTS if num <= limit)})
        splits: list[tuple[str, str, int | None]] = [(f"balanced {num}", "balanced", num) for num in nums if num > 1]
        if self.config.model.name == "glow":
            splits += [("blocks", "blocks", None)] * (1 < len(blocks) <= workers)
            if self.config.model.num_steps > 1:  # there is no cut in the middle of a single step
                splits += [(f"across {num}", "across", num) for num in range(2, min(workers, len(blocks) + 1) + 1)]
        return splits

    def _split(self, cuts: Sequence[str]) -> list[Part]:
        return build_without_memory(self.config, lambda: split_flow(self.plan.flow, cuts, self.config.parts.head))

    def _replicas(self, cut: Cut) -> list[int]:
        """How many workers a part may have: as many as there are workers for, and as configured."""
        most = min(self.machines.workers // len(cut.parts), self.batch_size)
        configured = self.config.parts.replicas if cut.parts is self.plan.parts else 1
        return sorted({num for num in (most, configured) if 1 < num <= most})

    def _has_worker_each(self, cut: Cut) -> bool:
        return len(cut.parts) <= self.machines.workers

    # --- each ---------------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return max(1, self.plan.num_train // self.batch_size)

    def end_to_end(self) -> Prediction:
        """The whole flow on one worker."""
        work = part_work(self._whole, self._layers)
        step = work.forward(self.batch_size) + work.backward(self.batch_size) + work.update
        step += self.machines.image_seconds * self.batch_size
        seconds = self.steps * step * self.machines.alone
        memory = self._memory([self._whole], self._activations.of(self._whole).at(self.batch_size), 0)
        return self._prediction("end_to_end", "", [self._whole], 1, seconds, 0, memory, 0.0)

    @cached_property
    def finetune_seconds(self) -> float:
        """Of an end-to-end epoch after the gather, as `finetune.parallel` says."""
        if self.config.finetune.parallel == "ddp" and self.machines.workers > 1:
            return self.data_parallel()[0].seconds
        return self.end_to_end().seconds

    def local(self, mode: str, cut: Cut, replicas: int = 1) -> Prediction:
        """Isolated parts: `replicas` workers each, or as the trainer spreads them where there are fewer workers."""
        turns = self._turns(mode, len(cut.parts))
        owners = self._owners(cut.parts)
        images = self.batch_size / replicas
        stages = self._stages(cut.parts, owners, images, self.config.link.dtype, replicas)
        link = self._link(self.config.link.depth)
        # Waiting for room comes round every `depth` batches. Where cores are shared, also the filling must be seen.
        period = (2 + (self.machines.alone < 1) * len(cut.parts)) * self.config.link.depth

        def of_turn(training: tuple[int, ...]) -> tuple[float, float]:
            key = (*_starts(cut.parts), training, replicas)
            if key not in self._of_turn:
                self._of_turn[key] = self._epoch(
                    lambda num: local_programs(stages, training, num, self._handling), link, self.steps, period
                )
            return self._of_turn[key]

        by_turn = {turn: of_turn(turn) for turn in turns}
        seconds = sum(seconds for seconds, _ in by_turn.values()) / len(turns)
        busy = sum(busy for _, busy in by_turn.values()) / len(turns)
        sent = sum(sum(self._link_bytes(turn, cut.parts, owners)) for turn in turns) / len(turns)
        sent += sum(replica_bytes(self._phase(turn), cut.parts, replicas) for turn in turns) / len(turns)
        num_stages = max(owners) + 1
        name = f"{cut.name} x {replicas}" if replicas > 1 else cut.name
        return self._prediction(
            mode, name, cut.parts, num_stages * replicas, seconds, sent,
            self._local_memory(cut.parts, owners, images), 1 - busy / (num_stages * seconds), replicas=replicas,
            run_seconds=self._run_seconds(mode, cut.parts, owners, {turn: each[0] for turn, each in by_turn.items()}),
        )  # fmt: skip

    def pipeline(self, kind: str, cut: Cut) -> Prediction:
        """An end-to-end pipeline, at the number of micro-batches at which it is fastest."""
        return min((self.pipeline_at(kind, cut, num) for num in self._micro_batches()), key=lambda each: each.seconds)

    def pipeline_at(self, kind: str, cut: Cut, num_micro: int) -> Prediction:
        """An end-to-end pipeline with this many micro-batches."""
        parts = cut.parts
        images = self.batch_size / num_micro
        owners = list(range(len(parts)))
        fixed = self.machines.pass_seconds
        stages = [
            dataclasses.replace(
                stage,
                forward=stage.forward + fixed,
                backward=stage.backward + fixed,
                sent=stage.sent + _DENSITY * images * (part is not parts[-1]),
            )
            for part, stage in zip(parts, self._stages(parts, owners, images, "float32"))
        ]
        seconds, busy = self._epoch(
            lambda num: pipeline_programs(kind, stages, num_micro, num, self._handling), self._link(None), self.steps, 1
        )
        batch = sum(latent_bytes(part, self.batch_size, "float32") + _DENSITY * self.batch_size for part in parts[:-1])
        sent = 2 * self.steps * batch
        memory = 0.0
        for index, part in enumerate(parts):
            held = num_micro if kind == "gpipe" else min(num_micro, len(parts) - index)
            kept = held * self._activations.of(part).at(images)
            received = held * latent_bytes(parts[index - 1], 1, "float32") * images if index else 0
            memory = max(memory, self._memory([part], kept, received))
        return self._prediction(
            kind, cut.name, parts, len(parts), seconds, sent, memory, 1 - busy / (len(parts) * seconds), num_micro
        )

    def data_parallel(self) -> list[Prediction]:
        """The whole flow on several workers: at the same batch in all, on as many as are fastest, and at it a worker."""
        workers = self.machines.workers
        powers = [2**exponent for exponent in range(1, workers.bit_length())]
        tried = sorted(
            {num for num in [*powers, workers, self.batch_size] if 2 <= num <= min(workers, self.batch_size)}
        )
        found = [self._data_parallel("ddp", self.batch_size, num) for num in tried]
        found = [min(found, key=lambda each: (not each.fits, each.seconds))] if found else []
        if self.batch_size * workers <= self.plan.num_train:
            found.append(self._data_parallel("ddp, batch a worker", self.batch_size * workers, workers))
        return found

    def _data_parallel(self, name: str, batch_size: int, workers: int) -> Prediction:
        whole = self._whole
        images = -(-batch_size // workers)
        work = part_work(whole, self._layers)
        steps = max(1, self.plan.num_train // batch_size)
        drawn = self.machines.image_seconds * batch_size
        compute = drawn + work.forward(images) + work.backward(images) + work.update
        step = drawn + self._reduced_after(whole, images, workers) + work.update
        memory = self._memory([whole], self._activations.of(whole).at(images), 0)
        sent = self._once(("gradients", workers, steps), lambda: gradient_bytes([whole], workers, steps))
        idle = 1 - compute / step
        return self._prediction(name, "", [whole], workers, steps * step, sent, memory, idle, batch_size=batch_size)

    def _reduced_after(self, part: Part, images: float, workers: int) -> float:
        """Seconds until all gradients of a step are averaged: each bucket when its layers' backward is done."""
        machines = self.machines
        work = part_work(part, self._layers)
        time = work.forward(images)
        reduced, limit = 0.0, _FIRST_BUCKET
        # Gradients of the prior come first.
        waiting = sum(parameter.numel() * parameter.element_size() for parameter in part.head.parameters())

        def reduce(num_bytes: int) -> float:
            nonlocal time
            sent = 2 * (workers - 1) / workers * num_bytes
            hops = 2 * (workers - 1)
            time += 2 * (hops * machines.message_seconds + sent * machines.byte_seconds)
            return max(time, reduced) + sent / machines.reduce_bytes_per_second + hops * machines.latency

        layers = dict(self.plan.flow.named_layers())
        for name in reversed(part.names):
            time += self._layers[name].backward(images)
            waiting += sum(parameter.numel() * parameter.element_size() for parameter in layers[name].parameters())
            if waiting >= limit:
                reduced, waiting, limit = reduce(waiting), 0, _BUCKET
        return max(time, reduce(waiting) if waiting else reduced)

    # --- pieces -------------------------------------------------------------------------------------------------------

    def _micro_batches(self) -> list[int]:
        return [num for num in MICRO_BATCHES if num <= self.batch_size] or [1]

    def _owners(self, parts: Sequence[Part]) -> list[int]:
        """As the trainer spreads them."""
        if len(parts) <= self.machines.workers:
            return list(range(len(parts)))
        starts = balance([max(1, part.multiply_adds()) for part in parts], self.machines.workers)
        return [sum(part.index >= start for start in starts) - 1 for part in parts]

    def _stages(
        self, parts: Sequence[Part], owners: Sequence[int], images: float, dtype: str, replicas: int = 1
    ) -> list[Stage]:
        stages = []
        for part, owner in zip(parts, owners):
            work = part_work(part, self._layers)
            sent = latent_bytes(part, max(1, round(images)), dtype) if part is not parts[-1] else 0
            # The first replica draws the whole batch, and each makes the noise of all of it.
            drawn = self.machines.image_seconds * images * replicas if part is parts[0] else 0
            forward, backward = work.forward(images), work.backward(images)
            if replicas > 1:
                backward = self._reduced_after(part, images, replicas) - forward
            stages.append(Stage(drawn + forward, backward, work.update, sent, owner))
        return stages

    def _link(self, depth: int | None) -> Link:
        return Link(self.machines.bytes_per_second, self.machines.latency, depth)

    def _turns(self, mode: str, num_parts: int) -> list[tuple[int, ...]]:
        return [tuple(range(num_parts))] if mode == "concurrent" else [(part,) for part in range(num_parts)]

    def _link_bytes(self, turn: tuple[int, ...], parts: Sequence[Part], owners: Sequence[int]) -> list[int]:
        """Bytes over each link between workers in an epoch of this turn."""
        counts = phase_link_bytes(self._phase(turn), parts, self.batch_size, self.config.link.dtype)
        return [count for count, owner, other in zip(counts, owners, owners[1:]) if owner != other]

    def _phase(self, turn: tuple[int, ...]) -> Phase:
        """An epoch of this turn."""
        return Phase(epoch=0, mode="concurrent", steps=self.steps, turns=(turn,), turn_steps=self.steps)

    def _epoch(
        self, programs: Callable[[int], list[list[Operation]]], link: Link, steps: int, period: int
    ) -> tuple[float, float]:
        """Seconds of so many batches, and of computing in them: after two periods each takes as long as the one before."""
        if steps <= 3 * period:
            return self._shared(simulate(programs(steps), link))
        timeline = simulate(programs(3 * period), link)
        # What comes later delays nothing that came before: the first batches are as if they were all.
        before, busy_before = self._shared(timeline.first(2 / 3))
        after, busy_after = self._shared(timeline)
        more = (steps - 3 * period) / period
        return after + more * (after - before), busy_after + more * (busy_after - busy_before)

    def _shared(self, timeline: Timeline) -> tuple[float, float]:
        """Seconds and seconds of computing, faster where neighbours on the same cores rest."""
        saved = (1 - self.machines.alone) * _share_alone(timeline) if self.machines.alone < 1 else 0.0
        return timeline.seconds * (1 - saved), sum(timeline.busy()) * (1 - saved)

    def _memory(self, parts: Sequence[Part], kept: float, links: float) -> float:
        return self._once(("held", *_ends(parts[0]), *_ends(parts[-1])), lambda: self._held(parts)) + kept + links

    def _held(self, parts: Sequence[Part]) -> float:
        """All the time, with a checkpoint's copy where the worker's memory is the host's."""
        ema, on_cpu = self.config.optim.ema > 0, self.config.run.device == "cpu"
        return trained_bytes(parts, ema) + (copied_bytes(parts, ema) if on_cpu else 0)

    def _once(self, key: tuple, count: Callable[[], Counted]) -> Counted:
        """What does not depend on the machines is counted once."""
        if key not in self._counted:
            self._counted[key] = count()
        return self._counted[key]

    def _local_memory(self, parts: Sequence[Part], owners: Sequence[int], images: float) -> float:
        """Of the fullest worker: one part's activations at a time, and `link.depth` batches at each end of its links."""
        depth, dtype, batch = self.config.link.depth, self.config.link.dtype, math.ceil(images)
        fullest = 0.0
        for worker in range(max(owners) + 1):
            own = [part for part, owner in zip(parts, owners) if owner == worker]
            first, last = own[0].index, own[-1].index
            waiting = depth * latent_bytes(parts[first - 1], batch, dtype) if first else 0
            waiting += depth * latent_bytes(parts[last], batch, dtype) if last < len(parts) - 1 else 0
            kept = max(self._activations.of(part).at(batch) for part in own)
            fullest = max(fullest, self._memory(own, kept, waiting))
        return fullest

    def _run_seconds(
        self, mode: str, parts: Sequence[Part], owners: Sequence[int], by_turn: dict[tuple[int, ...], float]
    ) -> float:
        """All epochs of this schedule with these parts, the gather, and fine-tuning."""
        schedule = {**self.config.to_dict()["schedule"], "mode": mode}
        config = Config.from_dict({"schedule": schedule})
        seconds = 0.0
        for phase in Schedule(config, len(parts), self.steps).phases():
            if phase.is_local:
                for turn, of_epoch in by_turn.items():
                    count = phase.count_training(turn[-1])
                    seconds += of_epoch * count / phase.steps
            else:
                seconds += self.finetune_seconds
        gathered = sum(
            self._once(("sent", *_ends(part)), lambda part=part: flow_bytes(part, self.config.optim.ema > 0))
            for part, owner in zip(parts, owners)
            if owner != 0
        )
        return seconds + gathered / self.machines.bytes_per_second

    def _prediction(
        self, system: str, cut: str, parts: Sequence[Part], workers: int, seconds: float, sent: float, memory: float,
        idle: float, micro_batches: int | None = None, batch_size: int | None = None, run_seconds: float | None = None,
        replicas: int = 1,
    ) -> Prediction:  # fmt: skip
        costs = [self._once(("macs", *_ends(part)), part.multiply_adds) for part in parts]
        limit = self.machines.memory
        return Prediction(
            system=system,
            cut=cut,
            parts=len(parts),
            replicas=replicas,
            workers=workers,
            batch_size=batch_size or self.batch_size,
            micro_batches=micro_batches,
            seconds=seconds,
            bytes=sent,
            memory=memory,
            idle=max(0.0, idle),
            largest_part=max(costs) / max(1, sum(costs)),
            run_seconds=self.config.num_epochs * seconds if run_seconds is None else run_seconds,
            fits=limit is None or memory <= limit,
        )


def _name_of(config: Config) -> str:
    split, num = config.parts.split, config.parts.num
    name = split if isinstance(split, str) else "configured"
    return name if name == "blocks" or num is None else f"{name} {num}"


def _ends(part: Part) -> tuple[str, str]:
    return part.names[0], part.names[-1]


def _starts(parts: Sequence[Part]) -> list[str]:
    return [part.names[0] for part in parts]


def _share_alone(timeline: Timeline) -> float:
    """Share of the time in which one worker computes and no other does."""
    changes = sorted(
        (time, change)
        for spans in timeline.workers
        for span in spans
        for time, change in ((span.begin, 1), (span.end, -1))
    )
    alone, running, before = 0.0, 0, 0.0
    for time, change in changes:
        alone += (time - before) * (running == 1)
        running, before = running + change, time
    return alone / timeline.seconds if timeline.seconds else 0.0
