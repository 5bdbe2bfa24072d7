"""What a worker does when, over a few batches: computing, waiting, sending, receiving, loading.

Off, a span is one shared object that does nothing. Recorded are the wall-clock times of the CPU; what a GPU computes is
timed by events on its stream, and looked at only when the recording is over.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from pipeflow.config import TimelineConfig

COMPUTE, WAIT, SEND, RECEIVE, LOAD = "compute", "wait", "send", "receive", "load"

_NOTHING = nullcontext()


class Timeline:
    """Spans of one worker, from all its threads."""

    def __init__(self, config: TimelineConfig, device: torch.device):
        self._first = config.first_step
        self._end = config.first_step + config.steps
        self._epoch = config.epoch if config.steps > 0 else -1
        self._device = device
        self._lock = threading.Lock()
        self._spans: list[tuple[str, str, int, int]] = []
        self._on_gpu: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._anchor: tuple[torch.cuda.Event, int] | None = None
        self.is_recording = False

    def wanted(self, epoch: int) -> bool:
        """Whether this epoch has batches to record."""
        return epoch == self._epoch

    def at(self, epoch: int, step: int) -> None:
        """A batch begins: switches the recording on and off."""
        if epoch != self._epoch:
            return
        recording = self._first <= step < self._end
        if recording and self._anchor is None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._anchor = (event, time.time_ns())
        self.is_recording = recording

    def span(self, kind: str, name: str) -> AbstractContextManager:
        """Times what happens inside it. kind: one of the five above; name: what is written on the bar."""
        return self._record(kind, name) if self.is_recording else _NOTHING

    @contextmanager
    def _record(self, kind: str, name: str) -> Iterator[None]:
        on_gpu = kind == COMPUTE and self._device.type == "cuda"
        if on_gpu:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
        start = time.time_ns()
        try:
            yield
        finally:
            if on_gpu:
                events[1].record()
                self._on_gpu.append((name, *events))
            else:
                with self._lock:
                    self._spans.append((kind, name, start, time.time_ns() - start))

    def take(self) -> list[list]:
        """`[kind, name, start, length]`, in nanoseconds, and ends the recording."""
        self.is_recording = False
        if self._anchor is not None:
            torch.cuda.synchronize(self._device)
            anchor, begin = self._anchor
            for name, start, end in self._on_gpu:
                at = begin + round(1e6 * anchor.elapsed_time(start))
                self._spans.append((COMPUTE, name, at, round(1e6 * start.elapsed_time(end))))
        with self._lock:
            spans, self._spans = self._spans, []
        return [list(span) for span in sorted(spans, key=lambda span: span[2])]
