"""Random numbers that derive from (seed, purpose, position), never from who draws them."""

import zlib

import numpy as np
import torch


def generator(seed: int, purpose: str, *position: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose at one position, usually (epoch, step), of a run.

    Args:
        seed: the run's seed, >= 0.
        purpose: what the numbers are for; different purposes are independent of each other.
        position: any number of integers >= 0.
        device: on which it draws; a GPU draws other numbers than the CPU.
    """
    # The purpose goes in by its CRC because Python's own hash of a string differs from process to process.
    mixed = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), *position))
    return torch.Generator(device).manual_seed(int(mixed.generate_state(1, np.uint64)[0]))
