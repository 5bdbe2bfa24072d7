"""The display of a long decoding: a line that is refreshed on a terminal, a line each tenth elsewhere."""

import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeflow.units import duration_text

PATIENCE_S = 2.0
"""Seconds that nothing is said in: most sources are decoded by then."""


class DecodingProgress:
    """Shows on standard error how many images are decoded. A context.

    Args:
        total: number of images.
        source: where they are from, for the message.
        console: where to show it; standard error when not given.
    """

    def __init__(self, total: int, source: str, console: Console | None = None):
        self._total = total
        self._source = source
        self._console = console or Console(stderr=True)
        self._num = 0
        self._tenths = 0
        self._is_shown = False
        self._began = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> "DecodingProgress":
        return self

    def add(self, num: int) -> None:
        """Counts images that are decoded now."""
        self._num += num
        seconds = time.monotonic() - self._began
        if seconds < PATIENCE_S:
            return
        left = duration_text(seconds / self._num * (self._total - self._num))
        text = Text(f"decoded {self._num:,} of {self._total:,} images of {self._source}, {left} left")
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False, transient=True)
                self._live.start()
            self._live.update(text, refresh=True)
        elif self._tenths < (tenths := 10 * self._num // self._total) < 10 or not self._is_shown:
            self._tenths = tenths
            self._console.print(text, soft_wrap=True)
        self._is_shown = True

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._live is not None:
            self._live.stop()
        if self._is_shown and kind is None:
            seconds = duration_text(time.monotonic() - self._began)
            self._console.print(Text(f"decoded {self._total:,} images of {self._source} in {seconds}"), soft_wrap=True)
