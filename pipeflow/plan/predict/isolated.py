"""Gradient-isolated parts: a worker or several for each, or several parts on a worker where there are fewer workers."""

import math
from collections.abc import Sequence

from pipeflow.config import Config
from pipeflow.flow import Part
from pipeflow.flow.balance import owners_of
from pipeflow.plan.predict.cuts import Cut
from pipeflow.plan.predict.data_parallel import seconds_until_reduced
from pipeflow.plan.predict.finetune import Finetune, predict_finetune, run_seconds
from pipeflow.plan.predict.prediction import Prediction
from pipeflow.plan.predict.programs import PartCosts, local_programs
from pipeflow.plan.predict.scenario import Scenario
from pipeflow.plan.traffic import latent_bytes, phase_link_bytes, replica_bytes
from pipeflow.training.schedule import Phase, Schedule

Turn = tuple[int, ...]
"""The parts that train on a batch."""


class IsolatedParts:
    """Predicts the schedules of one scenario; a turn that several schedules share is simulated once."""

    def __init__(self, scenario: Scenario):
        self._scenario = scenario
        self._epochs: dict[tuple[tuple[str, ...], Turn, int], tuple[float, float]] = {}
        self._finetunes: dict[tuple[str, tuple[str, ...], int], Finetune] = {}

    def predict(self, mode: str, cut: Cut, replicas: int = 1, finetune: str | None = None) -> Prediction:
        """A schedule with `replicas` workers on each part; seconds and bytes are the mean over its turns.

        finetune: how end-to-end epochs run, as for `predict_finetune`; None: as configured.
        """
        scenario, parts = self._scenario, cut.parts
        turns = [tuple(range(len(parts)))] if mode == "concurrent" else [(part,) for part in range(len(parts))]
        owners = self._owners(parts)
        by_turn = {turn: self._epoch(cut, owners, turn, replicas) for turn in turns}
        seconds = sum(seconds for seconds, _ in by_turn.values()) / len(turns)
        busy = sum(busy for _, busy in by_turn.values()) / len(turns)
        phases = [self._phase(turn) for turn in turns]
        sent = sum(self._link_bytes(phase, parts, owners, replicas) for phase in phases) / len(turns)
        sent += sum(replica_bytes(phase, parts, replicas) for phase in phases) / len(turns)
        then = self._finetune(finetune or scenario.config.finetune.parallel, cut, owners, replicas)
        by_turn_seconds = {turn: each[0] for turn, each in by_turn.items()}
        num_owners, num_micro = max(owners) + 1, scenario.micro_batches(scenario.batch_size / replicas)
        return scenario.predict(
            mode,
            Cut(f"{cut.name} x {replicas}" if replicas > 1 else cut.name, parts),
            seconds=seconds,
            sent=sent,
            memory=max(self._memory(parts, owners, replicas), then.memory),
            idle=1 - busy / (num_owners * seconds),
            workers=num_owners * replicas,
            replicas=replicas,
            micro_batches=num_micro if num_micro > 1 else None,
            finetune=then.name,
            run=self._run(mode, parts, owners, replicas, by_turn_seconds, then),
        )

    def _owners(self, parts: Sequence[Part]) -> list[int]:
        """Worker of each part, as a run spreads them."""
        workers = self._scenario.machines.workers
        if len(parts) <= workers:
            return list(range(len(parts)))
        return owners_of([max(1, part.multiply_adds()) for part in parts], workers)

    def _epoch(self, cut: Cut, owners: Sequence[int], turn: Turn, replicas: int) -> tuple[float, float]:
        """Seconds, and seconds of computing, of an epoch that trains these parts on every batch."""
        key = cut.starts, turn, replicas
        if key not in self._epochs:
            scenario, costs = self._scenario, self._costs(cut.parts, owners, replicas)
            handling, depth = scenario.machines.handling_seconds, scenario.config.link.depth
            num_micro = scenario.micro_batches(scenario.batch_size / replicas)
            is_averaged = scenario.config.parts.latents == "averaged"
            # A full link is waited for every `depth` batches. Where cores are shared, the filling matters as well.
            period = (2 + (scenario.machines.alone < 1) * len(cut.parts)) * depth
            self._epochs[key] = scenario.epoch(
                lambda num: local_programs(costs, turn, num, handling, num_micro, is_averaged), depth, period
            )
        return self._epochs[key]

    def _costs(self, parts: Sequence[Part], owners: Sequence[int], replicas: int) -> list[PartCosts]:
        """Seconds and bytes of a micro-batch."""
        scenario, dtype = self._scenario, self._scenario.config.link.dtype
        images = scenario.batch_size / replicas
        images /= scenario.micro_batches(images)
        costs = []
        for part, owner in zip(parts, owners):
            work = scenario.work(part, with_head=True)
            # The first replica draws the whole batch, and each makes the noise of all of it.
            drawn = scenario.machines.image_seconds * images * replicas if part is parts[0] else 0
            forward, backward, reducing = work.forward(images), work.backward(images), 0.0
            if replicas > 1:
                reducing = seconds_until_reduced(scenario, part, images, replicas) - forward - backward
            sent = latent_bytes(part, max(1, round(images)), dtype) if part is not parts[-1] else 0
            costs.append(PartCosts(drawn + forward, backward, work.update, sent, owner, reducing=reducing))
        return costs

    def _phase(self, turn: Turn) -> Phase:
        """An epoch of this turn."""
        steps = self._scenario.steps()
        return Phase(epoch=0, mode="concurrent", steps=steps, turns=(turn,), turn_steps=steps)

    def _link_bytes(self, phase: Phase, parts: Sequence[Part], owners: Sequence[int], replicas: int) -> int:
        """Bytes over all links between workers in a phase."""
        scenario, batch_size = self._scenario, self._scenario.batch_size
        messages = replicas * scenario.micro_batches(batch_size / replicas)
        counts = phase_link_bytes(phase, parts, batch_size, scenario.config.link.dtype, messages)
        return sum(count for count, owner, other in zip(counts, owners, owners[1:]) if owner != other)

    def _memory(self, parts: Sequence[Part], owners: Sequence[int], replicas: int) -> float:
        """Bytes of the fullest worker: one part's activations at a time, and `link.depth` latents at each end of a link."""
        scenario, link = self._scenario, self._scenario.config.link
        share = math.ceil(scenario.batch_size / replicas)
        num_images = math.ceil(share / scenario.micro_batches(share))
        fullest = 0.0
        for worker in range(max(owners) + 1):
            own = [part for part, owner in zip(parts, owners) if owner == worker]
            first, last = own[0].index, own[-1].index
            waiting = link.depth * latent_bytes(parts[first - 1], num_images, link.dtype) if first else 0
            waiting += link.depth * latent_bytes(parts[last], num_images, link.dtype) if last < len(parts) - 1 else 0
            kept = max(scenario.counts.activations.of(part).at(num_images) for part in own)
            fullest = max(fullest, scenario.memory(own, kept, waiting))
        return fullest

    def _finetune(self, how: str, cut: Cut, owners: Sequence[int], replicas: int) -> Finetune:
        key = how, cut.starts, replicas
        if key not in self._finetunes:
            self._finetunes[key] = predict_finetune(self._scenario, how, cut, owners, replicas)
        return self._finetunes[key]

    def _run(
        self, mode: str, parts: Sequence[Part], owners: Sequence[int], replicas: int, by_turn: dict[Turn, float],
        then: Finetune,
    ) -> tuple[float, float]:  # fmt: skip
        """Seconds and bytes of all epochs of this schedule with these parts, the gather and fine-tuning included."""
        scenario = self._scenario
        schedule = {**scenario.config.to_dict()["schedule"], "mode": mode}
        config = Config.from_dict({"schedule": schedule})
        seconds, sent = 0.0, 0.0
        for phase in Schedule(config, len(parts), scenario.steps()).phases():
            if phase.is_local:
                for turn, of_epoch in by_turn.items():
                    seconds += of_epoch * phase.count_training(turn[-1]) / phase.steps
                sent += self._link_bytes(phase, parts, owners, replicas) + replica_bytes(phase, parts, replicas)
            else:
                sent += then.bytes
        return seconds + run_seconds(scenario, then), sent + then.moved
