"""The systems that are compared: what each is called, the command of one of its processes, and what that process left.

    run = command(SYSTEMS["1f1b"], "run.yaml", out, steps=40, micro_batches=4)   # for each rank, with RANK etc. set
    read(SYSTEMS["1f1b"], out, world_size=2).images_per_s

pipeflow's own runs, and the single process, go through `pipeflow.launch`; all others through `benchmarks.pipelines.worker`.
All take the same configuration. pipeflow measures whole epochs: `data.num_train` should be `steps` batches of images.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

WATCHED = "watched.json"
"""File of the counts that `launch` took of a pipeflow run from outside."""


@dataclass(frozen=True, kw_only=True)
class System:
    """One way of training the flow on several workers."""

    name: str
    title: str
    family: str
    """`pipeflow`, `single`, `pipeline`, `data_parallel` or `local_sgd`."""
    program: str
    """`--schedule.mode` of pipeflow, `--system` of the worker."""
    compress: str = "none"

    @property
    def through_launch(self) -> bool:
        """Whether it is a run of pipeflow."""
        return self.family in ("pipeflow", "single")

    def world_size(self, num_workers: int) -> int:
        """Processes where there is room for so many workers."""
        return 1 if self.family == "single" else num_workers


_PIPELINES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved_1f1b": "interleaved 1F1B, 2 stages a worker",
    "interleaved_zero_bubble": "interleaved zero bubble, 2 stages a worker, backward not split",
    "zbv_zero_bubble": "ZBV zero bubble, 2 stages a worker, backward not split",
}


def _systems() -> list[System]:
    made = [
        System(name="pipeflow_concurrent", title="pipeflow, concurrent", family="pipeflow", program="concurrent"),
        System(
            name="pipeflow_concurrent_bf16",
            title="pipeflow, concurrent, bfloat16 links",
            family="pipeflow",
            program="concurrent",
            compress="bf16",
        ),
        System(name="pipeflow_alternate", title="pipeflow, alternate", family="pipeflow", program="alternate"),
    ]
    for name, title in _PIPELINES.items():
        made.append(System(name=name, title=f"torch {title}", family="pipeline", program=name))
        made.append(
            System(
                name=f"{name}_bf16",
                title=f"torch {title}, bfloat16 wire",
                family="pipeline",
                program=name,
                compress="bf16",
            )
        )
    made += [
        System(name="ddp", title="torch DDP", family="data_parallel", program="ddp"),
        System(name="ddp_bf16", title="torch DDP, bf16 hook", family="data_parallel", program="ddp", compress="bf16"),
        System(
            name="ddp_powersgd", title="torch DDP, PowerSGD", family="data_parallel", program="ddp", compress="powersgd"
        ),
        System(name="local_sgd", title="torch post-local SGD", family="local_sgd", program="local_sgd"),
        System(name="single", title="one process, end to end, all cores", family="single", program="end_to_end"),
    ]
    return made


SYSTEMS = {system.name: system for system in _systems()}


def command(
    system: System,
    config_path: str | Path,
    out: str | Path,
    steps: int,
    warmup: int = 5,
    micro_batches: int = 4,
    epochs: int = 3,
    evaluate: bool = False,
    options: tuple[str, ...] = (),
) -> list[str]:
    """The command of one rank, to be run from the repository's root with RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT set.

    steps, warmup, micro_batches, evaluate: of the baselines. epochs: of a pipeflow run, the first of which is its warm-up;
    an alternate run should have one more than a multiple of the parts. options: more of the program's own.
    """
    if not system.through_launch:
        arguments = ["--system", system.program, "--compress", system.compress, "--config", str(config_path)]
        arguments += ["--steps", str(steps), "--warmup", str(warmup), "--out", str(out)]
        arguments += ["--micro-batches", str(micro_batches)] if system.family == "pipeline" else []
        arguments += ["--evaluate"] if evaluate else []
        return [sys.executable, "-m", "benchmarks.pipelines.worker", *arguments, *options]
    local = 0 if system.family == "single" else epochs
    settings = {
        "run.dir": Path(out) / "run",
        "run.resume": "never",
        "run.figures": "false",
        "schedule.mode": system.program,
        "schedule.local_epochs": local,
        "schedule.finetune_epochs": epochs - local,
        "link.dtype": "bfloat16" if system.compress == "bf16" else "float32",
    }
    arguments = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "pipeflow.launch", "--config", str(config_path), *arguments, *options]


@dataclass(frozen=True, kw_only=True)
class Result:
    """Measurements of one run of a system. Bytes are of all workers together, in an epoch of `images_per_epoch` images."""

    images_per_s: float | None = None
    images_per_epoch: int | None = None
    sent_forward: float | None = None
    sent_backward: float | None = None
    """Gradients sent back; of data parallelism and local SGD all that is reduced."""
    idle: list[float] | None = None
    """Share of the time in which a worker computes nothing; None where it is not measured."""
    peak_memory: list[int] | None = None
    """Largest resident memory of each worker up to the end of the measured part, in bytes. Of a pipeflow run that nobody
    watched, what its summary has."""
    peak_by_epoch: list[list[int]] | None = None
    """The same at the end of each epoch, of a pipeflow run that was watched."""
    run_seconds: float | None = None
    """Of a baseline: seconds of all its steps, the warm-up included."""
    run_forward: int | None = None
    run_backward: int | None = None
    """Of a baseline: bytes sent in all its steps."""
    interface_bytes: dict[str, float] | None = None
    """Sent by each network interface that worker 0 sees, in an epoch."""
    losses: list[float] | None = None
    """Last training losses of the whole flow, bits/dim; None where parts have losses of their own."""
    test_bpd: float | None = None
    not_possible: str | None = None
    """Why the system does not run here."""


def read(system: System, out: str | Path, world_size: int) -> Result:
    """The result that the processes of `command` left in `out`."""
    return _read_run(system, Path(out)) if system.through_launch else _read_ranks(Path(out), world_size)


def _read_ranks(out: Path, world_size: int) -> Result:
    ranks = [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(world_size)]
    if "not_possible" in ranks[0]:
        return Result(not_possible=ranks[0]["not_possible"])
    first = ranks[0]
    losses = [each["losses"] for each in ranks if each["losses"]]
    has_busy = all(each["busy_seconds"] is not None for each in ranks)
    return Result(
        images_per_s=first["images_per_s"],
        images_per_epoch=first["images_per_epoch"],
        sent_forward=sum(each["sent_forward_bytes"] for each in ranks),
        sent_backward=sum(each["sent_backward_bytes"] for each in ranks),
        idle=[1 - each["busy_seconds"] / each["seconds"] for each in ranks] if has_busy else None,
        peak_memory=[each["peak_memory"] for each in ranks],
        run_seconds=max(each["run_seconds"] for each in ranks),
        run_forward=sum(each["run_forward_bytes"] for each in ranks),
        run_backward=sum(each["run_backward_bytes"] for each in ranks),
        interface_bytes=first["interface_bytes"],
        losses=[fmean(values) for values in zip(*losses)],
        test_bpd=first.get("test_bpd"),
    )


def _read_run(system: System, out: Path) -> Result:
    summary = json.loads((out / "run" / "summary.json").read_text())
    all_epochs = summary["epochs"]
    timed = all_epochs[1:]
    seconds = sum(epoch["seconds"] for epoch in timed)
    latents = [link for epoch in timed for link in epoch["bytes"]["latents"]]
    idle = None
    if system.family == "pipeflow" and all(epoch.get("idle") for epoch in timed):
        waited = [[share * epoch["seconds"] for share in epoch["idle"]] for epoch in timed]
        idle = [sum(each) / seconds for each in zip(*waited)]
    watched = out / WATCHED
    seen = json.loads(watched.read_text()) if watched.exists() else {}
    return Result(
        images_per_s=sum(epoch["images"] for epoch in timed) / seconds,
        images_per_epoch=timed[0]["images"],
        sent_forward=sum(count for _, _, count in latents) / len(timed),
        sent_backward=sum(summary["bytes"]["backward"]) / len(all_epochs),
        idle=idle,
        peak_memory=seen.get("peak_memory", summary["memory"]["peak"]),
        peak_by_epoch=seen.get("peak_by_epoch"),
        interface_bytes=seen.get("interface_bytes"),
        losses=[epoch["train_loss"]["flow"] for epoch in timed] if system.family == "single" else None,
        test_bpd=summary["test_bpd"],
    )
