"""'Hosts' of one machine: network namespaces joined by links with a real rate and, if asked for, a real delay.

    host 0: eth0 ==veth== port0 \\
    host 1: eth0 ==veth== port1  |- bridge, in a further namespace        192.0.2.1, .2, .3 ...
    host 2: eth0 ==veth== port2 /

Each host has a TCP/IP stack, a loopback and an interface of its own, so that programs inside talk as over Ethernet with an
MTU of 1500. A token bucket (tbf) bounds what each host sends, another at the bridge what each receives: a full-duplex link
of that rate. Congestion control is CUBIC, whatever this machine's default is. Linux and root only.

Bytes are the queueing disciplines' own: they count each packet with its Ethernet, IP and TCP headers. The interfaces'
counters would not do: TCP hands over up to 64 kB at once, to be cut into packets by the hardware, and an interface without
hardware counts that as one packet with one header. Ethernet's preamble, checksum and gap (24 bytes a packet) are left out.
Acknowledgements are fewer than between real machines that do not merge arriving packets: one for what was handed over.

check.py holds rate and round trip of such links against what was asked for, and removes what a killed run has left behind.
"""

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.links.namespaces import Counters, HostsError, check_machine, inside, namespaces, run, write_settings

HERE = Path(__file__).parent
PREFIX = "pipeflow-links"
MTU, HEADERS = 1500, 66
"""Bytes of a packet, and those of its 1514 on the wire that are no payload: Ethernet 14, IP 20, TCP with time stamps 32."""

_LARGEST = 65536
_COUNT = itertools.count()


@dataclass
class Hosts:
    """Namespaces that exist. Made by `make_hosts`."""

    names: list[str]
    hub: str
    rate: float | None
    """Mbit/s in each direction; None: not limited."""
    delay: float
    """Milliseconds one way that are added."""
    _processes: list[subprocess.Popen] = field(default_factory=list)
    _counters: list[Counters] = field(default_factory=list)

    @property
    def addresses(self) -> list[str]:
        """IPv4 address of each host."""
        return [_address(index) for index in range(len(self.names))]

    def start(
        self, host: int, command: Sequence[str], output: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen:
        """Starts a program inside a host, in the background; what it prints goes to `output`.

        environment: added to this process's own. Whatever still runs at the end of the context is ended then.
        """
        with output.open("w") as file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.names[host], *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def stop(self) -> None:
        """Ends every program that was started and has not ended by itself, with all that it started."""
        running = [process for process in self._processes if process.poll() is None]
        for number, patience in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 10.0)):
            deadline = time.monotonic() + patience
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            for process in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
            running = [process for process in running if process.poll() is None]
        self._processes.clear()

    def socket(self, host: int) -> socket.socket:
        """A TCP socket inside a host: it stays there, whoever uses it."""
        with inside(self.names[host]):
            return socket.socket()

    def sent(self) -> list[int]:
        """Bytes that each host has sent so far, headers included."""
        return [counters.read()["eth0"] for counters in self._counters[:-1]]

    def received(self) -> list[int]:
        """Bytes that have left the bridge toward each host so far, headers included."""
        ports = self._counters[-1].read()
        return [ports[_port(index)] for index in range(len(self.names))]


@contextlib.contextmanager
def make_hosts(num: int = 3, rate: float | None = None, delay: float = 0.0) -> Iterator[Hosts]:
    """Makes hosts, and removes them with all that still runs inside, however the block ends.

    Args:
        num: number of hosts.
        rate: Mbit/s of each link, in each direction by itself; None: as fast as the machine copies.
        delay: milliseconds that each packet is held on its way, see delay.py.

    Raises:
        HostsError: not Linux, not root, or without `ip` and `tc`.
    """
    check_machine()
    prefix = f"{PREFIX}-{os.getpid()}-{next(_COUNT)}"
    hosts = Hosts([f"{prefix}-host{index}" for index in range(num)], f"{prefix}-hub", rate, delay)
    with _terminated_in_order():
        try:
            _build(hosts)
            yield hosts
        finally:
            hosts.stop()
            for counters in hosts._counters:
                counters.close()
            for name in {*hosts.names, hosts.hub} & set(namespaces()):
                run("ip", "netns", "delete", name)


def clean() -> list[str]:
    """Removes namespaces of runs that have ended, with the processes inside; their names."""
    check_machine()
    left = []
    for name in namespaces():
        found = re.fullmatch(rf"{PREFIX}-(\d+)-\d+-(host\d+|hub)", name)
        if found is None or Path("/proc", found[1]).exists():
            continue
        for pid in run("ip", "netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        run("ip", "netns", "delete", name)
        left.append(name)
    return left


# -------------------------------------------------------------------------------------------------------- construction


def burst_bytes(rate: float) -> int:
    """Bytes that a link at this rate may send at once after a rest: 2 ms of it, and 4 packets at least.

    A large bucket would be a gift to whoever sends now and then. TCP is told to hand over no more than that at once.
    """
    return max(round(rate * 1e6 / 8 * 0.002), 4 * (MTU + 14))


def _build(hosts: Hosts) -> None:
    num, hub = len(hosts.names), hosts.hub
    for name in [*hosts.names, hub]:
        run("ip", "netns", "add", name)
        write_settings(name, {"net/ipv6/conf/all/disable_ipv6": "1"})  # its neighbour discovery would be counted
        run("ip", "-n", name, "link", "set", "lo", "up")
    for index, name in enumerate(hosts.names):
        port = _port(index)
        run("ip", "-n", hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "-n", name, "link", "set", "eth0", "mtu", str(MTU), "address", _mac(index))
        run("ip", "-n", name, "address", "add", f"{_address(index)}/24", "dev", "eth0")
        _limit(name, "eth0", hosts.rate)
        _limit(hub, port, hosts.rate)
        run("ip", "-n", name, "link", "set", "eth0", "up")
        run("ip", "-n", hub, "link", "set", port, "up")
        route = ["192.0.2.0/24", "dev", "eth0", "src", _address(index), "congctl", "cubic"]
        run("ip", "-n", name, "route", "replace", *route)
        for other in range(num):
            if other != index:  # so that no ARP is needed
                run("ip", "-n", name, "neighbour", "add", _address(other), "lladdr", _mac(other), "dev", "eth0")
        if hosts.delay:  # 64 MB: what is on its way at some Gbit/s
            write_settings(name, {f"net/ipv4/tcp_{way}mem": "4096 131072 67108864" for way in "rw"})
    if hosts.delay:
        _join_by_relay(hosts)
    else:
        _add_bridge(hub, "bridge", [_port(index) for index in range(num)])
    hosts._counters += [Counters(name) for name in [*hosts.names, hub]]


def _limit(namespace: str, device: str, rate: float | None) -> None:
    """A token bucket of this rate in front of an interface; without a rate a queue, which counts all the same."""
    add = ["tc", "-n", namespace, "qdisc", "add", "dev", device, "root"]
    if rate is None:
        run(*add, "pfifo", "limit", "10000")
        return
    burst = burst_bytes(rate)
    queue = max(round(rate * 1e6 / 8 * 0.1), 256 * 1024)  # 100 ms, as a switch of some size
    bits = str(round(rate * 1e6))
    run(*add, "tbf", "rate", f"{bits}bit", "burst", str(burst), "limit", str(queue + burst))
    run("ip", "-n", namespace, "link", "set", device, "gso_max_size", str(min(_LARGEST, burst * 4 // 5)))


def _join_by_relay(hosts: Hosts) -> None:
    """A bridge for each host instead of one for all, and between them the relay, which holds packets back."""
    taps = [f"tap{index}" for index in range(len(hosts.names))]
    for index, tap in enumerate(taps):
        run("ip", "-n", hosts.hub, "tuntap", "add", "dev", tap, "mode", "tap", "vnet_hdr")
        run("ip", "-n", hosts.hub, "link", "set", tap, "mtu", str(MTU), "txqueuelen", "20000", "up")
        _add_bridge(hosts.hub, f"bridge{index}", [_port(index), tap])
    reader, writer = os.pipe()
    try:
        command = [sys.executable, str(HERE / "delay.py"), "--ms", str(hosts.delay), "--ready-fd", str(writer)]
        ends = [f"{tap}={_mac(index)}" for index, tap in enumerate(taps)]
        relay = subprocess.Popen(
            ["ip", "netns", "exec", hosts.hub, *command, *ends], pass_fds=[writer], start_new_session=True
        )
        hosts._processes.append(relay)
        os.close(writer)
        if not os.read(reader, 1):
            raise HostsError(f"the relay for a delay ended with exit code {relay.wait()}: /dev/net/tun is needed.")
    finally:
        os.close(reader)


def _add_bridge(namespace: str, bridge: str, ports: Sequence[str]) -> None:
    run("ip", "-n", namespace, "link", "add", bridge, "type", "bridge", "mcast_snooping", "0")
    for port in ports:
        run("ip", "-n", namespace, "link", "set", port, "master", bridge)
    run("ip", "-n", namespace, "link", "set", bridge, "up")


def _address(index: int) -> str:
    return f"192.0.2.{index + 1}"


def _mac(index: int) -> str:
    return f"02:00:00:00:00:{index + 1:02x}"


def _port(index: int) -> str:
    return f"port{index}"


@contextlib.contextmanager
def _terminated_in_order() -> Iterator[None]:
    """SIGTERM becomes an exception, as SIGINT is one, so that everything is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
