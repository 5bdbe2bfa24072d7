"""What a launcher leaves out, or says wrongly, is an error before anything waits for it."""

import os
import socket

import pytest

from pipeflow.errors import PipeflowError
from pipeflow.launch import load_config
from pipeflow.workers.environment import Place, check_address, check_not_apart, read_place
from tests.small_runs import errors_in, finish, options, small_config

LAUNCHED = {
    "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "LOCAL_RANK": "1",
    "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "True",
}  # fmt: skip
OTHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


@pytest.fixture(autouse=True)
def launched(monkeypatch) -> None:
    for name in OTHERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)


def test_what_torchrun_says(monkeypatch):
    place = read_place()
    assert place == Place(1, 2, 1, "127.0.0.1", 29500)
    assert place.num_machines == 1 and not place.store_is_worker_0s
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert read_place() == Place(1, 2, 1, "127.0.0.1", 29500, num_machines=2, store_is_worker_0s=True)


def test_one_process_needs_nothing(monkeypatch):
    for name in LAUNCHED:
        monkeypatch.delenv(name)
    assert read_place() == Place()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert read_place() == Place()


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_what_is_missing_is_named(name, monkeypatch):
    monkeypatch.delenv(name)
    with pytest.raises(PipeflowError, match=f"^{name}: is not in the environment.*torchrun"):
        read_place()


@pytest.mark.parametrize(
    "name, value", [("RANK", "first"), ("RANK", "-1"), ("RANK", "2"), ("WORLD_SIZE", "0"), ("MASTER_PORT", "tcp")]
)
def test_nonsense_is_named(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(PipeflowError, match=rf"^RANK: 1, but WORLD_SIZE is 0|^{name}: .*{value}"):
        read_place()


@pytest.mark.parametrize("name", OTHERS)
def test_processes_that_would_each_train_alone(name, monkeypatch):
    monkeypatch.setenv(name, "2")
    check_not_apart()  # torchrun is among them
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(PipeflowError, match=f"^{name}: 2 processes.*RANK=0 WORLD_SIZE=1"):
        check_not_apart()
    monkeypatch.setenv(name, "1")
    check_not_apart()


def test_a_name_that_nobody_knows():
    check_address(Place(0, 2, 0, "localhost", 29500))
    with pytest.raises(
        PipeflowError, match=r"^MASTER_ADDR: nowhere.invalid cannot.*torchrun --local-addr 127\.0\.0\.1"
    ):
        check_address(Place(1, 2, 1, "nowhere.invalid", 29500))


def test_a_port_that_is_taken(launch, tmp_path):
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        environment = {**os.environ, "RANK": "0", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}
        process = launch(None, *options(small_config(tmp_path / "run")), **environment)
        (said,) = errors_in(finish(process))
    assert f"MASTER_PORT: {port} is taken by another process at worker 0" in said and process.returncode == 1


@pytest.mark.parametrize("option", ["--local-rank=1", "--local_rank=1"])
def test_the_launcher_that_torchrun_replaced(option):
    with pytest.raises(PipeflowError, match="start the workers with torchrun"):
        load_config([option], 2)
