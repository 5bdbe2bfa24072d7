"""Checkpoints: whole or not there at all, and nothing in them is ever run."""

import ast
import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import pipeflow
from pipeflow.errors import CheckpointError
from pipeflow.rundir import checkpoint
from pipeflow.rundir.checkpoint import FORMAT, Checkpoints
from pipeflow.safe_files import _Loader
from tests.run_records import manifest as manifest_of
from tests.run_records import write_file

COUNTS = {"blocks.0.steps.1": (3, 7)}


def tensors_of(rank: int, epoch: int = 0) -> dict[str, torch.Tensor]:
    """What a worker has after an epoch, of every type there is."""
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(100 * epoch + rank))
    return {
        f"model/blocks.{rank}.steps.1.weight": values.T,
        f"model/blocks.{rank}.steps.1.initialized": torch.tensor(True),
        f"optim.exp_avg/blocks.{rank}.steps.1.weight": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        f"ema/blocks.{rank}.steps.16.weight": values.bfloat16(),
        f"model/heads.blocks.{rank}.steps.16.mean": torch.nn.Parameter(values[0]),
    }


def save(checkpoints: Checkpoints, epoch: int, num_workers: int = 2) -> Path:
    files = [write_file(checkpoints, epoch, rank, tensors_of(rank, epoch)) for rank in range(num_workers)]
    return checkpoints.commit(files, manifest_of(epoch, counts=COUNTS))


def folders(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def rewritten(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Harm to a checkpoint's folder: what `change` makes of the bytes of one of its files."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def manifest_changed(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """Harm to a manifest, with the checksum that goes with it."""

    def change_bytes(text: bytes) -> bytes:
        content = json.loads(text)["content"]
        change(content)
        sha256 = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return json.dumps({**json.loads(text), "content": content, "sha256": sha256}).encode()

    return rewritten("manifest.json", change_bytes)


def removed(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def fail_with(monkeypatch, module: object, function: str, number: int) -> None:
    """An error of the operating system in place of a function."""
    error = OSError(number, os.strerror(number))
    monkeypatch.setattr(module, function, lambda *arguments: (_ for _ in ()).throw(error))


@pytest.fixture
def checkpoints(tmp_path):
    """The checkpoints of an empty run folder."""
    return Checkpoints(tmp_path, keep=3)


class TestWholeOnes:
    def test_what_was_written_is_read(self, checkpoints):
        assert save(checkpoints, 4) == checkpoints.folder / "epoch-000004"
        manifest, complaints = checkpoints.newest()
        assert (manifest.folder, complaints) == ("epoch-000004", [])
        assert dataclasses.replace(manifest, files=()) == manifest_of(4, counts=COUNTS)
        read = checkpoints.read(manifest, ["blocks.0.steps.1", "blocks.0.steps.16", "heads.blocks.0.steps.16"])
        written = tensors_of(0, 4)
        assert read.keys() == written.keys()
        for name, value in written.items():
            assert read[name].dtype == value.dtype and read[name].shape == value.shape
            left, right = (each.detach().contiguous().reshape(-1).view(torch.uint8) for each in (read[name], value))
            assert torch.equal(left, right), "bit for bit, NaN and -0 too"

    def test_only_what_is_wanted_is_read_from_whichever_file(self, checkpoints):
        save(checkpoints, 1, num_workers=3)
        manifest, _ = checkpoints.newest()
        assert checkpoints.read(manifest, ["blocks"]).keys() == {
            key for rank in range(3) for key in tensors_of(rank) if "/blocks." in key
        }
        one = checkpoints.read(manifest, ["blocks.2.steps.1"])
        assert one and all("/blocks.2.steps.1." in key for key in one), "steps.1 is not steps.16"
        assert checkpoints.read(manifest, ["heads.blocks.1.steps.16"]).keys() == {"model/heads.blocks.1.steps.16.mean"}

    @pytest.mark.parametrize("keep, kept", [(1, [100]), (2, [10, 100]), (9, [1, 2, 9, 10, 100])])
    def test_keep(self, tmp_path, keep, kept):
        checkpoints = Checkpoints(tmp_path, keep)
        checkpoints.clean()
        assert (checkpoints.newest(), checkpoints.last_good()) == ((None, []), "there is no checkpoint yet")
        for epoch in (1, 2, 9, 10, 100):
            folder = save(checkpoints, epoch, num_workers=1)
        assert folders(checkpoints) == [f"epoch-{epoch:06d}" for epoch in kept]
        assert checkpoints.newest()[0].epoch == 100 and str(folder) in checkpoints.last_good()

    def test_an_epoch_once_more_takes_the_place_of_the_first(self, checkpoints):
        """As when the run resumed from the checkpoint before, because this one was damaged."""
        folder = save(checkpoints, 2)
        (folder / "worker-1.safetensors").unlink()
        save(checkpoints, 2, num_workers=1)
        manifest, complaints = checkpoints.newest()
        assert complaints == [] and [entry.file for entry in manifest.files] == ["worker-0.safetensors"]
        assert folders(checkpoints) == ["epoch-000002"]


WORKER, MANIFEST = "worker-1.safetensors", "manifest.json"
DAMAGES = {
    "first byte flipped": (rewritten(WORKER, lambda old: bytes([old[0] ^ 1]) + old[1:]), f"{WORKER} is damaged"),
    "last byte flipped": (rewritten(WORKER, lambda old: old[:-1] + bytes([old[-1] ^ 1])), f"{WORKER} is damaged"),
    "last byte gone": (rewritten(WORKER, lambda old: old[:-1]), f"{WORKER} is damaged"),
    "empty file": (rewritten(WORKER, lambda old: b""), f"{WORKER} is damaged"),
    "file gone": (removed(WORKER), f"{WORKER} is missing"),
    "manifest gone": (removed(MANIFEST), f"{MANIFEST} is damaged"),
    "manifest cut off": (rewritten(MANIFEST, lambda old: old[:-1]), f"{MANIFEST} is damaged"),
    "no files": (manifest_changed(lambda content: content.pop("files")), f"{MANIFEST} is damaged"),
    "no format": (rewritten(MANIFEST, lambda old: old.replace(b'"format"', b'"formed"')), f"{MANIFEST} is damaged"),
    "another digit": (rewritten(MANIFEST, lambda old: old.replace(b"[3, 7]", b"[3, 8]")), "is not that of its content"),
    "another kind of name": (manifest_changed(lambda content: content["files"][0].update(file=5)), "files[0].file is 5"),
    "another epoch's": (
        manifest_changed(lambda content: content.update(position={"step": 3, "losses": []})),
        "is of epoch-000002-step",
    ),
    "another checksum": (manifest_changed(lambda content: content["files"][1].update(sha256="0" * 64)), WORKER),
    "a later format": (
        rewritten(MANIFEST, lambda old: json.dumps({"format": FORMAT + 1, "shards": {}}).encode()),
        f"has format {FORMAT + 1}, this version reads {FORMAT}",
    ),
}  # fmt: skip


class TestDamagedOnes:
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_the_one_before_is_taken_and_the_damage_named(self, checkpoints, damage):
        save(checkpoints, 1)
        newest = save(checkpoints, 2)
        harm, expected = DAMAGES[damage]
        harm(newest)
        manifest, (complaint,) = checkpoints.newest()
        assert manifest.folder == "epoch-000001"
        assert str(newest) in complaint and expected in complaint

    def test_one_on_a_broken_part_of_the_disk(self, checkpoints, monkeypatch):
        save(checkpoints, 1)
        fail_with(monkeypatch, checkpoint, "_sha256", errno.EIO)
        manifest, (complaint,) = checkpoints.newest()
        assert manifest is None and "worker-0.safetensors is damaged" in complaint and "[Errno 5]" in complaint

    def test_all_are_damaged(self, checkpoints):
        for epoch in (1, 2):
            removed(WORKER)(save(checkpoints, epoch))
        manifest, (second, first) = checkpoints.newest()
        assert manifest is None and "epoch-000002" in second and "epoch-000001" in first

    def test_a_partial_folder_is_no_checkpoint_and_is_removed(self, checkpoints):
        save(checkpoints, 1)
        write_file(checkpoints, 2, 0, tensors_of(0))
        shutil.move(save(checkpoints, 3), checkpoints.folder / "epoch-000003.partial")  # killed before it got its name
        assert folders(checkpoints) == ["epoch-000001", "epoch-000002.partial", "epoch-000003.partial"]
        manifest, complaints = checkpoints.newest()
        assert (manifest.epoch, complaints) == (1, [])
        assert "epoch-000001" in checkpoints.last_good()
        checkpoints.clean()
        assert folders(checkpoints) == ["epoch-000001"]

    @pytest.mark.parametrize("name", ["../x", "sub/x", "..", ".", "", "ABSOLUTE"])
    def test_names_that_lead_elsewhere_are_not_followed(self, checkpoints, tmp_path, name):
        """Though the file is there and its checksum right."""
        save(checkpoints, 1, num_workers=1)
        newest = save(checkpoints, 2, num_workers=1)
        (newest / "sub").mkdir()
        for path in (checkpoints.folder / "x", newest / "sub/x", tmp_path / "outside"):
            save_file({"model/blocks.0.steps.1.weight": torch.zeros(1)}, path)
        name = str(tmp_path / "outside") if name == "ABSOLUTE" else name
        sha256 = hashlib.sha256((tmp_path / "outside").read_bytes()).hexdigest()
        manifest_changed(lambda content: content["files"][0].update(file=name, sha256=sha256))(newest)
        manifest, (complaint,) = checkpoints.newest()
        assert manifest.epoch == 1 and f"{name} is missing" in complaint

    def test_damage_after_the_check(self, checkpoints):
        folder = save(checkpoints, 1)
        manifest, _ = checkpoints.newest()
        (folder / "worker-1.safetensors").write_bytes(b"none")
        with pytest.raises(CheckpointError, match=r"worker-1\.safetensors: cannot be read"):
            checkpoints.read(manifest, ["blocks"])


class TestFullDisk:
    @pytest.mark.parametrize("moment", ["a worker's file", "the manifest"])
    def test_nothing_is_left_and_the_checkpoint_before_is_good(self, checkpoints, monkeypatch, moment):
        """A disk that is really full is in test_failures."""
        save(checkpoints, 1)
        entries = [write_file(checkpoints, 3, 0, tensors_of(0))] if moment == "the manifest" else []
        fail_with(monkeypatch, os, "fsync", errno.ENOSPC)
        with pytest.raises(CheckpointError) as error:
            entries = entries or [write_file(checkpoints, 3, 0, tensors_of(0))]
            checkpoints.commit(entries, manifest_of(3))
        message = str(error.value)
        assert "after 3 epochs could not be written" in message and "No space left" in message
        assert "Free some space" in message and message.endswith("epoch-000001.")
        assert folders(checkpoints) == ["epoch-000001"] and checkpoints.newest()[0].epoch == 1

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(CheckpointError, match="could not be written .*Not a directory"):
            write_file(Checkpoints(tmp_path / "file", keep=1), 1, 0, {})


class TestNothingIsRun:
    """What is loaded is data: no pickle, under whatever name, but for tensors alone in the importer of others' flows."""

    FORBIDDEN = {
        "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal",
        "torch.load", "torch.save", "torch.hub.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all",
        "dist.send_object_list", "dist.recv_object_list", "dist.broadcast_object_list", "dist.scatter_object_list",
        "dist.all_gather_object", "dist.gather_object",
    }  # fmt: skip

    def test_no_pickle_and_only_safe_yaml(self):
        assert issubclass(_Loader, yaml.SafeLoader)
        for file in sorted(Path(pipeflow.__file__).parent.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                found = f"{file}, line {getattr(node, 'lineno', 0)}"
                if isinstance(node, ast.Import):
                    assert not self.FORBIDDEN & {alias.name.split(".")[0] for alias in node.names}, found
                elif isinstance(node, ast.ImportFrom):
                    names = {f"{node.module}.{each.name}" for each in node.names} | {(node.module or "").split(".")[0]}
                    assert not (self.FORBIDDEN | {"yaml.load"}) & names, found
                elif isinstance(node, ast.Call):
                    name = ast.unparse(node.func)
                    if file.name == "torch_file.py" and name == "torch.load":
                        assert "weights_only=True" in ast.unparse(node), found
                        continue
                    assert name not in self.FORBIDDEN, found
                    assert name != "yaml.load" or ast.unparse(node.args[1]) == "_Loader", found
                    for keyword in node.keywords:
                        assert keyword.arg != "allow_pickle" or ast.unparse(keyword.value) == "False", found
