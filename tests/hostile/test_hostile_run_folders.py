"""Run folders made to do harm: what is read of them gets one error that names it, and nothing is run or left."""

import json
import math
import re
import struct
import sys
import zlib

import pytest
import torch
import yaml

import pipeflow
from pipeflow.config import Config
from pipeflow.errors import CheckpointError
from pipeflow.report.command import report
from pipeflow.report.page import render
from pipeflow.report.pictures import data_of
from pipeflow.report.runs import read_runs
from pipeflow.report.trace import read_trace
from pipeflow.rundir.reading import read_config
from pipeflow.use.commands import sample
from pipeflow.use.evaluate import evaluate
from pipeflow.use.trained_flow import load_flow
from tests.hostile.harmful import NO_FILES, SAFETENSORS, STEP, TEXTS, YAMLS, change_json, change_tensors, sparse, write
from tests.hostile.refusals import bounded, files_under, refusal

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


def png_of(width: int, height: int) -> bytes:
    """A PNG of few bytes that says it has so many pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


SPAN = {"ph": "X", "cat": "compute", "name": "n", "pid": 0, "tid": 0, "ts": 0, "dur": 1}
NAMED = {"ph": "M", "name": "thread_name", "pid": 0, "tid": 0, "args": {"name": "computing"}}
LEFT_OUT = {
    "a picture of a billion pixels": ("samples/data.png", png_of(100_000, 10_000)),
    "a picture that is cut off": ("samples/data.png", png_of(64, 64)),
    "a picture that is a script": ("samples/data.png", b"<svg onload=alert(1)>"),
    "a picture without end": ("samples/data.png", None),
    "options of a call": ("config.yaml", b"run: !!python/object/apply:os.mkdir [was_run]"),
    "changes of no kind": ("config_history.yaml", b"[{epoch: -1, options: {}}]"),
    "a trace without end": ("timeline.json", None),
    "a trace of text": ("timeline.json", b"no JSON"),
    "a trace of nothing": ("timeline.json", b"[]"),
    "a trace of numbers": ("timeline.json", b'{"traceEvents": [1]}'),
    "a trace without threads": ("timeline.json", json.dumps({"traceEvents": [SPAN]}).encode()),
    "a worker without end": ("timeline.json", json.dumps({"traceEvents": [NAMED, {**SPAN, "pid": math.inf}]}).encode()),
    "a time of text": ("timeline.json", json.dumps({"traceEvents": [NAMED, {**SPAN, "ts": "x"}]}).encode()),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_a_page_cannot_show_is_named_and_left_out(case, run, capsys, monkeypatch):
    monkeypatch.chdir(run)
    name, content = LEFT_OUT[case]
    (run / "config_history.yaml").write_text("[]")
    if content is None:
        sparse(run / name, 10**10)
    else:
        (run / name).write_bytes(content)
    before = files_under(run)
    with bounded():
        assert data_of(run) is None or "data.png" not in name
        (read,) = read_runs([run]).values()
        assert (read.options is None) == (name == "config.yaml") and read.changes == ()
        if name == "timeline.json":
            print(refusal(CheckpointError, read_trace, run / name), file=sys.stderr)
    assert str(run / name) in capsys.readouterr().err and files_under(run) == before


def test_a_page_of_epochs_that_no_run_has(run):
    """No part that trains, losses of no part, more parts, workers and links than there are."""
    strange = {
        "trained": [],
        "train_loss": {"__proto__": 1.0, "-1": 2.0, "9" * 400: 4.0, **{str(part): 1.0 for part in range(100_000)}},
        "exit_bpd": [1.0] * 100_000,
        "idle": [0.5] * 100_000,
        "bytes": {"latents": [[10**20 + k, 0, 5] for k in range(1000)], "eval": 0, "gradients": 0, "control": 0},
    }
    change_json(run / "summary.json", lambda summary: summary["epochs"][0].update(strange))
    with bounded():
        assert "Test bits/dim" in render(read_runs([run]))


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
