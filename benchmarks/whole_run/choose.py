"""What the planner says before anything is measured: the setting of each row, and the seconds that its whole run will take.

A setting of pipeflow's is the cut, the type of the latents and, for end-to-end epochs in a pipeline, its schedule, its
micro-batches and the type of its gradients: those with which the planner predicts the quickest whole run. Fewer bits are
taken only where they are quicker by more than the share that the planner calls equal.
"""

import dataclasses
import itertools
from collections.abc import Iterator

from benchmarks.links.systems import LOCAL_PERIOD
from benchmarks.whole_run.systems import ONE, Setting, System
from pipeflow.config import Config
from pipeflow.plan import make_plan
from pipeflow.plan.predict.cuts import Cut
from pipeflow.plan.predict.machines import Machines
from pipeflow.plan.predict.pipelines import Wire
from pipeflow.plan.predict.prediction import PIPELINES
from pipeflow.plan.predict.predictor import Predictor
from pipeflow.plan.predict.recommend import CLOSE

TYPES = [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16"), ("int8", "bfloat16")]
"""Of latents and of their gradients in a pipeline, the plainest first."""
_BFLOAT16 = Wire("bfloat16", "bfloat16")
_FEWER_BYTES = {"ddp_bf16": 2.0, "ddp_powersgd": 12.0, "local_sgd": LOCAL_PERIOD}
"""By what factor rivals that the planner does not know send less than plain DDP: for estimates only."""


class Planner:
    """Predictions for one configuration on workers that were probed, with links of one rate."""

    def __init__(self, config: Config, machines: Machines, micro_batches: list[int]):
        """micro_batches: numbers of them that pipelines may have."""
        self.machines = machines
        self._plan = make_plan(config)
        self._first = Predictor(self._plan, machines)
        self._micro_batches = micro_batches

    def choose(self, system: System) -> tuple[Setting, float]:
        """The setting of a row by parts, and the seconds that are predicted for it."""
        quickest = []
        for latents, gradients in TYPES:
            found = [
                (self._seconds(system, setting, cut), setting)
                for setting, cut in self._settings(system, latents, gradients)
            ]
            quickest.append(min(found, key=lambda each: each[0]))
        least = min(seconds for seconds, _ in quickest)
        seconds, setting = next(each for each in quickest if each[0] <= least * (1 + CLOSE))
        return setting, seconds

    def predict(self, system: System, setting: Setting) -> float | None:
        """Predicted seconds of a rival's whole run; None where the planner does not know it."""
        if system.name == ONE:
            return self._first.end_to_end().run_seconds
        if system.is_pipeline:
            wire = _BFLOAT16 if system.compress == "bf16" else Wire()
            num = int(setting.options["micro_batches"])
            return self._first.pipeline_at(system.schedule, self._first.cuts()[0], num, wire).run_seconds
        return self._first.data_parallel()[0].run_seconds if system.name == "ddp" else None

    def estimate(self, system: System) -> float:
        """About what a rival takes: predicted, or DDP's over links that are faster by what the rival saves."""
        if system.name not in _FEWER_BYTES:
            tried = (
                [Setting({"micro_batches": num}) for num in self._micro_batches] if system.is_pipeline else [Setting()]
            )
            return min(self.predict(system, setting) for setting in tried)
        factor = _FEWER_BYTES[system.name]
        speeds = {
            name: None if (speed := getattr(self.machines, name)) is None else factor * speed
            for name in ("bandwidth", "reduce_bandwidth")
        }
        faster = Predictor(self._plan, dataclasses.replace(self.machines, **speeds), shared=self._first)
        return faster.data_parallel()[0].run_seconds

    def _settings(self, system: System, latents: str, gradients: str) -> Iterator[tuple[Setting, Cut]]:
        """All settings with these types, each with its cut."""
        for cut in self._first.cuts():
            if len(cut.parts) < self.machines.workers:
                continue
            options = {"parts.split": ",".join(cut.starts[1:]), "parts.num": len(cut.parts), "link.dtype": latents}
            if system.finetune != "pipeline":
                yield Setting(options), cut
                continue
            for kind, num in itertools.product(PIPELINES, self._micro_batches):
                if kind == "gpipe" or num >= len(cut.parts):  # torch's 1F1B needs a micro-batch for each stage
                    pipeline = {"schedule": kind, "micro_batches": num, "gradient_dtype": gradients}
                    yield Setting({**options, **{f"finetune.{name}": value for name, value in pipeline.items()}}), cut

    def _seconds(self, system: System, setting: Setting, cut: Cut) -> float:
        """Predicted seconds of a whole run by parts."""
        sections = self._plan.config.to_dict()
        sections["finetune"]["parallel"] = system.finetune
        for name, value in setting.options.items():
            section, option = name.split(".")
            if section != "parts":  # the cut is made already
                sections[section][option] = value
        plan = dataclasses.replace(self._plan, config=Config.from_dict(sections))
        return Predictor(plan, self.machines, shared=self._first).local("concurrent", cut).run_seconds


def at_rate(machines: Machines, rate: float | None) -> Machines:
    """Probed workers on links of this rate, in Mbit/s; None: on those that were probed."""
    if rate is None:
        return machines
    measured = tuple(name for name in machines.faster_than_measured if name not in ("bandwidth", "reduce_bandwidth"))
    return dataclasses.replace(machines, bandwidth=1e6 * rate, reduce_bandwidth=None, faster_than_measured=measured)
