"""The timelines of several workers as a file for a viewer."""

import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeflow.workers.control import Control
from pipeflow.workers.timeline import COMPUTE, LOAD, RECEIVE, SEND, WAIT, Span, Timeline

_THREADS = {LOAD: "images", RECEIVE: "link in", COMPUTE: "computing", WAIT: "computing", SEND: "link out"}


def gather_spans(timeline: Timeline, control: Control) -> list[list[Span]]:
    """Ends the recording of all workers; on rank 0 the spans of each, an empty list elsewhere.

    Times are on rank 0's clock, as well as workers on other machines can tell it: all read theirs at about one moment.
    """
    control.share("now", "the timeline")
    here = (socket.gethostname(), time.time_ns())
    everyone = control.gather([*here, timeline.finish()], "the timeline")
    shifts = [0 if host == here[0] else here[1] - now for host, now, _ in everyone]
    return [
        [Span(kind, name, begin + shift, length) for kind, name, begin, length in spans]
        for shift, (_, _, spans) in zip(shifts, everyone)
    ]


def write_trace(workers: Sequence[Sequence[Span]], path: Path) -> None:
    """A Chrome trace for ui.perfetto.dev and chrome://tracing: a process per worker, a thread per kind of work."""
    start = min((span.begin for spans in workers for span in spans), default=0)
    threads = list(dict.fromkeys(_THREADS.values()))
    events: list[dict[str, Any]] = []
    for rank, spans in enumerate(workers):
        events.append({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"worker {rank}"}})
        for number, thread in enumerate(threads):
            events.append({"ph": "M", "name": "thread_name", "pid": rank, "tid": number, "args": {"name": thread}})
        for kind, name, begin, length in spans:
            times = {"ts": (begin - start) / 1e3, "dur": length / 1e3}
            thread_number = threads.index(_THREADS[kind])
            events.append({"ph": "X", "cat": kind, "name": name, "pid": rank, "tid": thread_number, **times})
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
