"""Who can connect to a run on one machine: nobody from outside, but for the two stores that torchrun opens by itself.

The machine is a network namespace whose host name stands for an address of its own, as that of a machine on a network does.
"""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_runs import finish, options, read_until, small_config

ADDRESS = "192.0.2.7"
MACHINE = f"""
ip link set lo up
ip link add eth0 type veth peer name eth1
ip address add {ADDRESS}/24 dev eth0
ip link set eth0 up
ip link set eth1 up
hostname machine
printf '127.0.0.1 localhost\\n{ADDRESS} machine\\n' > "$0"
mount --bind "$0" /etc/hosts
exec "$@"
"""
LISTEN = "0A"
"""The state of a listening socket in /proc/net/tcp."""


def machine(tmp_path: Path, *command: str, **environment: str) -> subprocess.Popen:
    """Starts a program on such a machine; that process is the program's own."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_SOCKET_IFNAME")}
    return subprocess.Popen(
        ["unshare", "-rnmu", "sh", "-ec", MACHINE, str(tmp_path / "hosts"), sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        start_new_session=True,
    )


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


def workers_of(launcher: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


def addresses_while_training(process: subprocess.Popen) -> tuple[list[str], list[str]]:
    """Where the workers listen, and where the launcher does, once the first epoch is over."""
    read_until(process, lambda line: line.startswith("epoch 1/"))
    found = listening(process.pid)
    of_workers = set().union(*map(sockets_of, workers_of(process.pid)))
    return (
        sorted({address for inode, address in found.items() if inode in of_workers}),
        [address for inode, address in found.items() if inode not in of_workers],
    )


def small_run(tmp_path: Path, **sections: dict) -> list[str]:
    schedule = {"local_epochs": 3, "finetune_epochs": 1}
    config = small_config(tmp_path / "run", **{"schedule": schedule, "data": {"num_train": 640}, **sections})
    return ["-m", "pipeflow.launch", *options(config)]


def torchrun(tmp_path: Path, num_workers: int, **sections: dict) -> list[str]:
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_workers}"]
    return [*command, *small_run(tmp_path, **sections)]


def test_workers_of_one_machine_listen_on_its_loopback_alone(tmp_path):
    process = machine(tmp_path, *torchrun(tmp_path, 3, finetune={"parallel": "ddp"}))
    workers, launcher = addresses_while_training(process)
    assert workers == ["127.0.0.1"]
    # Of its rendezvous and for its workers: torchrun binds them to all interfaces, and has no option for it.
    assert len(launcher) == 2
    assert "done: test" in finish(process) and process.returncode == 0


def test_the_interface_that_the_user_names_is_taken(tmp_path):
    process = machine(tmp_path, *torchrun(tmp_path, 2), GLOO_SOCKET_IFNAME="eth0")
    assert addresses_while_training(process)[0] == [ADDRESS]
    finish(process)
    assert process.returncode == 0


def test_one_process_listens_nowhere(tmp_path):
    process = machine(tmp_path, *small_run(tmp_path))
    read_until(process, lambda line: line.startswith("epoch 1/"))
    assert listening(process.pid) == {}
    finish(process)
    assert process.returncode == 0


@pytest.mark.parametrize("local", ["2", None])
def test_workers_of_several_machines_are_left_to_the_user(local, monkeypatch):
    from pipeflow.workers.network import LIBRARIES, stay_on_this_machine

    for name in LIBRARIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    stay_on_this_machine()
    assert not [name for name in LIBRARIES if name in os.environ]
