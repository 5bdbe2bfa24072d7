"""Runs on a real Ray cluster of two nodes on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray.train

from pipeflow import train
from pipeflow.errors import PREEMPTED_EXIT_CODE
from tests.launch.clusters import RAY, Cluster, lose, processes_of
from tests.small_runs import assert_same_tensors, errors_in, finish, learned, options, small_config

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster()
    yield cluster
    cluster.close()
    assert not processes_of(cluster.head) | processes_of(cluster.second)


def assert_same(run: Path, other: Path) -> None:
    assert_same_tensors(run, other)
    assert learned(run) == learned(other)


def submit(cluster: Cluster, *arguments: str):
    """`ray job submit`, as docs/ray.md has it."""
    entry = [sys.executable, "-m", "launch.ray_train", *arguments]
    return cluster.run([RAY, "job", "submit", "--address", cluster.dashboard, "--working-dir", str(ROOT), "--", *entry])


def start(cluster: Cluster, program: str, *arguments: str):
    """A program that connects to the cluster by itself."""
    command = [sys.executable, str(PROGRAMS / program), *arguments]
    return cluster.run(command, RAY_ADDRESS=cluster.address, PYTHONPATH=str(ROOT))


def test_a_submitted_job_is_the_same_run(cluster, tmp_path):
    summary = train(small_config(tmp_path / "alone")).to_json()
    more = ["--storage", str(tmp_path), "--workers", "2", "--placement", "spread"]
    job = submit(cluster, *options(small_config(Path("run"))), *more)
    output = finish(job)
    assert job.returncode == 0, output
    assert "(ip=127.0.0.2" in output and "(ip=127.0.0.3" in output
    assert_same(tmp_path / "run", tmp_path / "alone")
    (records,) = (tmp_path / "ray").glob("run-*")
    result = ray.train.Result.from_path(records)
    assert result.metrics["event"] == "end" and result.metrics["test_bpd"] == summary["test_bpd"]
    epochs = result.metrics_dataframe
    assert list(epochs["epoch"]) == [0, 1, 2, 3]
    assert list(epochs["test_bpd"][:3]) == [epoch["test_bpd"] for epoch in summary["epochs"]]


def test_the_dashboard_is_given_bits_images_and_bytes_by_link(cluster):
    program = start(cluster, "show_metrics.py")
    shown = {"test_bits_per_dim": [3.5], "images_per_second": [800], "link_bytes_total": [2048, 4096]}
    wait_until(lambda: {name: shown_values(cluster, f"ray_pipeflow_{name}") for name in shown} == shown, program)
    program.stdin.close()
    assert program.wait(timeout=60) == 0, finish(program)


def shown_values(cluster: Cluster, name: str) -> list[float]:
    """The values that a metric of my_run has now, by size."""
    lines = [line for line in cluster.metrics().splitlines() if line.startswith(f"{name}{{") and 'run="my_run"' in line]
    return sorted(float(line.split()[-1]) for line in lines)


def test_a_cluster_without_room_is_told_of_before_anything_starts(cluster, tmp_path):
    config = small_config(tmp_path / "run")
    command = [sys.executable, "-m", "launch.ray_train", *options(config), "--workers=2", "--cpus-per-worker=2"]
    refused = cluster.run(command, RAY_ADDRESS=cluster.address, PYTHONPATH=str(ROOT))
    (error,) = errors_in(finish(refused))
    assert error == (
        "error: --workers: 2 workers need 4 CPUs, the cluster has 3: --workers 1, or --cpus-per-worker 1, or --wait if "
        "more nodes will come."
    )
    assert refused.returncode == 1 and not list(tmp_path.iterdir())


def test_an_interrupted_driver_has_the_workers_save_the_run(cluster, tmp_path):
    config = small_config(tmp_path / "run", schedule={"local_epochs": 500})
    command = [sys.executable, "-m", "launch.ray_train", *options(config), "--workers=2"]
    driver = cluster.run(command, RAY_ADDRESS=cluster.address, PYTHONPATH=str(ROOT))
    wait_until(lambda: '"event": "epoch"' in log_of(config), driver)
    driver.send_signal(signal.SIGINT)
    output = finish(driver)
    assert driver.returncode == PREEMPTED_EXIT_CODE, output
    last = output.splitlines()[-1]
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    assert last.startswith("interrupted") and f"the last good checkpoint is {newest}. " in last
    ours = [
        line for line in output.splitlines() if "(PlacementGroupCleaner pid=" not in line
    ]  # Ray's own, as it goes down
    assert "Traceback" not in "\n".join(ours)


def test_a_node_that_is_lost_in_the_middle_of_an_epoch_changes_nothing(cluster, tmp_path):
    """Ray starts the workers anew on the node that is left; they end with the bits of a run that nothing happened to.

    `run.resume never` is of the command, not of each group of workers that Ray starts.
    """
    long = {"data": {"num_train": 1280, "num_test": 40}, "schedule": {"local_epochs": 3}}
    train(small_config(tmp_path / "undisturbed", **long))
    config = small_config(tmp_path / "run", run={"resume": "never"}, **long)
    Path(config.run.dir).mkdir()
    Path(config.run.dir, "config.yaml").write_text("of an older run")
    driver = start(cluster, "from_python.py", json.dumps(config.to_dict()))
    wait_until(lambda: '"event": "checkpoint"' in log_of(config), driver)
    (worker,) = workers_on(cluster.second)
    begun = cpu_seconds(worker)
    wait_until(lambda: cpu_seconds(worker) > begun + 0.2, driver)
    epochs = log_of(config).count('"event": "epoch"')
    lose(cluster.second)
    assert epochs == log_of(config).count('"event": "epoch"')
    output = finish(driver)
    assert driver.returncode == 0, output
    assert f"resuming after {epochs} epoch" in output
    assert [path.name for path in tmp_path.glob("run.old-*")] == ["run.old-1"]
    assert_same(tmp_path / "run", tmp_path / "undisturbed")
    (told,) = [line for line in output.splitlines() if line.startswith("result: ")]
    metrics, num_epochs = json.loads(told.removeprefix("result: "))
    assert metrics["event"] == "end" and metrics["epoch"] == num_epochs == 4


def test_a_mistake_is_said_in_the_last_line_and_not_retried(cluster, tmp_path):
    config = small_config(tmp_path / "run", data={"name": "images", "path": "nowhere.zip"})
    job = submit(cluster, *options(config), "--workers", "2")
    output = finish(job)
    assert job.returncode == 1
    assert output.count("Started training worker group") == 1
    (error,) = set(errors_in(output))
    assert error.startswith("error: data.path: there is no /") and "/nowhere.zip (nowhere.zip, relative" in error


def log_of(config) -> str:
    """The run's log so far."""
    path = Path(config.run.dir, "metrics.jsonl")
    return path.read_text() if path.exists() else ""


def workers_on(node) -> list[int]:
    """The processes on a node that train."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_of(node)}
    return [pid for pid, command in commands.items() if "RayTrainWorker" in command]


def cpu_seconds(pid: int) -> float:
    """What a process has computed so far."""
    times = Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[11:13]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def wait_until(holds: Callable[[], bool], process: subprocess.Popen) -> None:
    """Waits for a condition, as long as a process runs."""
    while not holds():
        assert process.poll() is None, finish(process)
        time.sleep(0.02)
