"""Checkpoints: safetensors and a JSON manifest, whole or not there at all, never pickled.

    checkpoints/epoch-000012/worker-0.safetensors   model/<name>, optim.exp_avg/<name>, ema/<name>, ...
                             worker-1.safetensors   names are the flow's own, so any cut and any world size can read them
                             manifest.json          schedule position, history, counts, sha256 of each file; written last

`epoch-000012-step-000340` is of a run that was preempted after 12 epochs and 340 batches of the next.
All is written in a folder with another name, which becomes `epoch-...` once the manifest is on the disk.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeflow.errors import CheckpointError
from pipeflow.safe_files import brief, printable, read_json

_MANIFEST = "manifest.json"
FORMAT = 1


class Checkpoints:
    """The checkpoints of one run folder. Every worker writes its own file; rank 0 does the rest."""

    def __init__(self, run_dir: Path, keep: int):
        self.folder = Path(run_dir) / "checkpoints"
        self.keep = keep

    def write(
        self, epoch: int, rank: int, chunks: Iterable[bytes | memoryview], step: int = 0
    ) -> Generator[None, None, dict]:
        """Writes one worker's file, with a pause after each chunk; returns its entry for the manifest.

        Raises CheckpointError where the disk does not let it.
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
            with suppress(OSError):  # its own only: others may be writing theirs
                path.unlink(missing_ok=True)
                path.parent.rmdir()
            raise self.not_written(epoch, error) from None
        return {"file": path.name, "bytes": size, "sha256": sha256.hexdigest()}

    def commit(self, epoch: int, files: Sequence[dict], manifest: dict, step: int = 0) -> Path:
        """Makes the workers' files a checkpoint, and removes those that are too old."""
        partial = self._partial(epoch, step)
        final = partial.with_suffix("")
        try:
            content = {"epoch": epoch, "files": list(files), **manifest}
            document = {"format": FORMAT, "sha256": _sha256_of_json(content), "content": content}
            (partial / _MANIFEST).write_text(json.dumps(document))
            _sync(partial / _MANIFEST)
            _sync(partial)
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
            _sync(self.folder)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise self.not_written(epoch, error) from None
        for old in self._folders()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def clean(self) -> None:
        """Removes what an interrupted run had begun to write."""
        for partial in self.folder.glob("*.partial"):
            shutil.rmtree(partial, ignore_errors=True)

    def newest(self) -> tuple[dict | None, list[str]]:
        """The newest undamaged checkpoint's manifest (None: there is none), and what was wrong with newer ones.

        The manifest gets `folder`, the name of the checkpoint's folder.
        """
        complaints = []
        for folder in reversed(self._folders()):
            try:
                return {**_verified(folder), "folder": folder.name}, complaints
            except CheckpointError as error:
                complaints.append(str(error))
        return None, complaints

    def read(self, manifest: dict, wanted: Sequence[str]) -> dict[str, Tensor]:
        """The tensors whose names begin with one of the wanted layers or heads, from whichever files hold them."""
        tensors = {}
        for entry in manifest["files"]:
            path = self.folder / manifest["folder"] / entry["file"]
            try:
                with safe_open(path, framework="pt") as file:
                    for key in file.keys():
                        if key.partition("/")[2].startswith(tuple(f"{name}." for name in wanted)):
                            tensors[key] = file.get_tensor(key)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"checkpoint {path}: cannot be read ({error}).") from None
        return tensors

    def last_good(self) -> str:
        """The newest checkpoint, in the words of a message."""
        folders = self._folders()
        return f"the last good checkpoint is {folders[-1]}" if folders else "there is no checkpoint yet"

    def not_written(self, epoch: int, error: Exception) -> CheckpointError:
        """What to say where a checkpoint could not be written."""
        return CheckpointError(
            f"the checkpoint after {epoch} epochs could not be written to {self.folder}: {error}. Free some space or move "
            f"the run folder, then start the same command again to resume: {self.last_good()}."
        )

    def _partial(self, epoch: int, step: int) -> Path:
        return self.folder / f"epoch-{epoch:06d}{f'-step-{step:06d}' if step else ''}.partial"

    def _folders(self) -> list[Path]:
        found = [*self.folder.glob("epoch-??????"), *self.folder.glob("epoch-??????-step-??????")]
        return sorted(path for path in found if path.is_dir())


def _verified(folder: Path) -> dict:
    """The manifest of a checkpoint whose files are all there and unchanged."""
    try:
        document = read_json(folder / _MANIFEST)
        if document["format"] != FORMAT:
            raise CheckpointError(
                f"checkpoint {folder}: has format {brief(document['format'])}, this version reads {FORMAT}."
            )
        manifest = document["content"]
        # The text itself, too: a digit can change in it that makes no other number.
        is_whole = (folder / _MANIFEST).read_text() == json.dumps(document)
        if not is_whole or _sha256_of_json(manifest) != document["sha256"]:
            raise CheckpointError(f"checkpoint {folder}: {_MANIFEST} is damaged (its sha256 does not fit its content).")
        files = {str(entry["file"]): entry["sha256"] for entry in manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {folder}: {_MANIFEST} is damaged ({error}).") from None
    for name, expected in files.items():
        path = folder / name
        if Path(name).name != name or not name.isprintable() or len(name) > 255 or not path.is_file():
            raise CheckpointError(f"checkpoint {folder}: {printable(brief(name, str))} is missing.")
        try:
            found = _sha256(path)
        except OSError as error:
            raise CheckpointError(f"checkpoint {folder}: {name} is damaged ({error}).") from None
        if found != expected:
            raise CheckpointError(f"checkpoint {folder}: {name} is damaged (its sha256 is not the manifest's).")
    return manifest


def _sha256_of_json(content: dict) -> str:
    """Of the text that json makes of it, which is the same before it was written and after it was read."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_all(file: io.RawIOBase, chunk: bytes | memoryview) -> None:
    """Writes all of it: a raw file may take less at a time."""
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
