"""The list of slices that are measured on a GPU, the most telling first, and the same at toy size on the CPU."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.checks import CHECKS
from benchmarks.gpu.slices import MINUTES, Slice
from benchmarks.step.systems import NORMFLOWS

HERE = Path(__file__).parent
BENCHMARKS = HERE.parent
PLAIN = ("reference", "fast", "fast-bf16")
COMPILED = ("fast", "fast-compile", "fast-bf16", "fast-bf16-compile")
"""Compiled systems, and those that they are held against: ratios are taken within a call."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that all slices share."""

    dry: bool
    out: Path | None
    """Results go to a folder in it for each benchmark; None: to the benchmarks' own folders."""
    runs: Path
    """Run folders, which are large."""
    data: str | None
    """CIFAR-10; None: the published rows are trained on embedded images, and only their seconds tell something."""

    def folder(self, benchmark: str) -> Path:
        """The folder for a benchmark's results."""
        return (self.out or BENCHMARKS) / benchmark


def make_slices(settings: Settings) -> list[Slice]:
    """All slices, in the order in which they are run."""
    return [*_checks(settings), *_steps(settings), _rows(settings)]


def _checks(settings: Settings) -> Iterator[Slice]:
    where = ("--device", "cpu", "--toy") if settings.dry else ("--device", "cuda")
    for name in CHECKS:
        if settings.dry and name == "compile" and shutil.which("c++") is None:
            continue
        yield Slice(
            name=f"check-{name}",
            title=f"the GPU against the CPU: {name}",
            module="benchmarks.gpu.checks",
            arguments=(name, *where, "--out", str(settings.folder("gpu") / "checks")),
            least_s=2 if settings.dry else 20,
        )


def _steps(settings: Settings) -> Iterator[Slice]:
    """Batch 64 and 512, compiled systems apart from the others: they take minutes to start."""
    common = ("--add", "--out", str(settings.folder("step")))
    if settings.dry:
        toy = ("--size", "toy", "--batch", "2", "--systems", "reference", "fast", "--rounds", "1", "--seconds", "0")
        yield _step("toy", (*toy, "--threads", "1", *common), 2)
        return
    threads = str(min(8, os.cpu_count() or 1))
    common = (
        "--device",
        "cuda",
        "--size",
        "published",
        "--rounds",
        "2",
        "--seconds",
        "2",
        "--threads",
        threads,
        *common,
    )
    rivals = [name for name in NORMFLOWS if importlib.util.find_spec("normflows") and "compile" not in name]
    for batch_size in ("64", "512"):
        for name, systems in (("plain", (*rivals, *PLAIN)), ("compiled", COMPILED)):
            words = (*common, "--batch", batch_size, "--systems", *systems)
            yield _step(f"{batch_size}-{name}", words, 90 if name == "plain" else 180)


def _step(name: str, arguments: tuple[str, ...], least_s: float) -> Slice:
    return Slice(
        name=f"step-{name}",
        title=f"images a second of a training step, {name}",
        module="benchmarks.step.run",
        arguments=arguments,
        least_s=least_s,
        limit_s=500,
    )


def _rows(settings: Settings) -> Slice:
    """The published rows: whole epochs, as many as there is time for, from call to call."""
    out, words, overrides = settings.folder("published"), ("--precision", "bfloat16"), {}
    if settings.dry:
        words = ("--size", "small", "--scale", "0.1", "--rows", "across2_lr1e-4")
        overrides = {"data.name": "dead_leaves", "data.num_train": "64", "data.num_test": "24", "model.num_steps": "2",
                     "model.width": "8", "optim.batch_size": "32"}  # fmt: skip
    elif settings.data is None:
        out = out / "embedded"
        overrides = {"data.name": "dead_leaves", "data.num_train": "4992", "data.num_test": "1000"}
    else:
        words = (*words, "--data", settings.data)
    given = (word for name, value in overrides.items() for word in ("--set", f"{name}={value}"))
    places = ("--runs", str(settings.runs / "published"), "--out", str(out))
    return Slice(
        name="published-rows",
        title="the published rows, as many epochs as there is time for",
        module="benchmarks.published.run",
        arguments=(*words, *given, "--minutes", MINUTES, *places),
        least_s=5 if settings.dry else 60,
        limit_s=3600,
        resumes=True,
    )
