"""Bytes, counted where they are sent: numel x element size, without asking the device."""

import threading
from collections import Counter

_TRAINING = ("latents", "gradients", "pipeline latents", "latent gradients")


class Traffic:
    """Bytes that this worker has sent, by kind, source and target: parts for latents, ranks for all else."""

    def __init__(self) -> None:
        self.training = 0
        """Bytes of latents and gradients, of pipelines too, so far, for the progress display."""
        self._counts: Counter[tuple[str, int, int]] = Counter()
        self._lock = threading.Lock()

    def add(self, kind: str, source: int, target: int, num_bytes: int) -> None:
        """Counts a payload, once, where it is sent."""
        with self._lock:
            self._counts[kind, source, target] += num_bytes
            if kind in _TRAINING:
                self.training += num_bytes

    def drain(self) -> list[tuple[str, int, int, int]]:
        """`(kind, source, target, bytes)` since the last call."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return [(*key, num_bytes) for key, num_bytes in sorted(counts.items())]
