"""The record of one prediction: a way to use the machines, and what it takes."""

from dataclasses import dataclass

MODES = ("concurrent", "alternate", "sequential")
"""Schedules of gradient-isolated parts."""
PIPELINES = ("gpipe", "1f1b")
"""Pipelines that train the whole flow end to end."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One way to use the machines, with seconds and bytes of an epoch."""

    system: str
    """end_to_end, concurrent, alternate, sequential, gpipe, 1f1b, ddp, or `ddp, batch a worker`."""
    cut: str
    """`balanced 3`, ...; empty where the flow is not cut."""
    parts: int
    replicas: int
    """Workers of each part."""
    workers: int
    """Workers that have something to do."""
    batch_size: int
    micro_batches: int | None
    """Slices in which a batch is taken; None where it is taken whole."""
    seconds: float
    """Seconds of an epoch's training."""
    bytes: float
    """Bytes sent between workers in an epoch, all together."""
    memory: float
    """Bytes that the fullest worker holds at most; with fine-tuning in a pipeline, in all epochs."""
    idle: float
    """Share of these workers' time in which they do not compute."""
    largest_part: float
    """Largest part's share of the multiply-adds: 1 / this bounds the speed-up of parts."""
    finetune: str
    """How the end-to-end epochs behind local ones run: single, ddp, or in a pipeline, such as `gpipe x16`; else empty."""
    run_seconds: float
    """Seconds of all the configured epochs, fine-tuning and the gather included."""
    run_bytes: float
    """Bytes sent between workers in the same."""
    fits: bool

    @property
    def trains_all(self) -> bool:
        """Whether every batch updates every part, so that epochs compare."""
        return self.system not in ("alternate", "sequential")

    @property
    def is_comparable(self) -> bool:
        """Whether it makes the same number of updates an epoch as end to end on one worker."""
        return self.trains_all and self.system != "ddp, batch a worker"

    @property
    def is_ours(self) -> bool:
        """Whether it trains gradient-isolated parts."""
        return self.system in MODES

    def describe(self) -> str:
        """`concurrent, balanced 3, then gpipe x16` or `gpipe, blocks, 16 micro-batches`."""
        if self.system == "end_to_end":
            return "end to end on one worker"
        micro = f", {self.micro_batches} micro-batches" if self.micro_batches else ""
        then = f", then {self.finetune}" if self.finetune not in ("", "single") else ""
        return f"{self.system}{', ' * bool(self.cut)}{self.cut}{micro}{then}"
