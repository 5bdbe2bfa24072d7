"""The machines of a prediction: how fast a worker computes, what a link carries, and how much memory there is.

workers: 3
flops: 50e12              # a worker's sustained FLOP/s, two for a multiply-add; or step_seconds, as `--probe` writes it
bandwidth: 1 Gbit/s       # of each link, one direction
latency: 0.1 ms
memory: 80 GB             # a worker; left out: nothing is said about what fits
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeflow.config.loading import nearest
from pipeflow.errors import ConfigError
from pipeflow.safe_files import brief, in_full, read_yaml
from pipeflow.units import Kind, bytes_text, rate_text, read_quantity, seconds_text


@dataclass(frozen=True, kw_only=True)
class StepSeconds:
    """Measured seconds of runs of layers: each begins at the layer it is named by and ends before the next.

    Seconds are interpolated linearly between batch sizes and extrapolated beyond them; those of a single size are
    proportional to it.
    """

    batch_size: tuple[int, ...]
    train: dict[str, tuple[float, ...]]
    """Forward and backward of each run, one number for each batch size."""
    forward: dict[str, tuple[float, ...]] | None = None
    """Forward without gradients; None: a third of `train`."""
    update: float = 0.0
    """Seconds of the optimizer's update of all layers."""
    multiply_adds: int | None = None
    """Of a forward of an image through all layers, which tells the flow from others; None: of any with these layers."""


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Equal workers, and equal links between any two of them, each direction by itself."""

    workers: int = 1
    flops: float | None = None
    """FLOP/s that a worker sustains. None without `step_seconds`: a second is the time of 1e12 multiply-adds."""
    step_seconds: StepSeconds | None = None
    bandwidth: float | None = None
    """Bits a second of a link. None where there is one worker, or where no speeds are given: links are free then."""
    latency: float = 0.0
    """Seconds from the last byte sent to the last received; messages behind each other share it."""
    memory: float | None = None
    """Bytes of a worker's memory. None: no limit."""
    pass_seconds: float = 0.0
    """Seconds that a pipeline's own program takes of each forward, and of each backward, of a micro-batch on a worker."""
    image_seconds: float = 0.0
    """Seconds in which a worker of the first part prepares an image."""
    message_seconds: float = 0.0
    """Seconds for which a worker cannot compute for each message it sends, and for each it receives."""
    byte_seconds: float = 0.0
    """The same for each byte, which is copied, perhaps by a network stack on the cores that compute."""
    reduce_bandwidth: float | None = None
    """Bits a second at which one worker sends in a ring all-reduce. None: `bandwidth`."""
    alone: float = 1.0
    """Seconds of a worker whose neighbours rest, over its seconds while all compute: below 1 where they share cores."""
    faster_than_measured: tuple[str, ...] = ()
    """Fields that a probe could not tell from what is faster still: a speed is at least this, a time is taken as 0."""
    about: dict[str, object] = field(default_factory=dict)
    """Origin of the numbers, for the reader of the file: processor, versions."""

    def __post_init__(self) -> None:
        if self.bandwidth is not None and self.workers > 1 and not self.in_seconds:
            raise ConfigError(
                "flops: a link's speed says nothing without the workers': give --flops, e.g. 50e12, or --probe to measure."
            )
        if self.workers > 1 and self.bandwidth is None and self.in_seconds:
            raise ConfigError(
                f"bandwidth: {self.workers} workers need the speed of the links between them: "
                f"bandwidth: 1 Gbit/s in --machines, or --link '1 Gbit/s'."
            )
        if self.flops is not None and self.step_seconds is not None:
            raise ConfigError("flops and step_seconds are both given: keep the measured one, step_seconds.")

    @property
    def in_seconds(self) -> bool:
        """Whether predicted seconds are seconds, and no units of work."""
        return self.flops is not None or self.step_seconds is not None

    @property
    def bytes_per_second(self) -> float:
        """Bytes a second of a link."""
        return float("inf") if self.bandwidth is None else self.bandwidth / 8

    @property
    def reduce_bytes_per_second(self) -> float:
        """Bytes a second that a worker sends in a ring all-reduce."""
        return self.bytes_per_second if self.reduce_bandwidth is None else self.reduce_bandwidth / 8

    def handling_seconds(self, num_bytes: float) -> float:
        """Seconds for which a message of this size keeps a worker at either end from computing."""
        return self.message_seconds + self.byte_seconds * num_bytes

    def describe(self) -> str:
        """The machines in one line."""
        if self.step_seconds is not None:
            speed = "measured step times"
        elif self.flops is not None:
            speed = f"{rate_text(self.flops, 'FLOP/s')} each"
        else:
            speed = "speed not given: 's' is the time of 1e12 multiply-adds"
        link = ", links not given: as if they took no time" * (self.workers > 1)
        if self.bandwidth and self.workers > 1:
            least = "at least " * ("bandwidth" in self.faster_than_measured)
            latency = (
                "too quick to be measured" if "latency" in self.faster_than_measured else seconds_text(self.latency)
            )
            link = f", links of {least}{rate_text(self.bandwidth, 'bit/s')}, {latency}"
        memory = f", {bytes_text(self.memory)} each" if self.memory else ""
        return f"{self.workers} worker{'s' * (self.workers > 1)}, {speed}{link}{memory}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which `read_machines` takes back from a file; fields without a value are left out."""
        values: dict[str, Any] = _plain(dataclasses.asdict(self))
        return {name: value for name, value in values.items() if value not in ({}, [])}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    return list(value) if isinstance(value, tuple) else value


MAX_COUNT = 1_000_000
"""Workers, or images in a batch: a prediction for more takes memory and says nothing."""

KINDS: dict[str, Kind] = {
    "flops": "flops", "bandwidth": "bandwidth", "latency": "time", "memory": "memory", "pass_seconds": "time",
    "image_seconds": "time", "message_seconds": "time", "byte_seconds": "time", "reduce_bandwidth": "bandwidth",
}  # fmt: skip
"""Quantity that each field measures."""


def read_machines(path: str | Path | None = None, options: dict[str, Any] | None = None) -> Machines:
    """Machines from a YAML file, with `options` put over it.

    Raises ConfigError naming the field, its value and what would be right.
    """
    values = {} if path is None else _read_file(Path(path))
    for name, value in (options or {}).items():
        if value is not None:
            values[name] = value
            if name == "flops":
                values.pop("step_seconds", None)
            if name == "bandwidth":  # what was measured of an all-reduce was over other links
                values.pop("reduce_bandwidth", None)
            bounds = _read_field("faster_than_measured", values.get("faster_than_measured") or [])
            values["faster_than_measured"] = [each for each in bounds if each != name]
    known = [each.name for each in dataclasses.fields(Machines)]
    for name in values:
        if name not in known:
            raise ConfigError(f"machines: unknown field {brief(name)}{nearest(brief(name, str), known)}.")
    return Machines(**{name: _read_field(name, value) for name, value in values.items() if value is not None})


def write_machines(machines: Machines, path: str | Path) -> None:
    """Writes measured machines to a file that `read_machines` reads."""
    text = yaml.safe_dump(machines.to_dict(), sort_keys=False)
    Path(path).write_text(f"# Measured by pipeflow plan --probe\n{text}")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path)
    except OSError as error:
        raise ConfigError(
            f"--machines: {in_full(path)}: {error.strerror}. 'pipeflow plan --probe {path}' writes one."
        ) from None
    except ValueError as error:
        raise ConfigError(f"--machines {path} is not YAML: {error}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--machines {path}: expected fields such as 'workers: 3', found {brief(values)}.")
    return values


def _read_field(name: str, value: Any) -> Any:
    if name in KINDS:
        return read_quantity(name, KINDS[name], value)
    if name == "workers":
        return _count(name, value)
    if name == "step_seconds":
        return _step_seconds(value)
    if name == "faster_than_measured":
        if not isinstance(value, list) or not all(isinstance(each, str) and each in KINDS for each in value):
            raise ConfigError(f"{name}: expected a list of the fields {', '.join(KINDS)}, got {brief(value)}.")
        return tuple(value)
    if name == "alone" and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1):
        raise ConfigError(f"{name}: expected a number above 0, at most 1, got {brief(value)}.")
    return value


def _count(name: str, value: Any) -> int:
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ConfigError(f"{name}: expected a whole number, 1 or more, got {brief(value)}.")
    if number > MAX_COUNT:
        raise ConfigError(f"{name}: expected {MAX_COUNT:,} or fewer, got {brief(value)}.")
    return number


_OF_STEPS = ("batch_size", "train", "forward", "update", "multiply_adds")


def _step_seconds(value: Any) -> StepSeconds:
    wanted = "step_seconds: expected batch_size: 64 and train: {blocks.0.squeeze: 0.1, ...}"
    if not isinstance(value, dict) or not {"batch_size", "train"} <= set(value):
        raise ConfigError(f"{wanted}, got {brief(value)}.")
    for name in value:
        if name not in _OF_STEPS:
            raise ConfigError(f"step_seconds.{brief(name, str)}: there is no such field: {', '.join(_OF_STEPS)}.")
    listed = value["batch_size"] if isinstance(value["batch_size"], list) else [value["batch_size"]]
    sizes = [_count("step_seconds.batch_size", each) for each in listed]
    if sizes != sorted(set(sizes)) or not sizes:
        raise ConfigError(f"step_seconds.batch_size: expected a number or several, ascending, got {brief(sizes)}.")
    tables = {
        name: _runs(name, value[name], len(sizes)) for name in ("train", "forward") if value.get(name) is not None
    }
    if "forward" in tables and list(tables["forward"]) != list(tables["train"]):
        raise ConfigError(
            "step_seconds.forward: it must name the same layers as step_seconds.train, in the same order."
        )
    if not all(map(sum, zip(*tables["train"].values()))):
        raise ConfigError("step_seconds.train: all layers together take 0 s: give what was measured.")
    macs = value.get("multiply_adds")
    if macs is not None and (not isinstance(macs, int) or isinstance(macs, bool) or macs < 0):
        raise ConfigError(f"step_seconds.multiply_adds: expected a whole number, got {brief(macs)}.")
    update = read_quantity("step_seconds.update", "time", value.get("update", 0.0))
    return StepSeconds(batch_size=tuple(sizes), update=update, multiply_adds=macs, **tables)


def _runs(name: str, table: Any, num: int) -> dict[str, tuple[float, ...]]:
    if not isinstance(table, dict) or not table:
        raise ConfigError(f"step_seconds.{name}: expected seconds by name of a layer, got {brief(table)}.")
    runs = {}
    for layer, seconds in table.items():
        listed = seconds if isinstance(seconds, list) else [seconds]
        if len(listed) != num:
            raise ConfigError(
                f"step_seconds.{name}.{brief(layer, str)}: expected {num} number{'s' * (num > 1)}, one for each batch "
                f"size, got {brief(seconds)}."
            )
        runs[layer] = tuple(read_quantity(f"step_seconds.{name}.{brief(layer, str)}", "time", each) for each in listed)
    return runs
