"""Run folders made to do harm: what is read of them gets one error that names it, and nothing is run or left."""

import re

import pytest
import torch
import yaml

import pipeflow
from pipeflow.config import Config
from pipeflow.errors import CheckpointError
from pipeflow.report.table import report
from pipeflow.rundir.reading import read_config
from pipeflow.use.commands import sample
from pipeflow.use.evaluate import evaluate
from pipeflow.use.trained_flow import load_flow
from tests.hostile.harmful import NO_FILES, SAFETENSORS, STEP, TEXTS, YAMLS, change_json, change_tensors, write
from tests.hostile.refusals import files_under, refusal

SUMMARIES = {
    "no parts": lambda summary: summary.pop("parts"),
    "an epoch is null": lambda summary: summary.update(epochs=[None]),
    "bits/dim are a text": lambda summary: summary.update(test_bpd="__import__('os')"),
    "bits/dim before are endless": lambda summary: summary.update(initial_bpd=1e308),
    "seconds are negative": lambda summary: summary["epochs"][0].update(seconds=-1),
    "multiply-adds are endless": lambda summary: summary["epochs"][0].update(macs=10**400),
    "parts of no kind": lambda summary: summary["epochs"][0].update(trained=["x"]),
    "a link of four": lambda summary: summary["epochs"][0]["bytes"].update(latents=[[0, 1, 2, 3]]),
    "images of no kind": lambda summary: summary["epochs"][0]["bytes"].update(images=None),
    "a name that clears the screen": lambda summary: summary.update(name="\x1b[2J"),
    "a name without end": lambda summary: summary.update(name="x" * 100_000),
}


@pytest.mark.parametrize("text", TEXTS)
def test_summaries_of_other_texts(text, run):
    write(run / "summary.json", TEXTS[text])
    assert "summary.json is damaged" in refusal(CheckpointError, evaluate, run)


@pytest.mark.parametrize("layers", [[], [5], None, "ab", ["blocks.0.squeeze"], [["a"]]])
def test_evaluate_of_parts(layers, run):
    change_json(run / "summary.json", lambda summary: summary["parts"][1].update(layers=layers))
    change_json(run / "summary.json", lambda summary: summary["epochs"][-1].update(phase="concurrent"))
    assert "summary.json is damaged" in refusal(CheckpointError, evaluate, run)


class TestReport:
    @pytest.fixture
    def refused(self, run, tmp_path):
        """The error of a report on the run, which draws nothing."""
        yield lambda: refusal(CheckpointError, report, [run], tmp_path / "figures")
        assert not (tmp_path / "figures").exists()

    @pytest.mark.parametrize("change", SUMMARIES)
    def test_summaries(self, change, run, refused):
        change_json(run / "summary.json", SUMMARIES[change])
        message = refused()
        assert "summary.json" in message and "take it from a copy" in message

    @pytest.mark.parametrize("text", [*TEXTS.values(), '{"event": "start"}', '{"event": "epoch", "epoch": {}}'])
    def test_logs(self, text, run, refused):
        (run / "summary.json").unlink()
        write(run / "metrics.jsonl", text + "\n")
        assert "metrics.jsonl, line 1: " in refused()

    @pytest.mark.parametrize("case", NO_FILES)
    def test_a_log_that_is_no_file(self, case, run, refused):
        for name in ("summary.json", "metrics.jsonl"):
            (run / name).unlink()
        NO_FILES[case](run / "metrics.jsonl")
        refused()


class TestModel:
    @pytest.mark.parametrize("case", SAFETENSORS)
    def test_files(self, case, run):
        (run / "model.safetensors").write_bytes(SAFETENSORS[case])
        message = refusal(CheckpointError, load_flow, run)
        assert re.search("model.safetensors is (damaged|a safetensors file without a flow)", message)

    @pytest.mark.parametrize(
        "change, words",
        [
            (lambda t: t.update({STEP: torch.zeros(1)}), "[1]"),
            (lambda t: t.update({STEP: t[STEP].double()}), "torch.float64"),
            (lambda t: t.pop(STEP), f"no {STEP}"),
            (lambda t: t.update({"more": torch.zeros(1)}), "Unexpected key"),
        ],
    )
    def test_other_tensors(self, change, words, run):
        change_tensors(run / "model.safetensors", change, shape="[3, 32, 32]")
        assert words in refusal(CheckpointError, load_flow, run)

    @pytest.mark.parametrize(
        "shape",
        ["[3, 1073741824, 1073741824]", "[1000000, 4, 4]", "[]", "null", "[3]", "[-3, 32, 32]", "[true, 32, 32]",
         "[3.0, 32, 32]", "[" * 1000, "[3, 32, 33]", "9" * 10_000],
    )  # fmt: skip
    def test_shapes(self, shape, run):
        change_tensors(run / "model.safetensors", lambda tensors: None, shape=shape)
        assert "model.safetensors" in refusal(CheckpointError, sample, run, 1, 1.0, 0)

    @pytest.mark.parametrize("num_steps, words", [(1024, "more flow steps than"), (2, "16384")])
    def test_a_configuration_of_a_flow_that_is_larger_than_the_file(self, num_steps, words, run):
        settings = yaml.safe_load((run / "config.yaml").read_text())
        settings["model"] |= {"num_steps": num_steps, "width": 16384}
        (run / "config.yaml").write_text(yaml.safe_dump(settings))
        assert words in refusal(CheckpointError, load_flow, run)


@pytest.mark.parametrize("case", ["call", "billion laughs", "a zero byte"])
def test_configurations_in_a_run_folder(case, run, monkeypatch):
    monkeypatch.chdir(run)
    before = files_under(run)
    write(run / "config.yaml", YAMLS[case][0])
    assert "config.yaml" in refusal(CheckpointError, read_config, run)
    assert files_under(run) == before


@pytest.mark.parametrize("case", NO_FILES)
def test_a_configuration_that_is_no_file(case, run):
    config = Config.from_dict({**read_config(run).to_dict(), "run": {"dir": str(run), "device": "cpu"}})
    (run / "config.yaml").unlink()
    NO_FILES[case](run / "config.yaml")
    assert "config.yaml" in refusal(CheckpointError, pipeflow.train, config)
