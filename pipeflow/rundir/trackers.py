"""Programs that draw a run while it goes on, all behind two calls: the scalars of an epoch, and a picture.

TensorBoard reads files in the run folder, and is always there. `track.to` names one more, which is no dependency here. It
gets the same, in a run of its own for each sitting: the epochs of the sittings before come first, so each is whole.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL.Image import Image

from pipeflow.config import Config
from pipeflow.errors import ConfigError, first_line
from pipeflow.output import say

Scalars = Mapping[str, float]


class Tracker(Protocol):
    """A program that gets what happens, epoch after epoch."""

    def scalars(self, values: Scalars, epoch: int) -> None:
        """Takes the numbers of an epoch."""

    def picture(self, name: str, picture: Image, epoch: int) -> None:
        """Takes a picture that belongs to an epoch."""

    def close(self) -> None:
        """Ends the run there."""


def open_trackers(run_dir: Path, config: Config | None, before: Sequence[Scalars]) -> list[Tracker]:
    """TensorBoard, and the tracker that the configuration names. before: scalars of the epochs that are done.

    Raises ConfigError where that is not installed or cannot be started.
    """
    trackers: list[Tracker] = [TensorBoard(run_dir, len(before))]
    if config is not None and config.track.to != "tensorboard":
        name = config.track.to
        try:
            other = _OTHERS[name](importlib.import_module(name), run_dir.resolve().name, config)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise ConfigError(
                f"track.to: {name} is not installed here: pip install {name}, or leave track.to out."
            ) from None
        except Exception as error:  # whatever it raises without an account or a network
            raise ConfigError(f"track.to: {name} could not be started: {first_line(error)}") from None
        trackers.append(Guarded(name, other))
        for epoch, values in enumerate(before):
            trackers[-1].scalars(values, epoch)
    return trackers


class TensorBoard:
    """Event files in `tensorboard/`."""

    def __init__(self, run_dir: Path, num_epochs: int):
        """num_epochs: those that are done; what a killed sitting wrote of later ones is hidden."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only rank 0 needs it

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=num_epochs)

    def scalars(self, values: Scalars, epoch: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def picture(self, name: str, picture: Image, epoch: int) -> None:
        self._writer.add_image(name, np.asarray(picture.convert("RGB")), epoch, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Guarded:
    """A tracker whose errors do not end a training: the first is said, and nothing more is given to it."""

    def __init__(self, name: str, tracker: Tracker):
        self._name = name
        self._tracker: Tracker | None = tracker

    def scalars(self, values: Scalars, epoch: int) -> None:
        self._call("scalars", values, epoch)

    def picture(self, name: str, picture: Image, epoch: int) -> None:
        self._call("picture", name, picture, epoch)

    def close(self) -> None:
        self._call("close")

    def _call(self, method: str, *arguments: Any) -> None:
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, method)(*arguments)
        except Exception as error:  # of a network, a server, a full disk
            self._tracker = None
            say(f"track.to: {self._name} failed, and gets nothing more of this run: {first_line(error)}")


class WandbLike:
    """W&B, and trackio, which has the same interface."""

    def __init__(self, module: Any, run: str, config: Config):
        self._module = module
        self._run = module.init(project=config.track.project, name=run, config=config.to_dict())

    def scalars(self, values: Scalars, epoch: int) -> None:
        self._run.log(dict(values), step=epoch)

    def picture(self, name: str, picture: Image, epoch: int) -> None:
        self._run.log({name: self._module.Image(picture)}, step=epoch)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow; `MLFLOW_TRACKING_URI` says where it keeps its runs."""

    def __init__(self, module: Any, run: str, config: Config):
        experiment = module.set_experiment(config.track.project)
        self._client = module.MlflowClient()
        self._id = self._client.create_run(experiment.experiment_id, run_name=run).info.run_id
        for section, options in config.to_dict().items():
            for option, value in options.items():
                self._client.log_param(self._id, f"{section}.{option}", value)

    def scalars(self, values: Scalars, epoch: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=epoch)

    def picture(self, name: str, picture: Image, epoch: int) -> None:
        self._client.log_image(self._id, picture, key=name, step=epoch)

    def close(self) -> None:
        self._client.set_terminated(self._id)


_OTHERS: dict[str, Callable[[Any, str, Config], Tracker]] = {"wandb": WandbLike, "trackio": WandbLike, "mlflow": MLflow}
