"""Random numbers that depend on (seed, purpose, position) alone, never on the worker that draws them."""

import zlib

import numpy as np
import torch


def generator(seed: int, purpose: str, *position: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose at one position, usually (epoch, step), of a run.

    Args:
        seed: the run's seed, >= 0.
        purpose: use of the numbers, such as `order`; the numbers of different purposes are independent.
        position: any number of integers >= 0.
        device: device of the generator; a GPU draws other numbers than the CPU.
    """
    # A CRC stands for the purpose because Python's own hash of a string differs from process to process.
    mixed = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), *position))
    return torch.Generator(device).manual_seed(int(mixed.generate_state(1, np.uint64)[0]))
