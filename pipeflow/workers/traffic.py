"""Bytes, counted where they are sent: numel x element size, without asking the device."""

import threading
from collections import Counter

_TRAINING = ("latents", "gradients", "images")


class Traffic:
    """Bytes that this worker has sent, by kind and by where from and to (parts for latents, else ranks)."""

    def __init__(self) -> None:
        self.training = 0
        """Of latents, gradients and images so far: what the progress display shows."""
        self._counts: Counter = Counter()
        self._lock = threading.Lock()

    def add(self, kind: str, source: int, target: int, num_bytes: int) -> None:
        """Counts a payload: called once for each, where it is sent."""
        with self._lock:
            self._counts[kind, source, target] += num_bytes
            if kind in _TRAINING:
                self.training += num_bytes

    def take(self) -> list[list]:
        """`[kind, from, to, bytes]` since the last call."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return [[*key, value] for key, value in sorted(counts.items())]
