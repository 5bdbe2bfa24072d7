"""Seconds, bytes, memory and idle share of an epoch, for every schedule, cut and rival on the machines described.

Rivals on the same workers: a pipeline with gradients (GPipe, 1F1B; the fastest of 2, 4, 8, 16 micro-batches), and data
parallelism with a ring all-reduce, at the same batch in all (`ddp`) and at the same batch a worker (`ddp, batch a worker`,
which makes fewer updates). An epoch of taking turns trains one part: its seconds are the mean over the turns.
Concurrent parts are there a second time where their end-to-end epochs are quicker in another way than as configured.

`memory.activations` counts for all ways alike, and so does, with `run.device: cpu`, the copy that a checkpoint is written
from. Where `parts.balance: time` will cut is not predicted: here cuts are by multiply-adds.
"""

from collections.abc import Sequence

from pipeflow.plan.plan import Plan
from pipeflow.plan.predict.cuts import Cut
from pipeflow.plan.predict.data_parallel import predict_data_parallel, predict_end_to_end
from pipeflow.plan.predict.finetune import QUICKEST
from pipeflow.plan.predict.isolated import IsolatedParts
from pipeflow.plan.predict.machines import Machines
from pipeflow.plan.predict.pipelines import RIVAL_WIRE, Wire, predict_pipeline, predict_pipeline_at
from pipeflow.plan.predict.prediction import MODES, PIPELINES, Prediction
from pipeflow.plan.predict.scenario import FlowCounts, Scenario

_MOST_TURNS = 64
"""Parts up to which taking turns is predicted: each turn is a simulation."""


class Predictor:
    """Predicts one configuration on one description of machines."""

    def __init__(
        self, plan: Plan, machines: Machines, batch_size: int | None = None, shared: "Predictor | None" = None
    ):
        """shared: a predictor of the same plan, whose cuts and counts are taken over."""
        self.plan = plan
        self.machines = machines
        self.batch_size = batch_size or plan.config.optim.batch_size
        self._counts: FlowCounts = shared._counts if shared else FlowCounts(plan)
        self._scenario = Scenario(plan, machines, self.batch_size, self._counts)
        self._isolated = IsolatedParts(self._scenario)

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return self._scenario.steps()

    def cuts(self) -> list[Cut]:
        """The configured cut, balanced ones, by blocks and across blocks, into at most as many parts as workers."""
        return self._counts.cuts.for_workers(self.machines.workers)

    def pipeline_cuts(self) -> list[Cut]:
        """The same for a pipeline, whose balanced cuts count neither heads nor averaged weights."""
        return self._counts.cuts.for_workers(self.machines.workers, are_isolated=False)

    def all(self, modes: Sequence[str] = MODES) -> list[Prediction]:
        """Every way: one worker, parts in these modes, pipelines, data parallelism."""
        found, cuts = [self.end_to_end()], self.cuts()
        for cut in cuts:
            for mode in modes:
                if mode == "concurrent" or len(cut.parts) <= _MOST_TURNS:
                    found.append(self.local(mode, cut))
                if mode == "concurrent":
                    found += self._quicker_finetuning(found[-1], cut)
            for replicas in self._replicas(cut):
                configured = replicas == self.plan.config.parts.replicas
                found += [self.local(mode, cut, replicas) for mode in modes if mode == "concurrent" or configured]
        if self.machines.workers > 1:
            with_a_worker_each = [cut for cut in self.pipeline_cuts() if len(cut.parts) <= self.machines.workers]
            found += [self.pipeline(kind, cut) for kind in PIPELINES for cut in with_a_worker_each]
            found += self.data_parallel()
        return found

    def end_to_end(self) -> Prediction:
        """The whole flow on one worker."""
        return predict_end_to_end(self._scenario)

    def local(self, mode: str, cut: Cut, replicas: int = 1, finetune: str | None = None) -> Prediction:
        """Isolated parts: `replicas` workers each, or as a run spreads them where there are fewer workers.

        finetune: how the end-to-end epochs behind them run, as for `predict_finetune`; None: as configured.
        """
        return self._isolated.predict(mode, cut, replicas, finetune)

    def pipeline(self, kind: str, cut: Cut) -> Prediction:
        """An end-to-end pipeline, at the number of micro-batches at which it is fastest."""
        return predict_pipeline(self._scenario, kind, cut)

    def pipeline_at(self, kind: str, cut: Cut, num_micro: int, wire: Wire = RIVAL_WIRE) -> Prediction:
        """An end-to-end pipeline with this many micro-batches. wire: what travels in it."""
        return predict_pipeline_at(self._scenario, kind, cut, num_micro, wire)

    def data_parallel(self) -> list[Prediction]:
        """The whole flow on several workers: at the same batch in all, and at the same batch a worker."""
        return predict_data_parallel(self._scenario)

    def _quicker_finetuning(self, configured: Prediction, cut: Cut) -> list[Prediction]:
        """The same parts with other end-to-end epochs behind them, where those are quicker than as configured."""
        found = self.local(configured.system, cut, finetune=QUICKEST)
        return [found] if found.run_seconds < configured.run_seconds else []

    def _replicas(self, cut: Cut) -> list[int]:
        """Workers that a part may have beside one: as many as there are workers for, and as configured."""
        most = min(self.machines.workers // len(cut.parts), self.batch_size)
        configured = self.plan.config.parts.replicas if cut.parts is self.plan.parts else 1
        return sorted({num for num in (most, configured) if 1 < num <= most})
