"""Quantities with units, as people write them: `100 Mbit/s`, `0.1 ms`, `80 GB`, `50 TFLOP/s`."""

import re

from pipeflow.errors import ConfigError
from pipeflow.untrusted import brief

_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {f"{prefix}i": 1024.0**power for power, prefix in enumerate("KMGT", start=1)}

_UNITS = {
    "bandwidth": {
        **{f"{prefix}bit/s": factor for prefix, factor in _PREFIXES.items()},
        **{f"{prefix}B/s": 8 * factor for prefix, factor in _PREFIXES.items()},
    },
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9},
    "memory": {f"{prefix}B": factor for prefix, factor in {**_PREFIXES, **_BINARY}.items()},
    "flops": {f"{prefix}{unit}": factor for prefix, factor in _PREFIXES.items() for unit in ("FLOP/s", "FLOPS")},
}
_EXAMPLES = {
    "bandwidth": "'1 Gbit/s', '450 GB/s' or a number of bits a second",
    "time": "'0.1 ms', '20 us' or a number of seconds",
    "memory": "'80 GB', '16 GiB' or a number of bytes",
    "flops": "50e12 or '50 TFLOP/s'",
}
_FORM = re.compile(r"([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*(\S.*)?")


def quantity(name: str, kind: str, value: object, least: float = 0.0) -> float:
    """A value from YAML or the command line in the kind's base unit: bit/s, s, bytes or FLOP/s.

    Args:
        name: the field, for the message.
        kind: bandwidth, time, memory or flops.
        least: what it must be above; with 0.0, a time may be 0 too.

    Raises:
        ConfigError: not a number, a unit of another kind, or out of range.
    """
    number = _read(kind, value)
    may_be_least = kind == "time"
    if number is None or not number < float("inf") or number < least or (number == least and not may_be_least):
        above = "0 or more" if may_be_least else "above 0"
        raise ConfigError(f"{name}: expected {_EXAMPLES[kind]}, {above}, got {brief(value)}.")
    return number


def _read(kind: str, value: object) -> float | None:
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


def in_bits(bits_per_second: float) -> str:
    """`1 Gbit/s`."""
    for prefix in ("T", "G", "M", "k"):
        if bits_per_second >= _PREFIXES[prefix]:
            return f"{bits_per_second / _PREFIXES[prefix]:.3g} {prefix}bit/s"
    return f"{bits_per_second:.3g} bit/s"


def in_time(seconds: float) -> str:
    """`3.2 ms`, `1,024 s`, `3.1 h`."""
    if seconds >= 3 * 3600:
        return f"{seconds / 3600:,.1f} h"
    if seconds >= 100:
        return f"{seconds:,.0f} s"
    for factor, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds:.3g} s"
