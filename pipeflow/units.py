"""Quantities with their units, read and written: bytes, seconds, speeds."""

import re

from pipeflow.errors import ConfigError
from pipeflow.safe_files import brief

BYTE_UNITS = ((1, "bytes"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB"))


def size(count: float) -> str:
    """Bytes in the unit that suits them: `120 bytes`, `24.6 MB`."""
    factor, unit = next((pair for pair in reversed(BYTE_UNITS) if count >= pair[0]), BYTE_UNITS[0])
    return f"{count:.0f} {unit}" if factor == 1 else f"{count / factor:.3g} {unit}"


# --------------------------------------------------------------------------------------------------------- the table


def duration(seconds: float) -> str:
    """Seconds as `45.1 s`, `3 min 20 s` or `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def clock(seconds: float) -> str:
    """Seconds as `3:20` or `1:02:05`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


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
