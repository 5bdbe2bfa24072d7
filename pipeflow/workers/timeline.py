"""A recording of what a worker does over a few batches: computing, waiting, sending, receiving, loading.

Off, a span is one shared object that does nothing. Spans hold wall-clock times of the CPU; what a GPU computes is timed by
events on its stream, which are read only when the recording is over.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch

from pipeflow.config import TimelineConfig

COMPUTE, WAIT, SEND, RECEIVE, LOAD = "compute", "wait", "send", "receive", "load"

_NOTHING = nullcontext()


class Span(NamedTuple):
    """One bar of the recording."""

    kind: str
    """One of the five above."""
    name: str
    begin: int
    """Wall-clock time, in nanoseconds."""
    length: int
    """In nanoseconds."""


class Timeline:
    """Spans of one worker, from all its threads."""

    def __init__(self, config: TimelineConfig, device: torch.device):
        self._first = config.first_step
        self._end = config.first_step + config.steps
        self._epoch = config.epoch if config.steps > 0 else -1
        self._device = device
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        self._on_gpu: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._anchor: tuple[torch.cuda.Event, int] | None = None
        """An event on the GPU's stream and its wall-clock time: GPU times are measured from it."""
        self.is_recording = False

    def wanted(self, epoch: int) -> bool:
        """Whether this epoch has batches to record."""
        return epoch == self._epoch

    def at(self, epoch: int, step: int) -> None:
        """Marks the beginning of a batch, which switches the recording on or off."""
        if epoch != self._epoch:
            return
        recording = self._first <= step < self._end
        if recording and self._anchor is None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self._anchor = (_record_event(), time.time_ns())
        self.is_recording = recording

    def span(self, kind: str, name: str) -> AbstractContextManager[None]:
        """Times the block. kind: one of the five above; name: written on the bar."""
        return self._record(kind, name) if self.is_recording else _NOTHING

    @contextmanager
    def _record(self, kind: str, name: str) -> Iterator[None]:
        on_gpu = kind == COMPUTE and self._device.type == "cuda"
        first_event = _record_event() if on_gpu else None
        begin = time.time_ns()
        try:
            yield
        finally:
            if first_event is not None:
                self._on_gpu.append((name, first_event, _record_event()))
            else:
                with self._lock:
                    self._spans.append(Span(kind, name, begin, time.time_ns() - begin))

    def finish(self) -> list[Span]:
        """Ends the recording; its spans in the order of their beginnings."""
        self.is_recording = False
        with self._lock:
            spans, self._spans = self._spans, []
        if self._anchor is not None:
            torch.cuda.synchronize(self._device)
            anchor, anchored_at = self._anchor
            for name, first, last in self._on_gpu:
                begin = anchored_at + round(1e6 * anchor.elapsed_time(first))
                spans.append(Span(COMPUTE, name, begin, round(1e6 * first.elapsed_time(last))))
            self._on_gpu = []
        return sorted(spans, key=lambda span: span.begin)


def _record_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
