"""Checkpoints made to do harm: a checksum tells of damage, not of who wrote it. And nothing at all is unpickled."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import pipeflow
from pipeflow.config import Config
from pipeflow.errors import CheckpointError
from pipeflow.rundir.reading import read_config
from tests.hostile.harmful import NO_FILES, SAFETENSORS, STEP, TEXTS, change_tensors, write
from tests.hostile.refusals import refusal
from tests.small_runs import finish


def change_manifest(folder: Path, change: Callable[[dict], object]) -> None:
    """Changes what a manifest says, with the checksum that goes with it: anybody can compute that."""
    document = json.loads((folder / "manifest.json").read_text())
    change(document["content"])
    document["sha256"] = hashlib.sha256(json.dumps(document["content"]).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(document))


MANIFESTS = {
    "no history": lambda m: m.pop("history"),
    "epochs out of order": lambda m: m["history"].reverse(),
    "an epoch of 10^18": lambda m: m.update(epoch=10**18),
    "losses that are words": lambda m: m["history"][-1].update(train_loss={"flow": "many"}),
    "a stage of no kind": lambda m: m.update(stage="../x"),
    "counts that are negative": lambda m: m["counts"].update({"blocks.0.steps.0": [-1, -1]}),
    "counts that are endless": lambda m: m["counts"].update({"blocks.0.steps.0": [1, 10**400]}),
    "a position beyond the log": lambda m: m.update(log_position=10**15),
    "a position within a line": lambda m: m.update(log_position=5),
    "seconds that are NaN": lambda m: m["state"]["seconds"].update(total=float("nan")),
    "cuts of no kind": lambda m: m.update(cuts=[{}]),
    "a file's name with a zero byte": lambda m: m["files"][0].update(file="worker-0.safetensors\0"),
    "a file's name without end": lambda m: m["files"][0].update(file="a" * 100_000),
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

    def fit(self, newest: Path) -> None:
        sha256 = hashlib.sha256((newest / "worker-0.safetensors").read_bytes()).hexdigest()
        change_manifest(newest, lambda manifest: manifest["files"][0].update(sha256=sha256))

    def rewrite(self, newest: Path, change: Callable[[dict], object]) -> None:
        change_tensors(newest / "worker-0.safetensors", change)
        self.fit(newest)

    def test_names_without_a_section(self, resumed, newest):
        """They belong to no layer, so nobody reads them: the run goes on."""
        self.rewrite(newest, lambda tensors: tensors.update({"name": torch.zeros(1), "": torch.zeros(1)}))
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
    @pytest.mark.parametrize("case", ["a pipe", "a device"])
    def test_no_files(self, case, name, resumed, newest):
        (newest / name).unlink()
        NO_FILES[case](newest / name)
        assert name in refusal(CheckpointError, pipeflow.train, resumed)

    @pytest.mark.parametrize("case", SAFETENSORS)
    def test_files(self, case, resumed, newest):
        (newest / "worker-0.safetensors").write_bytes(SAFETENSORS[case])
        self.fit(newest)
        assert "epoch-000002" in refusal(CheckpointError, pipeflow.train, resumed)

    @pytest.mark.parametrize(
        "key, value",
        [
            (f"model/{STEP}", torch.zeros(1)),
            (f"ema/{STEP}", torch.zeros(12, dtype=torch.float64)),
            (f"model/{STEP}", None),
            (f"optim.exp_avg/{STEP}", None),
            (f"optim.__class__/{STEP}", torch.zeros(1)),
            ("model/blocks.0.steps.0.more", torch.zeros(1)),
        ],
        ids=["other shape", "other type", "no parameter", "no moment", "no section", "no name of the flow"],
    )
    def test_tensors(self, key, value, resumed, newest):
        self.rewrite(newest, lambda t: t.pop(key) if value is None else t.update({key: value}))
        message = refusal(CheckpointError, pipeflow.train, resumed)
        assert "epoch-000002" in message and key in message


@pytest.mark.slow
def test_workers_unpickle_nothing(launch, tmp_path):
    """Neither from each other, through torch's collectives of objects, nor from the run folder when they resume."""
    process = launch(2, str(tmp_path / "run"), entry="tests.hostile.programs.unpickles_nothing:main")
    output = finish(process)
    assert process.returncode == 0 and output.count("ENDED 3") == 2, output
    assert "resuming" in output
    assert "UNPICKLED" not in output and "OBJECTS" not in output
