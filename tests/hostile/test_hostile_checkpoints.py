"""Checkpoints made to do harm: a checksum tells of damage, not of who wrote it. And nothing at all is unpickled."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pipeflow
from pipeflow.config import Config
from pipeflow.errors import CheckpointError
from pipeflow.rundir.reading import read_config
from tests.hostile.harmful import SAFETENSORS, STEP, TEXTS, write
from tests.hostile.refusals import refusal
from tests.small_runs import finish


def change_manifest(folder: Path, change: Callable[[dict], object]) -> None:
    """Changes what a manifest says, with the checksum that goes with it: anybody can compute that."""
    document = json.loads((folder / "manifest.json").read_text())
    change(document["content"])
    document["sha256"] = hashlib.sha256(json.dumps(document["content"]).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(document))


def deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


MANIFESTS = {
    "nesting": lambda m: m.update(more=deep(400)),
    "no history": lambda m: m.pop("history"),
    "history of no kind": lambda m: m.update(history=[1, 2]),
    "history of another length": lambda m: m["history"].pop(),
    "epochs out of order": lambda m: m["history"].reverse(),
    "an epoch of 10^18": lambda m: m.update(epoch=10**18),
    "losses that are words": lambda m: m["history"][-1].update(train_loss={"flow": "many"}),
    "losses that are lists": lambda m: m["history"][-1].update(train_loss={"flow": [1]}),
    "a stage of no kind": lambda m: m.update(stage="../x"),
    "counts of no kind": lambda m: m.update(counts={"blocks.0.squeeze": "x"}),
    "counts that are negative": lambda m: m["counts"].update({"blocks.0.steps.0": [-1, -1]}),
    "counts that are endless": lambda m: m["counts"].update({"blocks.0.steps.0": [1, 10**400]}),
    "a position of no kind": lambda m: m.update(log_position="x"),
    "a position beyond the log": lambda m: m.update(log_position=10**15),
    "a position within a line": lambda m: m.update(log_position=5),
    "seconds that are not numbers": lambda m: m["state"].update(seconds={"total": None}),
    "seconds that are NaN": lambda m: m["state"]["seconds"].update(total=float("nan")),
    "bytes that are lists": lambda m: m["state"]["bytes"].update(eval=[1]),
    "no state": lambda m: m.update(state=None),
    "cuts of no kind": lambda m: m.update(cuts=[{}]),
}


class TestCheckpoint:
    @pytest.fixture
    def resumed(self, run) -> Config:
        """A run whose end is to be made again, from its newest checkpoint."""
        (run / "summary.json").unlink()
        shutil.rmtree(run / "checkpoints" / "epoch-000001")
        settings = read_config(run).to_dict()
        return Config.from_dict({**settings, "run": {**settings["run"], "dir": str(run)}})

    @pytest.fixture
    def newest(self, run) -> Path:
        return run / "checkpoints" / "epoch-000002"

    def rewrite(self, newest: Path, change: Callable[[dict], object]) -> None:
        file = newest / "worker-0.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)
        self.fit(newest)

    def fit(self, newest: Path) -> None:
        sha256 = hashlib.sha256((newest / "worker-0.safetensors").read_bytes()).hexdigest()
        change_manifest(newest, lambda manifest: manifest["files"][0].update(sha256=sha256))

    def test_unchanged(self, resumed, newest):
        self.rewrite(newest, lambda tensors: None)
        assert pipeflow.train(resumed).num_epochs == 2

    @pytest.mark.parametrize("change", MANIFESTS)
    def test_manifests(self, change, resumed, newest):
        change_manifest(newest, MANIFESTS[change])
        message = refusal(CheckpointError, pipeflow.train, resumed)
        assert "manifest.json" in message or "metrics.jsonl" in message

    @pytest.mark.parametrize("text", TEXTS)
    def test_texts(self, text, resumed, newest):
        write(newest / "manifest.json", TEXTS[text])
        assert "manifest.json is damaged" in refusal(CheckpointError, pipeflow.train, resumed)

    @pytest.mark.parametrize("name", ["manifest.json", "worker-0.safetensors"])
    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
    def test_no_files(self, make, name, resumed, newest):
        (newest / name).unlink()
        make(newest / name)
        assert name in refusal(CheckpointError, pipeflow.train, resumed)

    @pytest.mark.parametrize("name", ["\0", "a" * 100_000, "worker-0.safetensors\0"])
    def test_names(self, name, resumed, newest):
        change_manifest(newest, lambda manifest: manifest["files"][0].update(file=name))
        assert "manifest.json is damaged" in refusal(CheckpointError, pipeflow.train, resumed)

    @pytest.mark.parametrize("case", SAFETENSORS)
    def test_files(self, case, resumed, newest):
        (newest / "worker-0.safetensors").write_bytes(SAFETENSORS[case])
        self.fit(newest)
        assert "epoch-000002" in refusal(CheckpointError, pipeflow.train, resumed)

    @pytest.mark.parametrize(
        "section, change",
        [
            ("model", lambda value: torch.zeros(1)),
            ("ema", lambda value: value.double()),
            ("optim.exp_avg", lambda value: value.long()),
            ("optim.exp_avg_sq", lambda value: value[None]),
        ],
        ids=["one value", "float64", "int64", "one dimension more"],
    )
    def test_tensors(self, section, change, resumed, newest):
        key = f"{section}/{STEP}"
        self.rewrite(newest, lambda tensors: tensors.update({key: change(tensors[key])}))
        message = refusal(CheckpointError, pipeflow.train, resumed)
        assert "epoch-000002" in message and key in message

    @pytest.mark.parametrize("key", [f"model/{STEP}", f"optim.exp_avg/{STEP}"])
    def test_tensors_that_are_missing(self, key, resumed, newest):
        self.rewrite(newest, lambda tensors: tensors.pop(key))
        assert STEP in refusal(CheckpointError, pipeflow.train, resumed)

    @pytest.mark.parametrize("key", [f"optim.__class__/{STEP}", "model/blocks.0.steps.0.more", f"evil/{STEP}"])
    def test_tensors_that_nobody_knows(self, key, resumed, newest):
        self.rewrite(newest, lambda tensors: tensors.update({key: torch.zeros(1)}))
        assert key in refusal(CheckpointError, pipeflow.train, resumed)

    def test_names_without_a_section(self, resumed, newest):
        """They belong to no layer, so nobody reads them."""
        self.rewrite(newest, lambda tensors: tensors.update({"name": torch.zeros(1), "": torch.zeros(1)}))
        assert pipeflow.train(resumed).num_epochs == 2

    def test_a_summary_of_a_run_that_has_ended(self, run, resumed):
        write(run / "summary.json", "{}")
        assert "summary.json is damaged" in refusal(CheckpointError, pipeflow.train, resumed)


def test_workers_unpickle_nothing(launch, tmp_path):
    """Neither from each other, through torch's collectives of objects, nor from the run folder when they resume."""
    given = [f"--run.dir={tmp_path / 'run'}", "--data.num_train=96", "--data.num_test=32", "--model.width=8"]
    given += ["--parts.num=2", "--optim.batch_size=32", "--finetune.parallel=ddp", "--run.device=cpu"]
    entry = "tests.hostile.programs.unpickles_nothing:main"
    process = launch(2, *given, "--schedule.local_epochs=1", entry=entry)
    output = finish(process)
    assert process.returncode == 0 and output.count("ENDED 3") == 2, output
    assert "resuming" in output
    assert "UNPICKLED" not in output and "OBJECTS" not in output
