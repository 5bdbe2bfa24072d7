"""Who can connect to a run on one machine: nobody from outside.

The machine is a network namespace whose host name stands for an address of its own, as that of a machine on a network does.
"""

import os
import subprocess

import pytest

from pipeflow.workers.network import LIBRARIES, stay_on_this_machine
from tests.launching import Launch
from tests.namespaces import ADDRESS
from tests.small_runs import finish, options, read_until, small_config


def listening(process: Launch) -> set[str]:
    """Addresses at which a launch's workers listen, in its network namespace."""
    command = ["nsenter", f"--net=/proc/{process.pid}/ns/net", "ss", "--listening", "--tcp", "--numeric", "--processes"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    ours = [line for line in listed if any(f"pid={pid}," in line for pid in process.workers)]
    return {line.split()[3].rpartition(":")[0].strip("[]") for line in ours}


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch) -> None:
    for name in LIBRARIES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.root
@pytest.mark.parametrize("named, addresses", [({}, {"127.0.0.1"}), ({"GLOO_SOCKET_IFNAME": "eth0"}, {ADDRESS})])
def test_workers_listen_on_the_loopback_alone_or_where_the_user_says(launch, tmp_path, named, addresses):
    config = small_config(tmp_path / "run", run={"device": "cpu"}, finetune={"parallel": "ddp"})
    prepare = ("tests.namespaces:machine", str(tmp_path / "hosts"))
    process = launch(3, *options(config), prepare=prepare, **named)
    read_until(process, lambda line: line.startswith("epoch 0 ("))
    assert listening(process) == addresses
    output = finish(process)
    assert "done: test" in output and process.returncode == 0, output


@pytest.mark.parametrize("local", ["2", None])
def test_workers_of_several_machines_are_left_to_the_user(local, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    stay_on_this_machine()
    assert not [name for name in LIBRARIES if name in os.environ]
