"""Network namespaces: the commands that make them, a thread inside one, and the bytes that its interfaces have sent."""

import contextlib
import ctypes
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping

_CLONE_NEWNET = 0x40000000


class HostsError(Exception):
    """Namespaces cannot be made here; the message says what to do."""


def check_machine() -> None:
    """Raises HostsError where this is not Linux, not root, or without `ip` and `tc`."""
    if not sys.platform.startswith("linux"):
        raise HostsError(f"hosts are network namespaces, which Linux has and {sys.platform} has not: run it on Linux.")
    if os.geteuid() != 0:
        raise HostsError("making network namespaces and limiting their rate needs root: start it with sudo.")
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        raise HostsError(f"there is no {' and no '.join(missing)} here: install the package iproute2.")


def run(*command: str) -> str:
    """What a command printed. Raises HostsError where it failed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise HostsError(
            f"{' '.join(command)}: {done.stderr.strip()}. In a container this needs the capabilities NET_ADMIN and "
            f"SYS_ADMIN (docker run --privileged); the kernel needs veth, bridge, tbf and CUBIC."
        )
    return done.stdout


def namespaces() -> list[str]:
    """Names of those that there are."""
    return [line.split()[0] for line in run("ip", "netns", "list").splitlines()]


def write_settings(namespace: str, settings: Mapping[str, str]) -> None:
    """Sets kernel parameters of a namespace, by their path below /proc/sys."""
    lines = [f"echo '{value}' > /proc/sys/{name}" for name, value in settings.items()]
    run("ip", "netns", "exec", namespace, "sh", "-ec", "\n".join(lines))


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread in a namespace for a while. (`os.setns` is only in Python 3.12 and newer.)"""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as outside, open(f"/run/netns/{namespace}") as inside:
        if libc.setns(inside.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
        try:
            yield
        finally:
            libc.setns(outside.fileno(), _CLONE_NEWNET)


class Counters:
    """Bytes that the interfaces of a namespace have sent, asked of the kernel over netlink: cheap enough to ask often."""

    _GET, _DUMP, _DONE, _ERROR = 38, 0x301, 3, 2
    """RTM_GETQDISC; NLM_F_REQUEST | NLM_F_DUMP; NLMSG_DONE; NLMSG_ERROR."""
    _ROOT, _STATS = 0xFFFFFFFF, 3
    """TC_H_ROOT; TCA_STATS, a struct tc_stats, which begins with the bytes as 64 bits."""

    def __init__(self, namespace: str):
        with inside(namespace):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            self._names = dict(socket.if_nameindex())
        self._socket.bind((0, 0))

    def read(self) -> dict[str, int]:
        """Bytes by interface."""
        self._socket.send(struct.pack("=IHHII BxHiIII", 36, self._GET, self._DUMP, 0, 0, 0, 0, 0, 0, 0, 0))
        sent: dict[str, int] = {}
        while True:
            data = self._socket.recv(1 << 16)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                if kind in (self._DONE, self._ERROR):
                    return sent
                index, _, parent = struct.unpack_from("=iII", data, 20)
                if parent == self._ROOT:
                    sent[self._names[index]] = self._bytes(data[36:length])
                data = data[-(-length // 4) * 4 :]

    def _bytes(self, attributes: bytes) -> int:
        while attributes:
            length, kind = struct.unpack_from("=HH", attributes)
            if kind == self._STATS:
                return struct.unpack_from("=Q", attributes, 4)[0]
            attributes = attributes[-(-length // 4) * 4 :]
        return 0

    def close(self) -> None:
        self._socket.close()
