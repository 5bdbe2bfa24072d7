"""What `summary.json`, `metrics.jsonl` and a manifest hold, as data, to check them by where they are read.

A kind is a function that tells whether a value is one; a list of one kind, for a list of any length; a dictionary of
fields, which a mapping must have beside any others; an `Each`, for a mapping with any names; an `Optional`, an `IfThere`.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeflow.config import FINETUNE
from pipeflow.safe_files import brief

_PHASES = ("concurrent", "alternate", "sequential", *FINETUNE)
_LARGEST = 1e24
"""Multiply-adds of more than a run of years."""


@dataclass(frozen=True)
class Optional:
    """The kind, or null, or not there."""

    kind: Any


@dataclass(frozen=True)
class IfThere:
    """A field that may be missing, but if it is there is of the kind."""

    kind: Any


@dataclass(frozen=True)
class Each:
    """A mapping from names, all among `names` where they are given, to values of a kind."""

    kind: Any
    names: tuple[str, ...] | None = None


def count(value: Any) -> bool:
    """A number that is 0 or more: bytes, seconds, multiply-adds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LARGEST


def whole(value: Any) -> bool:
    """A whole number that is 0 or more."""
    return isinstance(value, int) and count(value)


def positive(value: Any) -> bool:
    """A number above 0."""
    return count(value) and value > 0


def number(value: Any) -> bool:
    """A number, which a float that is not finite is too; in files of ours that is a word."""
    if isinstance(value, str):
        return value in ("nan", "inf", "-inf")
    return isinstance(value, int | float) and not isinstance(value, bool) and not _LARGEST <= abs(value) < math.inf


def finite(value: Any) -> bool:
    """A number that is finite."""
    return number(value) and not isinstance(value, str) and math.isfinite(value)


def text(value: Any) -> bool:
    """A name: nothing in it moves the cursor of a terminal."""
    return isinstance(value, str) and value.isprintable() and len(value) <= 500


def phase(value: Any) -> bool:
    """A mode of a phase."""
    return value in _PHASES if isinstance(value, str) else False


def link(value: Any) -> bool:
    """The bytes that went from a part to another: source, target, count."""
    return isinstance(value, list) and len(value) == 3 and all(map(whole, value[:2])) and count(value[2])


GATHER = Each(count, ("parameters", "optimizer", "ema"))

EPOCH = {
    "epoch": whole,
    "phase": phase,
    "trained": [whole],
    "steps": whole,
    "train_loss": Each(number),
    "test_bpd": Optional(number),
    "exit_bpd": Optional([number]),
    "seconds": positive,
    "images": count,
    "macs": count,
    "bytes": {"latents": [link], "eval": count, "gradients": count, "control": count, "images": IfThere(count)},
}
"""An epoch's record in `summary.json` and `metrics.jsonl`."""

PART = {"layers": Optional([text])}

SUMMARY = {
    "name": text,
    "test_bpd": number,
    "initial_bpd": finite,
    "exit_bpd": Optional([number]),
    "epochs": [EPOCH],
    "parts": [PART],
    "train_macs": count,
    "seconds": {"gather": count},
    "bytes": {"forward": [count], "backward": [count], "gather": GATHER, "finetune": count, "total": count},
}
"""`summary.json`, as far as it is read."""

START = {"initial_bpd": finite, "parts": [PART]}
GATHERED = {"seconds": count, "bytes": GATHER}
"""Events of `metrics.jsonl`; that of an epoch is its record."""


def wrong(value: Any, kind: Any, name: str = "") -> str | None:
    """What is not as it should be, in words: the first such place; None where all is."""
    if isinstance(kind, Optional):
        return None if value is None else wrong(value, kind.kind, name)
    if isinstance(kind, IfThere):
        return wrong(value, kind.kind, name)
    if isinstance(kind, Callable):
        return None if kind(value) else f"{name or 'it'} is {brief(value)}"
    if isinstance(kind, list):
        if not isinstance(value, list):
            return f"{name or 'it'} is {brief(value)} and no list"
        pairs = ((each, kind[0], f"{name}[{index}]") for index, each in enumerate(value))
    elif not isinstance(value, dict):
        return f"{name or 'it'} is {brief(value)} and no mapping"
    elif isinstance(kind, Each):
        odd = next((key for key in value if not text(key) or (kind.names and key not in kind.names)), None)
        if odd is not None:
            return f"{name} has {brief(odd)}"
        pairs = ((each, kind.kind, f"{name}.{key}") for key, each in value.items())
    else:
        missing = [key for key in kind if key not in value]
        needed = [key for key in missing if not isinstance(kind[key], Optional | IfThere)]
        if needed:
            return f"{name or 'it'} has no {needed[0]}"
        pairs = (
            (value[key], each, f"{name}.{key}" if name else key) for key, each in kind.items() if key not in missing
        )
    return next((found for found in (wrong(*pair) for pair in pairs) if found is not None), None)


def training_bytes(record: dict) -> int:
    """Bytes that an epoch's training moved between workers, not evaluation or control.

    They are latents, gradients, and the images that rank 0 hands out to data-parallel workers.
    """
    sent = record["bytes"]
    return sum(count for _, _, count in sent["latents"]) + sent["gradients"] + sent.get("images", 0)


def to_json(value: Any, indent: int | None = None) -> str:
    """Standard JSON, in which numbers that are not finite stand as "nan", "inf" and "-inf" (`float()` reads them)."""
    return json.dumps(_finite(value), allow_nan=False, indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value
