"""A timeline of several workers as a file for a viewer."""

import json
from collections.abc import Sequence
from pathlib import Path

_THREADS = {"load": "images", "receive": "link in", "compute": "computing", "wait": "computing", "send": "link out"}


def write_trace(spans: Sequence[Sequence[Sequence]], path: Path) -> None:
    """A Chrome trace, which ui.perfetto.dev and chrome://tracing open: a process a worker, a thread a kind of work."""
    begin = min((span[2] for worker in spans for span in worker), default=0)
    threads = list(dict.fromkeys(_THREADS.values()))
    events: list[dict] = []
    for rank, worker in enumerate(spans):
        events.append({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"worker {rank}"}})
        for number, thread in enumerate(threads):
            events.append({"ph": "M", "name": "thread_name", "pid": rank, "tid": number, "args": {"name": thread}})
        for kind, name, start, length in worker:
            events.append(
                {
                    "ph": "X",
                    "cat": kind,
                    "name": name,
                    "pid": rank,
                    "tid": threads.index(_THREADS[kind]),
                    "ts": (start - begin) / 1e3,
                    "dur": length / 1e3,
                }
            )
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
