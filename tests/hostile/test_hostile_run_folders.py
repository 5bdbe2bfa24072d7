"""Run folders made to do harm: what is read of them gets one error that names it, and nothing is run or left."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import pipeflow
from pipeflow.config import Config
from pipeflow.errors import CheckpointError
from pipeflow.report.table import report
from pipeflow.rundir.model import load_flow
from pipeflow.rundir.reading import read_config
from pipeflow.use.evaluate import evaluate
from pipeflow.use.sample import sample
from tests.hostile.harmful import SAFETENSORS, STEP, TEXTS, YAMLS, change_json, sparse, write
from tests.hostile.refusals import bounded, files_under, refusal

SUMMARIES = {
    "no parts": lambda summary: summary.pop("parts"),
    "epochs are a number": lambda summary: summary.update(epochs=10**18),
    "an epoch is null": lambda summary: summary.update(epochs=[None]),
    "bits/dim are a list": lambda summary: summary.update(test_bpd=[1]),
    "bits/dim are a text": lambda summary: summary.update(test_bpd="__import__('os')"),
    "bits/dim before are not finite": lambda summary: summary.update(initial_bpd="nan"),
    "bits/dim before are endless": lambda summary: summary.update(initial_bpd=1e308),
    "seconds are negative": lambda summary: summary["epochs"][0].update(seconds=-1),
    "seconds are not finite": lambda summary: summary["epochs"][0].update(seconds=float("inf")),
    "multiply-adds are endless": lambda summary: summary["epochs"][0].update(macs=10**400),
    "a phase of no kind": lambda summary: summary["epochs"][0].update(phase="\x1b[2J"),
    "parts of no kind": lambda summary: summary["epochs"][0].update(trained=["x"]),
    "a link of four": lambda summary: summary["epochs"][0]["bytes"].update(latents=[[0, 1, 2, 3]]),
    "bytes of no kind": lambda summary: summary["bytes"]["gather"].update(evil=1),
    "images of no kind": lambda summary: summary["epochs"][0]["bytes"].update(images=None),
    "bytes are a text": lambda summary: summary["bytes"].update(total="many"),
    "a name that clears the screen": lambda summary: summary.update(name="\x1b[2J"),
    "a name without end": lambda summary: summary.update(name="x" * 100_000),
}


class TestReport:
    @pytest.mark.parametrize("text", TEXTS)
    @pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl"])
    def test_texts(self, name, text, run, tmp_path):
        if name == "metrics.jsonl":
            (run / "summary.json").unlink()
        write(run / name, TEXTS[text] + "\n")
        message = refusal(CheckpointError, report, [run], tmp_path / "figures")
        assert name in message or "no start of a run" in message
        assert not (tmp_path / "figures").exists()

    @pytest.mark.parametrize("change", SUMMARIES)
    def test_summaries(self, change, run, tmp_path):
        change_json(run / "summary.json", SUMMARIES[change])
        message = refusal(CheckpointError, report, [run], tmp_path / "figures")
        assert "summary.json" in message and "take it from a copy" in message
        assert not (tmp_path / "figures").exists()

    @pytest.mark.parametrize("kind", ["start", "epoch", "gather"])
    def test_events(self, kind, run, tmp_path):
        (run / "summary.json").unlink()
        with (run / "metrics.jsonl").open("a") as log:
            log.write(json.dumps({"event": kind, "epoch": {}}) + "\n")
        assert "metrics.jsonl, line" in refusal(CheckpointError, report, [run], tmp_path / "figures")

    @pytest.mark.parametrize(
        "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda p: sparse(p, 10**10)]
    )
    def test_a_log_that_is_no_file(self, make, run, tmp_path):
        for name in ("summary.json", "metrics.jsonl"):
            (run / name).unlink()
            make(run / name)
        with bounded(), pytest.raises(CheckpointError):
            report([run], tmp_path / "figures")


class TestModel:
    @pytest.mark.parametrize("case", SAFETENSORS)
    def test_files(self, case, run):
        (run / "model.safetensors").write_bytes(SAFETENSORS[case])
        for function in (load_flow, lambda folder: sample(folder, 1, 1.0, 0), evaluate):
            assert "model.safetensors is damaged" in refusal(CheckpointError, function, run)

    def rewrite(self, run: Path, change: Callable[[dict], object], shape: str = "[3, 32, 32]") -> None:
        tensors = load_file(run / "model.safetensors")
        change(tensors)
        save_file(tensors, run / "model.safetensors", metadata={"shape": shape})

    @pytest.mark.parametrize(
        "change, words",
        [
            (lambda t: t.update({STEP: torch.zeros(1)}), "[1]"),
            (lambda t: t.update({STEP: t[STEP].long()}), "torch.int64"),
            (lambda t: t.update({STEP: t[STEP].double()}), "torch.float64"),
            (lambda t: t.pop(STEP), f"no {STEP}"),
            (lambda t: t.update({"more": torch.zeros(1)}), "Unexpected key"),
        ],
    )
    def test_other_tensors(self, change, words, run):
        self.rewrite(run, change)
        assert words in refusal(CheckpointError, load_flow, run)

    @pytest.mark.parametrize(
        "shape",
        ["[3, 1073741824, 1073741824]", "[1000000, 4, 4]", "[1000000000000, 4, 4]", "[]", "null", "[3]", "[-3, 32, 32]",
         "[true, 32, 32]", "[3.0, 32, 32]", '"3"', "[" * 1000, "[3, 32, 33]", "9" * 10_000, "[3, 0, 32]"],
    )  # fmt: skip
    def test_shapes(self, shape, run):
        self.rewrite(run, lambda tensors: None, shape)
        assert "model.safetensors" in refusal(CheckpointError, sample, run, 1, 1.0, 0)

    def test_without_a_shape(self, run):
        save_file(load_file(run / "model.safetensors"), run / "model.safetensors")
        assert "have the shape None" in refusal(CheckpointError, load_flow, run)

    def test_a_configuration_of_a_flow_that_is_larger_than_the_file(self, run):
        settings = yaml.safe_load((run / "config.yaml").read_text())
        settings["model"] |= {"num_steps": 1024, "width": 16384}
        (run / "config.yaml").write_text(yaml.safe_dump(settings))
        assert "more flow steps than" in refusal(CheckpointError, load_flow, run)
        settings["model"] |= {"num_steps": 2}
        (run / "config.yaml").write_text(yaml.safe_dump(settings))
        assert "16384" in refusal(CheckpointError, load_flow, run)


class TestConfigInARunFolder:
    @pytest.mark.parametrize("case", [case for case in YAMLS if case != "50 MB of nesting"])
    def test_config(self, case, run, monkeypatch):
        monkeypatch.chdir(run)
        before = files_under(run)
        write(run / "config.yaml", YAMLS[case][0])
        assert "config.yaml" in refusal(CheckpointError, read_config, run)
        assert files_under(run) == before

    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
    def test_no_file(self, make, run, finished_run):
        config = read_config(finished_run)
        (run / "config.yaml").unlink()
        make(run / "config.yaml")
        assert "config.yaml" in refusal(CheckpointError, read_config, run)
        config = Config.from_dict({**config.to_dict(), "run": {"dir": str(run), "device": "cpu"}})
        assert "config.yaml" in refusal(CheckpointError, pipeflow.train, config)


@pytest.mark.parametrize("text", TEXTS)
def test_evaluate_of_texts(text, run):
    write(run / "summary.json", TEXTS[text])
    assert "summary.json is damaged" in refusal(CheckpointError, evaluate, run)


@pytest.mark.parametrize("layers", [[], ["x"], [5], None, "ab", ["blocks.0.squeeze"], [["a"]]])
def test_evaluate_of_parts(layers, run):
    change_json(run / "summary.json", lambda summary: summary["parts"][1].update(layers=layers))
    change_json(run / "summary.json", lambda summary: summary["epochs"][-1].update(phase="concurrent"))
    assert "summary.json is damaged" in refusal(CheckpointError, evaluate, run)
