"""Who can connect to a run on one machine: nobody from outside.

The machine is a network namespace whose host name stands for an address of its own, as that of a machine on a network does.
"""

import contextlib
import os
import socket
from pathlib import Path

import pytest

from pipeflow.workers.network import LIBRARIES, stay_on_this_machine
from tests.namespaces import ADDRESS
from tests.small_runs import finish, options, read_until, small_config

LISTEN = "0A"
"""The state of a listening socket in /proc/net/tcp."""


def listening(pid: int) -> dict[str, str]:
    """Addresses of the listening sockets in a process's network namespace, by inode."""
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == LISTEN:
                words = bytes.fromhex(local.split(":")[0])
                # Each word of 32 bits stands there in the machine's own order of bytes.
                network = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
                found[inode] = socket.inet_ntop(socket.AF_INET6 if len(words) == 16 else socket.AF_INET, network)
    return found


def sockets_of(pid: int) -> set[str]:
    """Inodes of a process's sockets."""
    links = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            links.append(os.readlink(file))
    return {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}


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
    read_until(process, lambda line: line.startswith("epoch 1/"))
    ours = set().union(*map(sockets_of, process.workers))
    assert {address for inode, address in listening(process.pid).items() if inode in ours} == addresses
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
