"""Checkpoints: safetensors and a JSON manifest, whole or not there at all, never pickled.

    checkpoints/epoch-000012/worker-0.safetensors   model/<name>, optim.exp_avg/<name>, ema/<name>, ...
                             worker-1.safetensors   names are the flow's own, so any cut and any world size can read them
                             manifest.json          schedule position, history, counts, sha256 of each file; written last

A run that was preempted after 12 epochs and 340 batches of the next leaves `epoch-000012-step-000340`. A checkpoint is
written into a folder `epoch-....partial`, which is renamed once the manifest is on the disk.
"""

import dataclasses
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeflow.errors import CheckpointError
from pipeflow.flow import Part
from pipeflow.rundir.records import File, Manifest, checkpoint_name
from pipeflow.safe_files import MAX_JSON_BYTES, brief, parse_json, read_bytes
from pipeflow.units import count_text

MANIFEST_FILE = "manifest.json"
FORMAT = 1
_MOMENTS = {"adam": ("exp_avg", "exp_avg_sq"), "adamax": ("exp_avg", "exp_inf")}
"""Names of the tensors that each optimizer keeps for a parameter."""


class Checkpoints:
    """The checkpoints of one run folder. Every worker writes its own file; rank 0 does the rest."""

    def __init__(self, run_dir: Path, keep: int):
        self.folder = Path(run_dir) / "checkpoints"
        self.keep = keep

    def write(
        self, epoch: int, rank: int, chunks: Iterable[bytes | memoryview], step: int = 0
    ) -> Generator[None, None, File]:
        """Writes one worker's file, with a pause after each chunk; returns its entry for the manifest.

        Raises CheckpointError where the disk refuses.
        """
        path = self._partial(epoch, step) / f"worker-{rank}.safetensors"
        sha256 = hashlib.sha256()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb", buffering=0) as file:
                for chunk in chunks:
                    sha256.update(chunk)
                    _write_all(file, chunk)
                    yield
                os.fsync(file.fileno())
                size = file.tell()
        except OSError as error:
            with suppress(OSError):  # only this worker's file goes: others may be writing theirs
                path.unlink(missing_ok=True)
                path.parent.rmdir()
            raise self.not_written(epoch, error) from None
        return File(file=path.name, bytes=size, sha256=sha256.hexdigest())

    def commit(self, files: Sequence[File], manifest: Manifest) -> Path:
        """Makes the workers' files a checkpoint, and removes checkpoints that are too old."""
        final = self.folder / manifest.folder
        partial = final.with_suffix(".partial")
        try:
            content = dataclasses.replace(manifest, files=tuple(files)).to_json()
            document = {"format": FORMAT, "sha256": _sha256_of_json(content), "content": content}
            (partial / MANIFEST_FILE).write_text(json.dumps(document))
            _sync(partial / MANIFEST_FILE)
            _sync(partial)
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
            _sync(self.folder)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise self.not_written(manifest.epoch, error) from None
        for old in self._folders()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def clean(self) -> None:
        """Removes checkpoints that an interrupted run did not finish."""
        for partial in self.folder.glob("*.partial"):
            shutil.rmtree(partial, ignore_errors=True)

    def newest(self) -> tuple[Manifest | None, list[str]]:
        """Finds the newest undamaged checkpoint (None: there is none), and tells what is wrong with newer ones."""
        complaints: list[str] = []
        for folder in reversed(self._folders()):
            try:
                return read_manifest(folder), complaints
            except CheckpointError as error:
                complaints.append(str(error))
        return None, complaints

    def read(self, manifest: Manifest, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Reads the tensors of the wanted layers and heads, from whichever files hold them."""
        prefixes = tuple(f"{name}." for name in wanted)
        return read_tensors(
            self.folder / manifest.folder, manifest, lambda key: key.partition("/")[2].startswith(prefixes)
        )

    def last_good(self) -> str:
        """Names the newest checkpoint, for a message."""
        folders = self._folders()
        return f"the last good checkpoint is {folders[-1]}" if folders else "there is no checkpoint yet"

    def not_written(self, epoch: int, error: Exception) -> CheckpointError:
        """The error of a checkpoint that could not be written."""
        return CheckpointError(
            f"the checkpoint after {count_text(epoch, 'epoch')} could not be written to {self.folder}: {error}. "
            f"Free some space or move the run folder, then start the same command again to resume: {self.last_good()}."
        )

    def _partial(self, epoch: int, step: int) -> Path:
        return self.folder / f"{checkpoint_name(epoch, step)}.partial"

    def _folders(self) -> list[Path]:
        found = [*self.folder.glob("epoch-??????"), *self.folder.glob("epoch-??????-step-??????")]
        return sorted(path for path in found if path.is_dir())


def check_tensors(tensors: Mapping[str, Tensor], manifest: Manifest, parts: Sequence[Part], optimizer: str) -> None:
    """Raises CheckpointError unless the tensors that a checkpoint gave for these parts are theirs, one by one.

    A head may be new and have none; layers and heads that the manifest counts updates of must be whole. A checksum tells of
    damage, not of who wrote a file.
    """
    where = f"checkpoint {manifest.folder}"
    counted = tuple(f"{owner}." for owner in manifest.counts)
    moments = [f"optim.{key}" for key in _MOMENTS[optimizer]]
    expected: dict[str, Tensor] = {}
    for part in parts:
        expected |= {f"model/{name}": value for name, value in part.global_state().items()}
        for section in ("ema", *moments):
            expected |= {f"{section}/{name}": value for name, value in part.global_parameters().items()}
    for key, value in tensors.items():
        if key not in expected:
            raise CheckpointError(f"{where}: {key} is no tensor of this flow: the checkpoint is of another model.")
        if value.shape != expected[key].shape or value.dtype != expected[key].dtype:
            raise CheckpointError(
                f"{where}: {key} is {value.dtype} {list(value.shape)}, this flow has {expected[key].dtype} "
                f"{list(expected[key].shape)}: the checkpoint is of another model."
            )
    for key in expected.keys() - tensors.keys():
        section, _, name = key.partition("/")
        has_other_moment = section in moments and any(f"{other}/{name}" in tensors for other in moments)
        if has_other_moment or (section == "model" and name.startswith(counted)):
            raise CheckpointError(f"{where}: has no {key}, which this flow has: the checkpoint is of another model.")


def read_tensors(folder: Path, manifest: Manifest, is_wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint whose keys, such as `model/<name>`, are wanted."""
    tensors: dict[str, Tensor] = {}
    for entry in manifest.files:
        path = folder / entry.file
        try:
            with safe_open(path, framework="pt") as file:
                tensors |= {key: file.get_tensor(key) for key in file.keys() if is_wanted(key)}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"checkpoint {path}: cannot be read ({error}).") from None
    return tensors


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a checkpoint, and checks that its files are all there and unchanged. Raises CheckpointError."""
    try:
        text = read_bytes(folder / MANIFEST_FILE, MAX_JSON_BYTES)
        document = parse_json(text)
        if document["format"] != FORMAT:
            raise CheckpointError(
                f"checkpoint {folder}: has format {brief(document['format'])}, this version reads {FORMAT}."
            )
        # The text itself is compared too: a digit can change in it without changing a number.
        is_whole = text == json.dumps(document).encode()
        if not is_whole or _sha256_of_json(document["content"]) != document["sha256"]:
            raise ValueError("its sha256 is not that of its content")
        manifest = Manifest.from_json(document["content"])
        if manifest.folder != folder.name:
            raise ValueError(f"it is of {manifest.folder}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {folder}: {MANIFEST_FILE} is damaged ({error}).") from None
    for file in manifest.files:
        path = folder / file.file
        if path.name != file.file or not path.is_file():
            raise CheckpointError(f"checkpoint {folder}: {file.file} is missing.")
        try:
            found = _sha256(path)
        except OSError as error:
            raise CheckpointError(f"checkpoint {folder}: {file.file} is damaged ({error}).") from None
        if found != file.sha256:
            raise CheckpointError(f"checkpoint {folder}: {file.file} is damaged (its sha256 is not the manifest's).")
    return manifest


def _sha256_of_json(content: object) -> str:
    """Hash of the content's JSON, which is the same before it is written and after it is read."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_all(file: io.RawIOBase, chunk: bytes | memoryview) -> None:
    """Writes the whole chunk; a raw file may take less at a time."""
    rest = memoryview(chunk)
    while len(rest):
        rest = rest[file.write(rest) :]


def _sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
