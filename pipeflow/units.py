"""Quantities with their units: written for people, and read from options and files.

count_text      `3 parts`                 a number of things
bytes_text      `24.6 MB`                 a number of bytes, wherever it stands by itself
traffic_text    `24.6 MB sent`            bytes between the workers of a run, or those that one process would send
megabytes_text  `1,024.5`                 a cell of a column whose heading says MB, so that its numbers compare
duration_text   `3 min 20 s`              time that a run took, or has left
seconds_text    `3.2 ms`, `1,024 s`       times that are compared with each other: predictions, latencies
rate_text       `1 Gbit/s`, `10 TFLOP/s`  a speed
macs_text       `3.48e16`                 multiply-adds of a run
read_quantity   `'1 Gbit/s'` as 1e9       a value with its unit, as a user writes it
"""

import re
from typing import Literal

from pipeflow.errors import ConfigError
from pipeflow.safe_files import brief

_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY_PREFIXES = {f"{prefix}i": 1024.0**power for power, prefix in enumerate("KMGT", start=1)}

BYTE_UNITS = tuple((factor, f"{prefix}B" if prefix else "bytes") for prefix, factor in _PREFIXES.items())
TIME_UNITS = ((1.0, "seconds"), (60.0, "minutes"), (3600.0, "hours"))
"""Units of an axis: size and name, ascending."""


def _in_largest_unit(value: float, units: tuple[tuple[float, str], ...]) -> str:
    """Three significant digits in the largest unit of which they are at least one; in the smallest below that."""
    factor, unit = next((each for each in reversed(units) if value >= 0.9995 * each[0]), units[0])
    return f"{value / factor:.3g} {unit}"


def count_text(number: int, thing: str, plural: str = "s") -> str:
    """A number of things: `1 epoch`, `1,562 batches`; `plural` is what the word then ends with."""
    return f"{number:,} {thing}{'' if number == 1 else plural}"


def bytes_text(count: float) -> str:
    """A number of bytes in the unit that suits it: `120 bytes`, `24.6 MB`."""
    return f"{count:.0f} bytes" if count < 999.5 else _in_largest_unit(count, BYTE_UNITS)


def traffic_text(count: float, travels: bool) -> str:
    """Bytes between the workers of a run; in a single process (`travels` is false) those that as many would send."""
    return f"{bytes_text(count)} {'sent' if travels else 'would travel'}"


def megabytes_text(count: float) -> str:
    """A number of bytes as MB without the unit: `24.6`, or `0` for none at all."""
    return f"{count / 1e6:,.1f}" if count else "0"


def rate_text(rate: float, unit: Literal["bit/s", "FLOP/s"]) -> str:
    """A speed with its unit: `1 Gbit/s`."""
    return _in_largest_unit(rate, tuple((factor, prefix + unit) for prefix, factor in _PREFIXES.items()))


def macs_text(count: float) -> str:
    """Multiply-adds of a run, which no unit suits: `3.48e16`."""
    return f"{count:.2e}".replace("e+", "e")


def duration_text(seconds: float) -> str:
    """Time that a run took or has left, as people say it: `45.1 s`, `3 min 20 s` or `2 h 05 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def seconds_text(seconds: float) -> str:
    """Time that is compared with others, in one unit from microseconds to hours: `3.2 ms`, `1,024 s`, `3.1 h`."""
    if seconds >= 3 * 3600:
        return f"{seconds / 3600:,.1f} h"
    if seconds >= 100:
        return f"{seconds:,.0f} s"
    return _in_largest_unit(seconds, ((1e-6, "us"), (1e-3, "ms"), (1.0, "s"))) if seconds else "0 s"


Kind = Literal["bandwidth", "time", "memory", "flops"]

_UNITS: dict[Kind, dict[str, float]] = {
    "bandwidth": {
        **{f"{prefix}bit/s": factor for prefix, factor in _PREFIXES.items()},
        **{f"{prefix}B/s": 8 * factor for prefix, factor in _PREFIXES.items()},
    },
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9},
    "memory": {f"{prefix}B": factor for prefix, factor in {**_PREFIXES, **_BINARY_PREFIXES}.items()},
    "flops": {f"{prefix}{unit}": factor for prefix, factor in _PREFIXES.items() for unit in ("FLOP/s", "FLOPS")},
}
_EXAMPLES: dict[Kind, str] = {
    "bandwidth": "'1 Gbit/s', '450 GB/s' or a number of bits a second",
    "time": "'0.1 ms', '20 us' or a number of seconds",
    "memory": "'80 GB', '16 GiB' or a number of bytes",
    "flops": "50e12 or '50 TFLOP/s'",
}
_FORM = re.compile(r"([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*(\S.*)?")


def read_quantity(name: str, kind: Kind, value: object) -> float:
    """A value from YAML or the command line in the kind's base unit: bit/s, seconds, bytes or FLOP/s.

    A time may be 0; anything else must be above 0. `name` is the field that the message names.

    Raises:
        ConfigError: not a number, a unit of another kind, or out of range.
    """
    number = _read(kind, value)
    may_be_zero = kind == "time"
    if number is None or not 0 <= number < float("inf") or (number == 0 and not may_be_zero):
        least = "0 or more" if may_be_zero else "above 0"
        raise ConfigError(f"{name}: expected {_EXAMPLES[kind]}, {least}, got {brief(value)}.")
    return number


def _read(kind: Kind, value: object) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if abs(value) < 2**1023 else None  # an integer may be larger than any float
    match = _FORM.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    factor = 1.0 if match[2] is None else _UNITS[kind].get(match[2])
    try:
        return None if factor is None else float(match[1]) * factor
    except ValueError:
        return None
