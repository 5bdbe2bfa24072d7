"""Before a run on Ray: a cluster that cannot be reached, or has no room for the workers, and what a job takes along."""

import shutil
import socket
from pathlib import Path
from zipfile import ZipFile

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from pipeflow import Config
from pipeflow.ray.cluster import Demand, ways_out
from pipeflow.ray.train import main

ROOT = Path(__file__).parents[2]
TWO_AND_THREE = [{"CPU": 2.0, "memory": 1e9}, {"CPU": 3.0}]
GPU_NODES = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 2.0}]


@pytest.mark.parametrize(
    ("demand", "nodes", "missing"),
    [
        (Demand(3, 1, 0), [{"CPU": 2.0}], "3 workers need 3 CPUs, the cluster has 2"),
        (
            Demand(1, 4, 0),
            TWO_AND_THREE,
            "4 CPUs of one node for each of 1 worker, the cluster's nodes have room for 0",
        ),
        (Demand(2, 2, 0), TWO_AND_THREE, None),
        (Demand(2, 3, 0), TWO_AND_THREE, "2 workers need 6 CPUs, the cluster has 5"),
        (Demand(5, 1, 0), TWO_AND_THREE, None),
        (Demand(1, 1, 1), GPU_NODES, None),
        (Demand(2, 1, 1), GPU_NODES, "2 workers need 2 GPUs, the cluster has 1"),
        (Demand(1, 1, 1), [{"CPU": 0.5}], "1 worker needs 1 CPU, the cluster has 0.5, and 1 GPU, the cluster has 0"),
        (Demand(1, 1, 1), [{"GPU": 1.0}, {"CPU": 1.0}], "1 CPU and 1 GPU of one node for each of 1 worker, "),
        (Demand(1, 1, 0), [], "1 worker needs 1 CPU, the cluster has 0"),
    ],
)
def test_what_a_cluster_lacks_is_said(demand, nodes, missing):
    said = demand.missing(nodes)
    assert said == missing if missing is None or said is None else said.startswith(missing)


@pytest.mark.parametrize(
    ("demand", "nodes", "ways"),
    [
        (Demand(3, 1, 0), [{"CPU": 2.0}], ["--workers 2"]),
        (Demand(3, 4, 0), TWO_AND_THREE, ["--cpus-per-worker 1"]),
        (Demand(2, 3, 0), TWO_AND_THREE, ["--workers 1", "--cpus-per-worker 2"]),
        (Demand(2, 1, 1), GPU_NODES, ["--workers 1", "--run.device cpu"]),
        (Demand(3, 1, 0), [], []),
    ],
)
def test_each_way_out_is_one(demand, nodes, ways):
    assert ways_out(Config(), demand, nodes) == ways


def test_as_many_workers_are_advised_as_can_train_the_run():
    three_replicas = Config.from_dict({"parts": {"replicas": 3}, "optim": {"batch_size": 48}})
    assert ways_out(three_replicas, Demand(9, 1, 0), [{"CPU": 8.0}]) == ["--workers 6"]
    assert ways_out(three_replicas, Demand(9, 1, 0), [{"CPU": 2.0}]) == []


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "127.0.0.1:{port}",
            "127.0.0.1:{port}: nobody answers at 127.0.0.1, port {port} (Connection refused). Start the",
        ),
        (
            "ray://127.0.0.1:{port}",
            "ray://127.0.0.1:{port}: nobody answers at 127.0.0.1, port {port} (Connection refused)",
        ),
        ("no..host:6379", "no..host:6379: the name no..host cannot be resolved."),
        ("nowhere.invalid:6379", "nowhere.invalid:6379: the name nowhere.invalid cannot be resolved."),
        ("nowhere", "'nowhere' is not the address of a Ray cluster: set it to the one that `ray start --head` prints"),
        ("http://127.0.0.1:{listener}", "'http://127.0.0.1:{listener}' is not the address of a Ray cluster"),
    ],
)
def test_a_head_that_cannot_be_reached_is_named_before_ray_tries(monkeypatch, capfd, address, message):
    with socket.create_server(("127.0.0.1", 0)) as server:
        ports = {"port": unused_port(), "listener": server.getsockname()[1]}
        monkeypatch.setenv("RAY_ADDRESS", address.format(**ports))
        assert main(["--storage", "/shared/runs"]) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: RAY_ADDRESS: {message.format(**ports)}")


def test_an_environment_without_ray_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["--storage", "/shared/runs"]) == 1
    assert capsys.readouterr().err.startswith("error: Ray is not installed in this environment: pip install ")


def test_a_job_uploads_the_program_and_no_runs_or_images(tmp_path):
    """What `ray job submit --working-dir .` packs in a checkout that has been used."""
    taken = ["launch/ray_train.py", "pipeflow/data/sources.py", "configs/quickstart.yaml"]
    left = ["runs/quickstart/model.safetensors", "data/images/0.png", "cifar10.zip", ".venv/lib/torch.so", ".git/HEAD"]
    for name in [*taken, *left]:
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, tmp_path / "checkout")
    excludes = get_runtime_env_default_excludes()
    create_package(str(tmp_path / "checkout"), tmp_path / "package.zip", include_gitignore=True, excludes=excludes)
    packed = {name for name in ZipFile(tmp_path / "package.zip").namelist() if not name.endswith("/")}
    assert packed == {*taken, ".gitignore", ".rayignore"}
