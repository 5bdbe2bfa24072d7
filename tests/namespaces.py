"""A disk or a network of a launch's own: `Launch(..., prepare=("tests.namespaces:small_disk", folder, "1500k"))`.

Nothing of pipeflow may be imported here, as in `tests.launching`.
"""

import ctypes
import functools
import os
import subprocess
import tempfile
from pathlib import Path

ADDRESS = "192.0.2.7"
"""The address of `machine` in a network that leads nowhere."""
_MACHINE = f"""
ip link set lo up
ip link add eth0 type veth peer name eth1
ip address add {ADDRESS}/24 dev eth0
ip link set eth0 up
ip link set eth1 up
hostname machine
"""
_NEWNS, _NEWUTS, _NEWNET = 0x00020000, 0x04000000, 0x40000000


def small_disk(folder: str, size: str) -> None:
    """Mounts a file system of this size at the folder, for this process and its children."""
    _unshare(_NEWNS)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)


def machine(hosts: str) -> None:
    """A machine whose host name stands for an address of its own, as that of a machine on a network does.

    hosts: path of a file to write, its /etc/hosts.
    """
    _unshare(_NEWNS | _NEWUTS | _NEWNET)
    Path(hosts).write_text(f"127.0.0.1 localhost\n{ADDRESS} machine\n")
    subprocess.run(["sh", "-ec", _MACHINE], check=True)
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)


def _unshare(flags: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare: " + os.strerror(ctypes.get_errno()))
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


@functools.cache
def missing() -> str:
    """Why there can be no namespaces here; empty where there can."""
    name = f"pipeflow-probe-{os.getpid()}"
    with tempfile.TemporaryDirectory() as folder:
        for command in (
            ["ip", "netns", "add", name],
            ["ip", "netns", "delete", name],
            ["unshare", "-nmu", "mount", "-t", "tmpfs", "tmpfs", folder],
        ):
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except FileNotFoundError:
                return f"there is no {command[0]} here"
            except subprocess.CalledProcessError as error:
                return f"{' '.join(command[:3])} fails: {error.stderr.strip()}"
    return ""
