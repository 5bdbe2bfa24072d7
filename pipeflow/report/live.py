"""`pipeflow report --live`: the page of runs that go on, served on this machine alone.

The page asks every five seconds whether a file of the runs has changed, and loads itself anew if one has.
"""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pipeflow.errors import PipeflowError
from pipeflow.report.page import render
from pipeflow.report.runs import find_runs, read_runs

ADDRESS, PORT = "127.0.0.1", 8600
_FILES = ("summary.json", "metrics.jsonl", "timeline.json", "config.yaml", "samples")


class Live(ThreadingHTTPServer):
    """Serves the page of some runs, or of all below `runs/` where none is named."""

    daemon_threads = True

    def __init__(self, run_dirs: Sequence[str | Path], port: int = PORT):
        """port: another one is taken where something else listens there; 0: any."""
        self._run_dirs = [Path(run_dir) for run_dir in run_dirs]
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError:
            super().__init__((ADDRESS, 0), _Handler)
        self._render = lru_cache(maxsize=1)(lambda stamp: render(read_runs(self.run_dirs()), stamp))

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def run_dirs(self) -> list[Path]:
        """The folders of the runs as they are now. Raises CheckpointError where there are none."""
        return self._run_dirs or find_runs()

    def stamp(self) -> str:
        """Another text whenever a file that the page is made of is another one."""
        seen = hashlib.sha256()
        for folder in self.run_dirs():
            for name in _FILES:
                path = folder / name
                known = os.stat(path) if path.exists() else None
                seen.update(repr((str(path), known and (known.st_mtime_ns, known.st_size))).encode())
        return seen.hexdigest()

    def page(self) -> str:
        """The page as of now."""
        return self._render(self.stamp())


class _Handler(BaseHTTPRequestHandler):
    server: Live

    def do_GET(self) -> None:
        # A page of another site may point a name of its own at this machine; its requests still carry that name.
        if self.headers.get("Host") not in (
            f"{ADDRESS}:{self.server.server_port}",
            f"localhost:{self.server.server_port}",
        ):
            self.send_error(403)
            return
        answers = {"/": (self.server.page, "text/html"), "/stamp": (self.server.stamp, "text/plain")}
        if self.path not in answers:
            self.send_error(404)
            return
        answer, kind = answers[self.path]
        try:
            body, status = answer().encode(), 200
        except PipeflowError as error:
            body, status, kind = str(error).encode(), 503, "text/plain"
        with contextlib.suppress(ConnectionError):  # a browser that loads the page anew leaves its last request
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing of each request."""


def serve(run_dirs: Sequence[str | Path]) -> None:
    """Serves the page until Ctrl-C."""
    with Live(run_dirs) as live:
        read_runs(live.run_dirs())
        print(f"{live.address}  (Ctrl-C ends it)", flush=True)
        live.serve_forever()
