"""One flow at one batch size on one description of machines: what its predictions are computed from."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeflow.flow import Part
from pipeflow.plan.plan import Plan
from pipeflow.plan.predict.cuts import Cut, Cuts
from pipeflow.plan.predict.machines import Machines
from pipeflow.plan.predict.memory import Activations, copied_bytes, trained_bytes
from pipeflow.plan.predict.prediction import Prediction
from pipeflow.plan.predict.simulate import Operation, SimulatedLink, SimulatedTimeline, simulate
from pipeflow.plan.predict.work import Work, layer_work
from pipeflow.plan.traffic import gather_bytes, gradient_bytes


class FlowCounts:
    """Bytes and multiply-adds of a plan's flow, which no machine changes: each is counted once, by first and last layer."""

    def __init__(self, plan: Plan):
        self._config = plan.config
        self.activations = Activations(plan.flow, plan.config.memory.activations)
        self.cuts = Cuts(plan)
        (self.whole,) = self.cuts.split([])
        self._counted: dict[tuple[str, ...], int] = {}

    def multiply_adds(self, part: Part) -> int:
        """Multiply-adds of a forward of one image."""
        return self._once("multiply-adds", [part], part.multiply_adds)

    def gathered_bytes(self, part: Part) -> int:
        """Bytes that the gather sends of a trained part."""
        ema = self._config.optim.ema > 0
        return self._once("gathered", [part], lambda: sum(gather_bytes([part], [1], {part.index}, ema).values()))

    def gradient_bytes(self, workers: int, steps: int) -> int:
        """Bytes that data-parallel workers send to average the whole flow's gradients."""
        of_two = self._once("gradients", [self.whole], lambda: gradient_bytes([self.whole], 2, 1))
        return of_two * (workers - 1) * steps

    def replica_bytes(self, part: Part, replicas: int) -> int:
        """Bytes that a part's replicas send to average its gradients once, without its head."""
        return (replicas - 1) * self._once("replicas", [part], lambda: gradient_bytes([part], 2, 1))

    def resident_bytes(self, parts: Sequence[Part]) -> int:
        """Bytes that a worker of these parts always holds, with a checkpoint's copy where its memory is the host's."""

        def count() -> int:
            ema = self._config.optim.ema > 0
            return trained_bytes(parts, ema) + (copied_bytes(parts, ema) if self._config.run.device == "cpu" else 0)

        return self._once("resident", parts, count)

    def _once(self, what: str, parts: Sequence[Part], count: Callable[[], int]) -> int:
        key = what, parts[0].names[0], parts[-1].names[-1]
        if key not in self._counted:
            self._counted[key] = count()
        return self._counted[key]


class Scenario:
    """A plan on machines, at a batch size."""

    def __init__(self, plan: Plan, machines: Machines, batch_size: int, counts: FlowCounts):
        self.plan = plan
        self.config = plan.config
        self.machines = machines
        self.batch_size = batch_size
        self.counts = counts
        self.layers = layer_work(plan.flow, machines, plan.config.memory.activations)

    def steps(self, batch_size: int | None = None) -> int:
        """Batches in an epoch, at the scenario's own batch size if none is given."""
        return max(1, self.plan.num_train // (batch_size or self.batch_size))

    def micro_batches(self, num_images: float) -> int:
        """Slices in which a worker of ours takes so many images of a batch: `memory.micro_batches`, or one an image."""
        return max(1, min(self.config.memory.micro_batches, int(num_images)))

    def work(self, part: Part, with_head: bool = False) -> Work:
        """Seconds of a part's layers; those of its head are told from the last layer that has multiply-adds."""
        layers = [self.layers[name] for name in part.names]
        macs = part.head_multiply_adds() if with_head else 0
        counted = [index for index, count in enumerate(part.layer_multiply_adds()) if count] if macs else []
        if counted:
            last = layers[counted[-1]]
            share = last.share * macs / part.layer_multiply_adds()[counted[-1]]
            layers.append(replace(last, share=share, update=0.0))
        return Work(layers)

    def memory(self, parts: Sequence[Part], kept: float, waiting: float) -> float:
        """Bytes of a worker that holds these parts, keeps this much for backwards, and has this much waiting at links."""
        return self.counts.resident_bytes(parts) + kept + waiting

    def epoch(
        self, programs: Callable[[int], list[list[Operation]]], depth: int | None, period: int, meets: bool = False
    ) -> tuple[float, float]:
        """Seconds of an epoch's batches, and seconds of computing in them, all workers together.

        Three periods of batches are simulated; each period after the second takes as long as the one before it.
        `programs(num)` gives the workers' programs for a number of batches; `depth` messages may wait at an end of a link;
        `meets`: see `SimulatedLink`.
        """
        steps, link = self.steps(), SimulatedLink(self.machines.bytes_per_second, self.machines.latency, depth, meets)
        if steps <= 3 * period:
            return self._on_shared_cores(simulate(programs(steps), link))
        timeline = simulate(programs(3 * period), link)
        # A later batch delays no earlier one: the first two periods are the same as if nothing came after them.
        before, busy_before = self._on_shared_cores(timeline.first(2 / 3))
        after, busy_after = self._on_shared_cores(timeline)
        more = (steps - 3 * period) / period
        return after + more * (after - before), busy_after + more * (busy_after - busy_before)

    def _on_shared_cores(self, timeline: SimulatedTimeline) -> tuple[float, float]:
        """Seconds in all and of computing; a worker is faster while its neighbours on the same cores rest."""
        alone = self.machines.alone
        saved = (1 - alone) * timeline.share_alone() if alone < 1 else 0.0
        return timeline.seconds * (1 - saved), sum(timeline.busy()) * (1 - saved)

    def predict(
        self, system: str, cut: Cut, *, seconds: float, sent: float, memory: float, idle: float, workers: int,
        replicas: int = 1, micro_batches: int | None = None, batch_size: int | None = None,
        run: tuple[float, float] | None = None, finetune: str = "",
    ) -> Prediction:  # fmt: skip
        """The record of a prediction. run: seconds and bytes of all configured epochs; without it they are all alike."""
        num_epochs = self.config.num_epochs
        run_seconds, run_bytes = (num_epochs * seconds, num_epochs * sent) if run is None else run
        costs = [self.counts.multiply_adds(part) for part in cut.parts]
        return Prediction(
            system=system,
            cut=cut.name,
            parts=len(cut.parts),
            replicas=replicas,
            workers=workers,
            batch_size=batch_size or self.batch_size,
            micro_batches=micro_batches,
            seconds=seconds,
            bytes=sent,
            memory=memory,
            idle=max(0.0, idle),
            largest_part=max(costs) / max(1, sum(costs)),
            finetune=finetune,
            run_seconds=run_seconds,
            run_bytes=run_bytes,
            fits=memory <= (math.inf if self.machines.memory is None else self.machines.memory),
        )
