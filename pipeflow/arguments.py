"""Readers of values on the command line, as argparse's `type=`: each raises ArgumentTypeError for what it cannot read."""

import argparse
import math
import os
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def at_least(least: Number, kind: Callable[[str], Number]) -> Callable[[str], Number]:
    """A reader of finite numbers that are not below `least`."""

    def read(text: str) -> Number:
        try:
            number = kind(text)
        except ValueError:
            number = None
        if number is None or not least <= number < math.inf:
            wanted = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {wanted}, {least} or more, got {text!r}")
        return number

    return read


def png_or_npy(text: str) -> str:
    """The path of a PNG or .npy file."""
    return os.path.expanduser(text) if text.lower().endswith(".npy") else png(text)


def png(text: str) -> str:
    """The path of a PNG file."""
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"expected a file name that ends in .png, got {text!r}")
    return os.path.expanduser(text)
