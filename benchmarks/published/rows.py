"""The rows of the table as data: what each trains and for how long, and what was published of it.

A row end to end is one run that stops on its way wherever it is wanted as a control: constant learning rates make the
run stopped after 30 epochs the beginning of the run of 90, to the last bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeflow.config import Config, load
from pipeflow.errors import ConfigError
from pipeflow.flow import build_flow, configured_cuts, head_maker, split_flow
from pipeflow.plan.traffic import training_share
from pipeflow.training.schedule import Schedule

CONFIGS = Path(__file__).parents[2] / "configs" / "cifar10"
CIFAR10_SHAPE, CIFAR10_TRAIN = (3, 32, 32), 50_000
CYCLE = (6, 3)
"""Local and end-to-end epochs of a cycle: whole turns for 2 and for 3 parts. The published 60 + 30 are ten of them."""
NUM_CYCLES = 10

CHOSEN = {
    "optim.name": "adam",
    "optim.batch_size": "64",
    "optim.warmup_steps": "100",
    "optim.decay": "none",
    "data.flip": "false",
    "schedule.alternate_every": "1 epoch",
}
"""Choices that the source leaves open, the same for all rows: see choose.md. Its times give the length of a turn."""

OWNED = (
    "run.dir", "run.resume", "run.device", "parts.split", "parts.num", "parts.balance", "parts.head", "parts.head_depth",
    "schedule.mode", "schedule.local_epochs", "schedule.finetune_epochs", "optim.lr", "optim.part_lr", "optim.decay",
    "finetune.lr", "finetune.parallel",
)  # fmt: skip
"""Options that a row sets, or without which rows would not compare: not to be set for all of them."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run of the table."""

    name: str
    title: str
    config: str
    """File in configs/cifar10 without `.yaml`: model and data, and the row's own schedule where it is published."""
    lr: float
    mode: str
    split: str
    num_parts: int
    head: str = "gaussian"
    end_to_end: float = CYCLE[1] / sum(CYCLE)
    """Share of the epochs of a row by parts that are end to end, at its end."""
    rival: str | None = None
    """The row end to end that it is compared with; None: it is one itself."""
    bits_per_dim: float | None = None
    """Published."""
    minutes: float | None = None
    """Published."""
    time_bound: float | None = None
    """Share of its rival's time that counts as reproduced."""


ROWS = {
    row.name: row
    for row in (
        Row(
            name="glow_lr1e-4", title="end to end", config="glow_lr1e-4", lr=1e-4, mode="end_to_end",
            split="across", num_parts=2, bits_per_dim=3.60, minutes=1026,
        ),
        Row(
            name="across2_lr1e-4", title="by parts across blocks", config="across2_lr1e-4", lr=1e-4, mode="alternate",
            split="across", num_parts=2, rival="glow_lr1e-4", bits_per_dim=3.61, minutes=720, time_bound=0.72,
        ),
        Row(
            name="concurrent_balanced3", title="balanced cuts", config="concurrent3_lr1e-4", lr=1e-4,
            mode="concurrent", split="balanced", num_parts=3, rival="glow_lr1e-4",
        ),
        Row(
            name="glow_lr1e-5", title="end to end", config="glow_lr1e-5", lr=1e-5, mode="end_to_end",
            split="across", num_parts=3, bits_per_dim=3.89, minutes=1020,
        ),
        Row(
            name="across3_lr1e-5", title="by parts across blocks", config="across3_lr1e-5", lr=1e-5, mode="alternate",
            split="across", num_parts=3, rival="glow_lr1e-5", bits_per_dim=3.89, minutes=647, time_bound=0.66,
        ),
        Row(
            name="alternate_balanced3", title="balanced cuts", config="across2_lr1e-4", lr=1e-4, mode="alternate",
            split="balanced", num_parts=3, rival="glow_lr1e-4",
        ),
        Row(
            name="concurrent_across2", title="the cut of across2", config="across2_lr1e-4", lr=1e-4, mode="concurrent",
            split="across", num_parts=2, rival="glow_lr1e-4",
        ),
        Row(
            name="sequential_across3", title="part after part", config="sequential3_lr1e-4", lr=1e-4,
            mode="sequential", split="across", num_parts=3, rival="glow_lr1e-4",
        ),
        Row(
            name="alternate_blocks3", title="split by blocks", config="blocks3_lr1e-4", lr=1e-4, mode="alternate",
            split="blocks", num_parts=3, rival="glow_lr1e-4",
        ),
        Row(
            name="concurrent_across3", title="the cuts of across3", config="across3_lr1e-5", lr=1e-5,
            mode="concurrent", split="across", num_parts=3, rival="glow_lr1e-5",
        ),
        Row(
            name="linear_across2", title="the cut of across2, linear heads", config="across2_lr1e-4", lr=1e-4,
            mode="concurrent", split="across", num_parts=2, head="autoregressive", end_to_end=0.1, rival="glow_lr1e-4",
        ),
        Row(
            name="linear_across3", title="the cuts of across3, linear heads", config="across3_lr1e-5", lr=1e-5,
            mode="concurrent", split="across", num_parts=3, head="autoregressive", end_to_end=0.1, rival="glow_lr1e-5",
        ),
    )
}  # fmt: skip
"""All rows by name, the most telling first."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large all rows are."""

    title: str
    lr_factor: float
    """Factor on the published learning rates."""
    options: Mapping[str, str]


SIZES = {
    "full": Size(
        title="the published size (3 blocks x 32 steps, width 512), all 50,000 training images",
        lr_factor=1,
        options={},
    ),
    # At the published rates a few thousand updates of a small flow would show where it starts, not what it learns.
    "small": Size(
        title="a small flow (3 blocks x 4 steps, width 64), 4,992 training images, learning rates 10 times the published",
        lr_factor=10,
        options={
            "model.num_steps": "4",
            "model.width": "64",
            "data.num_train": "4992",
            "eval.num_images": "1000",
        },
    ),
    "narrow": Size(
        title="a small flow (3 blocks x 4 steps, width 64), all 50,000 training images, the published learning rates",
        lr_factor=1,
        options={"model.num_steps": "4", "model.width": "64", "eval.num_images": "1000"},
    ),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that all rows of one table have in common."""

    size: str = "full"
    scale: float = 1.0
    """Share of the published epochs; rounded to whole cycles, so that all parts get as many turns."""
    overrides: Mapping[str, str] = field(default_factory=dict)
    """Options for all rows, `{"precision.coupling": "bfloat16"}`. Raises ConfigError for one of `OWNED`."""

    def __post_init__(self) -> None:
        for name in self.overrides:
            if name in OWNED:
                raise ConfigError(
                    f"--set {name}: rows set it themselves, or would not compare, so it cannot be set for all."
                )

    @property
    def name(self) -> str:
        """Name of the folders for runs and results."""
        return self.size if self.scale == 1 else f"{self.size}_scale{self.scale:g}"

    @property
    def num_epochs(self) -> int:
        """Epochs of every row: whole cycles."""
        return sum(CYCLE) * max(1, round(self.scale * NUM_CYCLES))

    def epochs(self, row: Row) -> tuple[int, int]:
        """Local epochs of a row, and end-to-end ones behind them."""
        whole = self.num_epochs if row.rival is None else max(1, round(row.end_to_end * self.num_epochs))
        return self.num_epochs - whole, whole

    def to_json(self) -> dict:
        """The settings that must agree for two measurements to stand in one table."""
        return {"size": self.size, "scale": self.scale, "chosen": dict(CHOSEN), "overrides": dict(self.overrides)}

    def lr(self, row: Row) -> float:
        """The row's learning rate at this size."""
        return row.lr * SIZES[self.size].lr_factor

    def options(self, row: Row, epochs: int | None = None) -> dict[str, str]:
        """Options over the row's configuration file. epochs: where a row end to end stops; None: at its end."""
        local, whole = self.epochs(row)
        if row.rival is None and epochs is not None:
            whole = epochs
        return {
            **CHOSEN,
            **SIZES[self.size].options,
            **self.overrides,
            "optim.lr": f"{self.lr(row):g}",
            "parts.split": row.split,
            "parts.num": str(row.num_parts),
            "parts.head": row.head,
            "schedule.mode": row.mode,
            "schedule.local_epochs": str(local),
            "schedule.finetune_epochs": str(whole),
        }

    def config(self, row: Row) -> Config:
        """The row's whole configuration.

        Raises ConfigError for an override that is no option or has a value it cannot have.
        """
        return load(str(CONFIGS / f"{row.config}.yaml"), self.options(row))


def launch_arguments(row: Row, data: str | None, options: Mapping[str, str]) -> tuple[str, ...]:
    """Arguments of pipeflow.launch. data: path of the images; None: as the options and the row's configuration file say."""
    options = {"run.figures": "false", **options}
    if data is not None:
        options = {"data.name": "images", "data.path": data, **options}
    words = (word for name, value in options.items() for word in (f"--{name}", value))
    return ("--config", str(CONFIGS / f"{row.config}.yaml"), *words)


def equal_epochs(settings: Settings) -> dict[str, int]:
    """For each by-parts row the epochs end to end that take as many multiply-adds, to the nearest epoch."""
    by_parts = [row for row in ROWS.values() if row.rival is not None]
    flow = build_flow(settings.config(by_parts[0]), CIFAR10_SHAPE)
    result = {}
    for row in by_parts:
        config = settings.config(row)
        cuts = configured_cuts(flow, config)
        steps = (config.data.num_train or CIFAR10_TRAIN) // config.optim.batch_size
        schedule = Schedule(config, len(cuts) + 1, steps)
        share = training_share(schedule.phases(), split_flow(flow, cuts, head_maker(config.parts)))
        result[row.name] = round(share * config.num_epochs)
    return result


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the table: a row at its end, or a row end to end at one of its stops, as a control."""

    name: str
    title: str
    row: Row
    epochs: int

    @property
    def is_control(self) -> bool:
        """Whether it is a stop of a longer run."""
        return self.name != self.row.name


def table_lines(settings: Settings, equal: Mapping[str, int]) -> list[Line]:
    """All lines in the order of the table. equal: of `equal_epochs`."""
    lines = []
    total, cycle_end = settings.num_epochs, settings.num_epochs * CYCLE[1] // sum(CYCLE)
    for row in ROWS.values():
        lines.append(Line(name=row.name, title=row.title, row=row, epochs=total))
        if row.rival is not None:
            continue
        stops = {cycle_end: "the last epochs of a by-parts row alone"}
        for epochs in sorted(epochs for other, epochs in equal.items() if ROWS[other].rival == row.name):
            same = [other for other, theirs in equal.items() if theirs == epochs and ROWS[other].rival == row.name]
            if epochs < total:
                stops[epochs] = f"multiply-adds of {', '.join(same)}"
        lines += [
            Line(name=stop_name(row.name, epochs, total), title=f"stopped: {why}", row=row, epochs=epochs)
            for epochs, why in sorted(stops.items())
        ]
    return lines


def stop_name(row: str, epochs: int, total: int) -> str:
    """The line of a row end to end after this many of its epochs."""
    return row if epochs >= total else f"{row}@{epochs}"
