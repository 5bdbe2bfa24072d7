"""A process that decodes image files: their contents go in, their pixels come out.

It is a program of its own and no fork of a worker, which has threads and connections that no copy of it may hold, and no
process of `multiprocessing`, which would run the user's script once more. It imports no torch, and ends when the worker
does, however that ends.
"""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import IO, Any

import numpy as np

from pipeflow.data import picture
from pipeflow.data.picture import Conversion
from pipeflow.errors import DataError

PIPE_BYTES = 1_048_576
"""Bytes that may wait in a pipe, where the system allows so many: each time that it is full or empty somebody waits."""

Decoded = tuple[np.ndarray, bool] | Exception
"""The result of `picture.decode`, or the error that it raises."""


def decode_all(contents: Sequence[bytes], conversion: Conversion) -> list[Decoded]:
    """Decodes files up to the first that cannot be, whose error is the last entry. conversion: as for `picture.decode`."""
    decoded: list[Decoded] = []
    for content in contents:
        try:
            decoded.append(picture.decode(content, conversion))
        except Exception as error:  # a broken file can make a decoder raise anything
            return [*decoded, error]
    return decoded


class DecoderProcess:
    """The process, as the worker sees it.

    Raises:
        DataError: it cannot be started, or is lost.
    """

    def __init__(self) -> None:
        # With the worker's own search path it finds the same pipeflow.
        program = f"import sys; sys.path[:] = {sys.path!r}; from pipeflow.data.decoder import main; main()"
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pipesize=PIPE_BYTES,
                process_group=0,  # Ctrl-C in a terminal is for the worker
            )
        except OSError as error:
            raise DataError(f"a process that decodes images cannot be started ({error.strerror}).") from None

    def decode_all(self, contents: Sequence[bytes], conversion: Conversion) -> list[Decoded]:
        """As the function `decode_all`, over there."""
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None
        try:
            _send(requests, {"sizes": list(map(len, contents)), "conversion": asdict(conversion)}, contents)
            head = json.loads(answers.readline())
            places = list(itertools.accumulate((math.prod(each.get("shape", [0])) for each in head), initial=0))
            content = memoryview(answers.read(places[-1]))
            decoded: list[Decoded] = []
            for each, start, end in zip(head, places, places[1:]):
                if "error" in each:
                    kind = picture.NotUsable if each["is_picture"] else ValueError
                    decoded.append(kind(each["error"]))
                else:
                    pixels = np.frombuffer(content[start:end], np.uint8).reshape(each["shape"])
                    decoded.append((pixels, each["is_converted"]))
        except (OSError, ValueError):
            self._process.kill()  # if it lives, it has not answered as it should
            code = self._process.wait()
            raise DataError(
                f"a process that decodes images was lost (exit code {code}); the machine may be short of memory."
            ) from None
        return decoded

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


def main() -> None:
    """Decodes what comes over standard input until that ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while line := requests.readline():
        request = json.loads(line)
        contents = [requests.read(size) for size in request["sizes"]]
        head: list[dict[str, Any]] = []
        pixels = []
        for each in decode_all(contents, Conversion(**request["conversion"])):
            if isinstance(each, Exception):
                head.append({"error": str(each), "is_picture": isinstance(each, picture.NotUsable)})
            else:
                pixels.append(each[0].tobytes())
                head.append({"shape": each[0].shape, "is_converted": each[1]})
        _send(answers, head, pixels)


def _send(stream: IO[bytes], head: object, contents: Sequence[bytes]) -> None:
    stream.write(b"".join([json.dumps(head).encode(), b"\n", *contents]))
    stream.flush()
