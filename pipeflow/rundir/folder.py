"""The run folder: what a run finds in it at its start, and what it leaves there.

config.yaml  config_history.yaml  metrics.jsonl  summary.json  model.safetensors  checkpoints/  tensorboard/  samples/
report.html  *.png  run.lock  run.launch
"""

import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from PIL import Image

from pipeflow.config import Config
from pipeflow.errors import CheckpointError
from pipeflow.output import cleanups
from pipeflow.rundir.checkpoint import Checkpoints
from pipeflow.rundir.lock import RunLock
from pipeflow.rundir.model import MODEL_FILE
from pipeflow.rundir.reading import read_config, read_summary
from pipeflow.rundir.records import Change, Manifest, Summary
from pipeflow.rundir.resuming import change_at, check_ended, check_epochs, check_options, differing_options
from pipeflow.rundir.typed_json import dumps
from pipeflow.safe_files import in_full

SAMPLES = "samples"
"""Folder of the samples that evaluations draw: epoch-000007.png behind epoch 7, data.png for test images beside them."""
_LAUNCH = "run.launch"
"""The file that names the launch which began the run anew (`run.resume never`): its own restarts go on with the run."""
_OPENED = ("config.yaml", "metrics.jsonl")
"""Files that are there before a run has begun."""


class RunFolder:
    """The folder `run.dir`. Rank 0 opens it; the others write their checkpoint files and look whether it is shared."""

    def __init__(self, config: Config):
        self.config = config
        self.path = Path(config.run.dir)
        self.checkpoints = Checkpoints(self.path, config.checkpoint.keep)
        self.change: Change | None = None
        """Options that change where the run goes on, once the folder is open."""
        self._lock = RunLock(self.path)
        self._made: list[Path] = []
        """Folders that were not there before, the deepest first."""
        self._aside: Path | None = None
        self._is_new = False
        self._had_tensorboard = False
        self.has_begun = False
        """Whether the run in the folder has been initialised. Until then an end leaves no trace of it."""

    def open(self, launchers: Sequence[str] = ()) -> tuple[Manifest | None, list[str]]:
        """Makes the folder ready; returns the manifest to resume from (None: a fresh run), and notes for the user.

        launchers: names of the launchers that have started the workers, on all machines.

        From here until `close` no other run can open it. Raises CheckpointError where another run is in it, where it
        cannot be written, holds a run that these options do not continue, or `run.resume must` finds nothing to resume.
        """
        cleanups.append(self.close)
        try:
            return self._open(launchers)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets other runs open the folder. A run that has not begun leaves no trace of itself."""
        if self._lock.is_held and self._is_new and not self.has_begun:
            self._undo()
        self._lock.release()
        with contextlib.suppress(ValueError):
            cleanups.remove(self.close)

    def _undo(self) -> None:
        """Takes away what opening the folder made, and puts back what it moved aside."""
        for name in (*_OPENED, _LAUNCH, self._lock.path.name):
            (self.path / name).unlink(missing_ok=True)
        if not self._had_tensorboard:
            shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
        with contextlib.suppress(OSError):  # something else is in it
            for folder in self._made:
                folder.rmdir()
        if self._aside is not None and not self.path.exists():
            self._aside.rename(self.path)

    def _open(self, launchers: Sequence[str]) -> tuple[Manifest | None, list[str]]:
        notes = self._make_and_lock()
        resume = self.config.run.resume
        if resume == "never" and not self._is_restarted(launchers) and self._holds_run():
            self._aside = self._move_aside()
            notes.append(f"run.resume never: the run that was in {self.path} is kept as {self._aside}")
            self._lock.release()  # it went aside with the folder
            notes += self._make_and_lock()
        if resume == "never" and _launch():
            self._write(_LAUNCH, "\n".join([_launch(), _process(), *launchers]))
        self._is_new = not any((self.path / name).exists() for name in (*_OPENED, "checkpoints"))
        self._had_tensorboard = (self.path / "tensorboard").exists()
        self.checkpoints.clean()
        manifest, complaints = self.checkpoints.newest()
        if manifest is None and complaints:
            raise CheckpointError(
                f"{complaints[0]} No other checkpoint is whole. Start anew with --run.resume never, which keeps the old "
                f"folder aside."
            )
        if manifest is None and resume == "must":
            raise CheckpointError(
                f"run.resume: must, but {in_full(self.path)} holds no checkpoint: check run.dir, or use --run.resume auto."
            )
        if manifest is None and self.summary() is not None:
            raise CheckpointError(
                f"run.dir: {self.path} holds a run that has ended, and no checkpoint to go on from: it would be trained "
                f"anew over its results. Choose another run.dir, or --run.resume never, which keeps the old folder aside."
            )
        if self._holds_run():
            self._check_same_run(manifest)
        if manifest is not None:
            notes += [f"{complaint} Taking the one before, {manifest.folder}." for complaint in complaints]
        return manifest, notes

    def has_ended(self, manifest: Manifest | None) -> bool:
        """Whether all epochs are done and the results are there: the summary is written last, the model before it."""
        is_done = manifest is not None and manifest.epoch >= self.config.num_epochs
        return is_done and self.summary() is not None and (self.path / MODEL_FILE).exists()

    def _make_and_lock(self) -> list[str]:
        try:
            self._made = [each for each in (self.path, *self.path.parents) if not each.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            note = self._lock.take()
            self.remove_token(self.show_token())  # permission bits do not tell: a disk may be full or read-only
        except OSError as error:
            why = "a file of that name is there" if isinstance(error, FileExistsError) else error.strerror
            raise CheckpointError(
                f"run.dir: {in_full(self.path)} cannot be written to ({why}): choose another."
            ) from None
        return [] if note is None else [note]

    def _is_restarted(self, launchers: Sequence[str]) -> bool:
        """Whether a launcher has restarted the workers, and those before began the run in this folder anew.

        torchruns are known by their processes: of those on several machines some restart workers without counting that, and
        some have come later. Other launchers count.
        """
        launch = self.path / _LAUNCH
        if not launch.exists():
            return False
        name, *before = launch.read_text().split("\n")
        if name != _launch():
            return False
        if not launchers:
            return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        return _process() not in before and not {*before}.isdisjoint(launchers)

    def write_config(self, changes: Sequence[Change] = ()) -> None:
        """Writes config.yaml, and the options that changed on the way. From here on the folder holds this run."""
        if changes:
            history = [change.to_json() for change in changes]
            self._write("config_history.yaml", yaml.safe_dump(history, sort_keys=False, default_flow_style=None))
        else:
            (self.path / "config_history.yaml").unlink(missing_ok=True)
        self._write("config.yaml", yaml.safe_dump(self.config.to_dict(), sort_keys=False))

    def show_token(self) -> str:
        """Leaves a file that the other workers must see if the folder is shared."""
        token = f".seen-by-rank-0-{secrets.token_hex(8)}"
        (self.path / token).touch()
        return token

    def sees(self, token: str) -> bool:
        """Whether this worker sees the file that rank 0 left."""
        return (self.path / token).exists()

    def remove_token(self, token: str) -> None:
        """Takes the file away again."""
        (self.path / token).unlink(missing_ok=True)

    def summary(self) -> Summary | None:
        """The summary, which a run writes last: it is the mark of a run that has ended."""
        return read_summary(self.path)

    def write_summary(self, summary: Summary | None) -> None:
        """Writes summary.json, or removes it where a run goes on."""
        if summary is None:
            (self.path / "summary.json").unlink(missing_ok=True)
        else:
            self._write("summary.json", dumps(summary.to_json(), indent=1) + "\n")

    def write_pictures(self, pictures: Mapping[str, Image.Image]) -> None:
        """Writes PNG files into samples/, by their names without .png."""
        (self.path / SAMPLES).mkdir(exist_ok=True)
        for name, picture in pictures.items():
            partial = self.path / SAMPLES / f"{name}.partial"
            picture.save(partial, format="PNG")
            partial.replace(partial.with_suffix(".png"))

    def _write(self, name: str, text: str) -> None:
        """Writes a file that is whole or not there."""
        partial = self.path / f"{name}.partial"
        partial.write_text(text)
        partial.replace(self.path / name)

    def _holds_run(self) -> bool:
        return (self.path / "config.yaml").exists()

    def _move_aside(self) -> Path:
        if self.path.resolve() == Path.cwd():
            raise CheckpointError("run.resume never: the current folder cannot be moved aside: choose another run.dir.")
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        try:
            self.path.rename(aside)
        except OSError as error:  # a mount point, for one
            raise CheckpointError(
                f"run.resume never: {self.path} cannot be kept as {aside} ({error.strerror}): choose another run.dir."
            ) from None
        return aside

    def _check_same_run(self, manifest: Manifest | None) -> None:
        """Raises CheckpointError unless these options continue the run that the folder holds."""
        written = read_config(self.path).to_dict()
        # The checkpoint's own: those of a sitting that was killed before its first checkpoint trained nothing that is left.
        own = written if manifest is None or manifest.config is None else manifest.config
        differing = differing_options(own, self.config)
        check_options(self.path, differing, same_images=manifest is not None and manifest.data is not None)
        if manifest is not None:
            check_epochs(self.path, manifest, self.config)
            if self.has_ended(manifest):
                check_ended(self.config, differing)
            self.change = change_at(manifest, differing)


def _launch() -> str:
    """Names the launch of this process. A restart of its workers has the same name."""
    return os.environ.get("PIPEFLOW_LAUNCH_ID") or os.environ.get("TORCHELASTIC_RUN_ID", "")


def _process() -> str:
    """Names this process, which may begin several runs in one folder."""
    return f"{socket.gethostname()} {os.getpid()}"
