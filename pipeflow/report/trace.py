"""Reads `timeline.json` back: what each worker did when, as far as the page draws it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeflow.errors import CheckpointError
from pipeflow.safe_files import brief, read_json

MOST_SPANS = 3000
"""Spans that the page draws; https://ui.perfetto.dev shows them all."""


@dataclass(frozen=True)
class TracedSpan:
    """One bar; times in milliseconds."""

    kind: str
    name: str
    thread: str
    begin: float
    length: float


def read_trace(path: Path) -> list[list[TracedSpan]]:
    """The first spans of each worker. Raises CheckpointError where the file is none that a run writes."""
    try:
        events = read_json(path)["traceEvents"]
        threads = {(e["pid"], e["tid"]): str(e["args"]["name"]) for e in events if e["name"] == "thread_name"}
        spans = sorted(_spans(events, threads), key=lambda found: found[1].begin)[:MOST_SPANS]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise CheckpointError(f"{path} is damaged ({brief(error, str)}): remove it.") from None
    workers = sorted({worker for worker, _ in spans})
    return [[span for of, span in spans if of == worker] for worker in workers]


def _spans(events: Any, threads: dict[tuple[int, int], str]) -> Iterator[tuple[int, TracedSpan]]:
    for event in events:
        if event["ph"] == "X":
            times = (float(event["ts"]) / 1e3, float(event["dur"]) / 1e3)
            thread = threads[event["pid"], event["tid"]][:50]
            yield int(event["pid"]), TracedSpan(str(event["cat"])[:50], str(event["name"])[:100], thread, *times)
