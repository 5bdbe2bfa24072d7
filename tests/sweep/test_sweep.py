"""`pipeflow sweep` with real runs: what is there is not trained again, what fails is named, what is stopped goes on."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipeflow.cli import main
from pipeflow.sweep.command import stoppable
from pipeflow.sweep.pool import room_for
from tests.small_runs import SMALL

OPTIONS = {f"{section}.{name}": value for section, values in SMALL.items() for name, value in values.items()}


def write(folder, **keys):
    path = folder / "rates.yaml"
    settings = {"out": str(folder / "runs"), "options": OPTIONS, **keys}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(path)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of which one run fails, and its folder."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "flow.py").write_text("def broken(config, shape):\n    raise RuntimeError('no flow today')\n")
    arms = {
        "good": {"grid": {"optim.lr": [1e-3, 2e-3]}},
        "bad": {"options": {"data.name": "images", "data.path": "no.zip"}},
    }
    return folder, main(["sweep", write(folder, arms=arms)]), arms


def results(folder):
    return {each["name"]: each for each in json.loads((folder / "runs" / "sweep.json").read_text())}


def test_a_run_that_fails_is_named_and_the_rest_is_done(swept):
    folder, code, _ = swept
    assert code == 1
    found = results(folder)
    assert [each["ended"] for each in found.values()] == [True, True, False]
    assert "no.zip" in found["bad-seed=0"]["error"]
    slow, fast = (found[f"good-lr={lr}-seed=0"] for lr in (0.001, 0.002))
    assert slow["arm"] == "good" and slow["options"] == {"optim.lr": 0.001, "run.seed": 0}
    assert slow["test_bpd"] != fast["test_bpd"] and len(slow["exit_bpd"]) == 3 and slow["train_macs"] > 0
    assert (folder / "runs" / "compare_by_epoch.png").is_file() and (folder / "runs" / "report.html").is_file()


def test_the_same_again_trains_what_is_missing_alone(swept, capsys):
    folder, _, arms = swept
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").glob("good*.log")}
    arms = {**arms, "bad": {"options": {"optim.lr": 3e-3}}}
    assert main(["sweep", write(folder, arms=arms)]) == 0
    assert "3 runs in" in (out := capsys.readouterr().out) and "2 there" in out and "bad-seed=0" in out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert all(each["ended"] for each in results(folder).values())
    log = (folder / "runs" / "good-lr=0.001-seed=0.log").read_text()
    assert log.startswith("started: ") and log.count("started: ") == 1


def test_runs_that_are_there_are_known_however_their_folder_is_written(swept, monkeypatch, capsys):
    folder, _, arms = swept
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").glob("good*.log")}
    monkeypatch.chdir(folder)
    assert main(["sweep", write(folder, arms={"good": arms["good"]}), "--out", "runs"]) == 0
    assert "2 runs in runs: 2 there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert all(each["ended"] and each["test_bpd"] > 0 for each in results(folder).values())


def test_numbers_that_are_not_finite_stand_as_in_a_summary(swept, tmp_path):
    folder, _, arms = swept
    shutil.copytree(folder / "runs", tmp_path / "runs")
    path = tmp_path / "runs" / "good-lr=0.001-seed=0" / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "test_bpd": "nan"}))
    assert main(["sweep", write(tmp_path, arms={"good": arms["good"]})]) == 0
    assert "NaN" not in (tmp_path / "runs" / "sweep.json").read_text()
    assert results(tmp_path)["good-lr=0.001-seed=0"]["test_bpd"] == "nan"


def test_a_run_that_has_no_results_is_an_error_and_stops_no_other(swept, tmp_path, monkeypatch):
    """One summary is damaged, and one run's process ends early with exit code 0."""
    folder, _, arms = swept
    shutil.copytree(folder / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "good-lr=0.001-seed=0" / "summary.json").write_text("{")
    (tmp_path / "flow.py").write_text("import os\n\n\ndef ends(config, shape):\n    os._exit(0)\n")
    monkeypatch.chdir(tmp_path)
    arms = {"early": {"options": {"model.name": "flow:ends"}}, "good": arms["good"]}
    assert main(["sweep", write(tmp_path, arms=arms)]) == 1
    early, damaged, good = results(tmp_path).values()
    assert "ended with exit code 0 before the run had ended" in early["error"] and not early["ended"]
    assert "summary.json is damaged" in damaged["error"] and not damaged["ended"]
    assert good["ended"] and "error" not in good


@pytest.mark.parametrize("option, value", [("model.width", 16), ("schedule.finetune_epochs", 3)])
def test_other_options_are_not_taken_for_the_same_run(swept, capsys, option, value):
    """Nor trained further under them, which would be half a run of each; its results stay."""
    folder, _, arms = swept
    settings = yaml.safe_load((folder / "rates.yaml").read_text())
    settings["options"][option] = value
    path = folder / "others.yaml"
    path.write_text(yaml.safe_dump({**settings, "arms": {"good": arms["good"]}}))
    summaries = [folder / f"runs/good-lr={lr}-seed=0/summary.json" for lr in (0.001, 0.002)]
    before = [summary.read_bytes() for summary in summaries]
    assert main(["sweep", str(path)]) == 1
    told = capsys.readouterr().err
    assert told.count(f"has a run of other options ({option}: {value}, was ") == 2 and "choose another folder" in told
    assert [summary.read_bytes() for summary in summaries] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_is_an_interrupt_and_the_next_one_is_nothing(number):
    before = signal.getsignal(number)
    with stoppable():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(number) == before


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, "runs inherit it"
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGHUP, signal.SIGHUP]])
def test_a_stopped_sweep_saves_its_runs_and_goes_on(tmp_path, numbers):
    """A terminal that is closed sends SIGHUP twice."""
    path = write(
        tmp_path, options={**OPTIONS, "schedule.local_epochs": 400, "eval.every_epochs": 1000}, seeds=[0, 1, 2]
    )
    command = [sys.executable, "-m", "pipeflow", "sweep", path, "--jobs", "2"]
    log = tmp_path / "runs" / "seed=0" / "metrics.jsonl"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (log.exists() and '"epoch"' in log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        for number in numbers:
            process.send_signal(number)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command resumes them" in err
    found = results(tmp_path)
    assert not any(each["ended"] for each in found.values())
    assert "Resume with" in (tmp_path / "runs" / "seed=0.log").read_text(), "it has saved itself"
    assert not any(os.fsencode(tmp_path) in command for command in _commands()), "no run goes on behind its sweep"
    assert "error" not in found["seed=2"], "what was not begun is no failure"


def _commands() -> Iterator[bytes]:
    """Command lines of all processes there are."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            yield path.read_bytes()


@pytest.mark.parametrize(
    "workers, most, jobs, gpus, expected",
    [
        (1, 9, None, 4, [{"CUDA_VISIBLE_DEVICES": str(gpu)} for gpu in range(4)]),
        (2, 9, None, 4, [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]),
        (3, 9, None, 2, [{"CUDA_VISIBLE_DEVICES": "0,1"}]),
        (1, 2, None, 4, [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]),
        (1, 9, 3, 0, [{}, {}, {}]),
    ],
)
def test_a_run_has_gpus_of_its_own(monkeypatch, workers, most, jobs, gpus, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    room = room_for(workers, most, jobs, gpus)
    assert room == [{"OMP_NUM_THREADS": "1", **each} for each in expected]


@pytest.mark.parametrize("visible", ["2,3", "GPU-5a, MIG-7b/1/0"])
def test_gpus_are_taken_from_those_that_the_user_chose(monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    first, second = visible.replace(" ", "").split(",")
    assert [each["CUDA_VISIBLE_DEVICES"] for each in room_for(1, 9, gpus=2)] == [first, second]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in room_for(2, 9, gpus=2)] == [f"{first},{second}"]


def test_without_gpus_cores_are_shared_out(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert len(room_for(1, 1000)) == cores
    assert len(room_for(cores + 1, 1000)) == 1
    assert room_for(1, 1) == [{"OMP_NUM_THREADS": str(cores)}]
