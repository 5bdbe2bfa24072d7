"""The systems whose whole runs are compared: what each is called, the command of one of its workers, what it left.

pipeflow's runs and the one on a single worker go through `pipeflow.launch`; rivals are those of benchmarks/pipelines.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.links.systems import LOCAL_PERIOD
from benchmarks.pipelines.systems import SYSTEMS as RIVALS
from benchmarks.pipelines.systems import command, read
from pipeflow.config import Config

ONE = "single"
"""The whole flow on one worker: the bits/dim that all are held against."""
FINETUNE = ("single", "ddp", "pipeline")
"""Values of `finetune.parallel`."""
_CHOSEN = ("gpipe", "gpipe_bf16", "1f1b", "1f1b_bf16", "ddp", "ddp_bf16", "ddp_powersgd", "local_sgd")


@dataclass(frozen=True)
class System:
    """A line of the tables."""

    name: str
    title: str
    finetune: str | None = None
    """`finetune.parallel` of a run by parts; None for the others."""

    @property
    def is_ours(self) -> bool:
        """Whether it trains gradient-isolated parts."""
        return self.finetune is not None

    @property
    def is_pipeline(self) -> bool:
        """Whether it trains end to end in a pipeline, in all epochs."""
        return not self.is_ours and RIVALS[self.name].family == "pipeline"

    @property
    def is_data_parallel(self) -> bool:
        """Whether each worker has the whole flow, and all average gradients or weights."""
        return not self.is_ours and RIVALS[self.name].family in ("data_parallel", "local_sgd")

    @property
    def schedule(self) -> str:
        """The program of a pipeline: `gpipe` or `1f1b`."""
        return RIVALS[self.name].program

    @property
    def compress(self) -> str:
        """What is done to a rival's messages: none, bf16 or powersgd."""
        return RIVALS[self.name].compress

    def world_size(self, num_workers: int) -> int:
        """Workers that it has where there are so many."""
        return 1 if self.name == ONE else num_workers


SYSTEMS = {
    system.name: system
    for system in [
        *(System(f"pipeflow_{kind}", f"pipeflow, {kind}", kind) for kind in FINETUNE),
        *(System(name, RIVALS[name].title) for name in _CHOSEN),
        System(ONE, "end to end on one worker"),
    ]
}


@dataclass(frozen=True)
class Setting:
    """The options of one row that are chosen before it is measured."""

    options: dict[str, object] = dataclasses.field(default_factory=dict)
    """pipeflow's, over the configuration that all systems share; of a pipeline `micro_batches`."""

    def in_words(self) -> str:
        """`int8, 1f1b x4`: the options that the tables have room for."""
        options = self.options
        words = [str(options["link.dtype"])] if "link.dtype" in options else []
        if "finetune.micro_batches" in options:
            back = options["finetune.gradient_dtype"]
            words.append(f"{options['finetune.schedule']} x{options['finetune.micro_batches']}, {back} back")
        if "micro_batches" in options:
            words.append(f"x{options['micro_batches']}")
        return ", ".join(words)


def num_steps(config: Config) -> int:
    """Updates of the whole flow in a rival's run: as many batches as there are in all epochs."""
    return config.num_epochs * (config.data.num_train // config.optim.batch_size)


def warmup_steps(config: Config) -> int:
    """Steps without compression or with averages of gradients, a tenth of all, as torch advises for PowerSGD."""
    return max(2, round(num_steps(config) / 10))


def worker_command(system: System, setting: Setting, config: Config, path: Path, folder: Path) -> list[str]:
    """The program of each of its workers. path: where the configuration is; folder: where the program may write."""
    if system.is_ours:
        options = [f"--{name}={value}" for name, value in setting.options.items()]
        where = ["--config", str(path), "--run.dir", str(folder / "run")]
        return [sys.executable, "-m", "pipeflow.launch", *where, f"--finetune.parallel={system.finetune}", *options]
    warmup = warmup_steps(config)
    return command(
        RIVALS[system.name],
        path,
        folder,
        num_steps(config) - warmup,
        warmup,
        micro_batches=int(setting.options.get("micro_batches", 0)),
        epochs=config.num_epochs,
        evaluate=True,
        options=("--period", str(LOCAL_PERIOD)) if system.name == "local_sgd" else (),
    )


def read_run(system: System, folder: Path, world_size: int) -> dict:
    """Seconds of all training with the gather, bits/dim at the end, and bytes forward, back and of the gather.

    All that is reduced counts as back, as in benchmarks/pipelines. Evaluations and checkpoints are in none of it.
    """
    if system.is_ours or RIVALS[system.name].through_launch:
        return _read_summary(folder / "run" / "summary.json")
    result = read(RIVALS[system.name], folder, world_size)
    return {
        "seconds": result.run_seconds,
        "test_bpd": result.test_bpd,
        "forward": result.run_forward,
        "backward": result.run_backward,
        "gathered": 0,
    }


def _read_summary(path: Path) -> dict:
    summary = json.loads(path.read_text())
    phases = {name: summary["seconds"][name] for name in ("local", "gather", "finetune")}
    sent = summary["bytes"]
    return {
        "seconds": sum(phases.values()),
        "test_bpd": summary["test_bpd"],
        "forward": sum(sent["forward"]),
        "backward": sum(sent["backward"]) + sent["finetune"],
        "gathered": sum(sent["gather"].values()),
        "phases": phases,
    }
