"""benchmarks.gpu: slices resume, failures leave their traceback, and all of it runs on the CPU at toy size."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.checks import CHECKS, Row
from benchmarks.gpu.plan import Settings, make_slices
from benchmarks.gpu.report import write_summary
from benchmarks.gpu.slices import CUT_OFF, DONE, FAILED, MINUTES, MOST_ATTEMPTS, Slice, State, run
from tests.gpu.test_gpu_checks import NAMES

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def a_slice(name: str, *words: str, **how) -> Slice:
    return Slice(name=name, title=f"the slice {name}", module="tests.benchmarks.pretended", arguments=words, **how)


def statuses(state: State, slices: list[Slice]) -> list[str]:
    return [state.of(each.name).status for each in slices]


def test_a_slice_that_fails_is_recorded_and_the_next_goes_on(tmp_path):
    resuming = a_slice("resuming", "epoch", str(tmp_path / "epochs"), MINUTES, least_s=0, resumes=True)
    slices = [
        a_slice("broken", "raise", least_s=0),
        a_slice("good", "exit", "0", least_s=0),
        a_slice("slow", "sleep", least_s=0, limit_s=0.5),
        a_slice("long", "exit", "0", least_s=1000),
        resuming,
    ]
    run(slices, State(tmp_path), time.monotonic() + 120)
    state = State(tmp_path)
    assert statuses(state, slices) == [FAILED, DONE, FAILED, "", ""]
    assert "ValueError: as it should" in state.of("broken").error and "exit code 1" in state.of("broken").error
    assert "given up after 0 s" in state.of("slow").error
    assert [each.name for each in state.left(slices)] == ["long", "resuming", "broken", "slow"]
    text = write_summary(slices, state, "the command")
    assert "1 of 5 slices are done, 2 failed. Left: long, resuming, broken, slow." in text
    assert "## broken failed" in text and "ValueError: as it should" in text

    run(slices, state, time.monotonic() + 120)
    assert statuses(state, slices) == [FAILED, DONE, FAILED, "", DONE]
    assert state.of("broken").attempts == MOST_ATTEMPTS
    assert [each.name for each in state.left(slices)] == ["long"], "what failed twice is left alone"
    assert 0 < float((tmp_path / "resuming.log").read_text().split(" of ")[1].split()[0]) < 2


def test_a_slice_that_the_minutes_cut_off_comes_first_again(tmp_path):
    slices = [a_slice("slow", "sleep", least_s=0), a_slice("good", "exit", "0", least_s=0)]
    state = State(tmp_path)
    run(slices, state, time.monotonic() + 0.5)
    assert statuses(state, slices) == [CUT_OFF, ""]
    assert [each.name for each in state.left(slices)] == ["slow", "good"]


def test_a_number_that_is_none_does_not_hold():
    assert Row("loss", 1.01, 1.0, 0.02).holds and not Row("loss", 1.03, 1.0, 0.02).holds
    assert not Row("loss", float("nan"), 1.0, 0.02).holds


def test_what_is_measured_on_a_gpu(tmp_path):
    assert tuple(CHECKS) == NAMES
    slices = make_slices(Settings(dry=False, out=None, runs=tmp_path, data="cifar10.zip"))
    assert [each.name for each in slices[-3:]] == ["step-512-plain", "step-512-compiled", "published-rows"]
    assert all("cuda" in each.arguments for each in slices[:-1])
    assert slices[-1].arguments[-1] == str(ROOT / "benchmarks" / "published")


@pytest.mark.timeout(600)
def test_everything_runs_on_the_cpu_at_toy_size(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--minutes", "9", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Left: nothing." in (tmp_path / "gpu" / "summary.md").read_text()
    assert {file.stem for file in (tmp_path / "gpu" / "checks").glob("*.json")} > {"flow", "two_workers", "nccl_alone"}
    assert json.loads((tmp_path / "step" / "results.json").read_text())["cpu"]["cases"][0]["rounds"]
    assert json.loads((tmp_path / "published" / "results.json").read_text())["lines"]["across2_lr1e-4"]["ended"]
