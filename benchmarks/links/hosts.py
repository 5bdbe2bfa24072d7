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

    python -m benchmarks.links.hosts            # rate and round trip of such links, held against what was asked for
    python -m benchmarks.links.hosts --clean    # removes what a run that was killed has left behind
"""

import argparse
import contextlib
import ctypes
import itertools
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
PREFIX = "pipeflow-links"
MTU, HEADERS = 1500, 66
"""Bytes of a packet, and those of its 1514 on the wire that are no payload: Ethernet 14, IP 20, TCP with time stamps 32."""

_LARGEST = 65536
_COUNT = itertools.count()
_CLONE_NEWNET = 0x40000000


class HostsError(Exception):
    """Namespaces cannot be made here; the message says what to do."""


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
    _counters: list["_Counters"] = field(default_factory=list)

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
        with _inside(self.names[host]):
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
    _check_machine()
    run = f"{PREFIX}-{os.getpid()}-{next(_COUNT)}"
    hosts = Hosts([f"{run}-host{index}" for index in range(num)], f"{run}-hub", rate, delay)
    with _terminated_in_order():
        try:
            _build(hosts)
            yield hosts
        finally:
            hosts.stop()
            for counters in hosts._counters:
                counters.close()
            for name in {*hosts.names, hosts.hub} & set(_namespaces()):
                _run("ip", "netns", "delete", name)


def clean() -> list[str]:
    """Removes namespaces of runs that have ended, with the processes inside; their names."""
    _check_machine()
    left = []
    for name in _namespaces():
        found = re.fullmatch(rf"{PREFIX}-(\d+)-\d+-(host\d+|hub)", name)
        if found is None or Path("/proc", found[1]).exists():
            continue
        for pid in _run("ip", "netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _run("ip", "netns", "delete", name)
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
        _run("ip", "netns", "add", name)
        _write_settings(name, {"net/ipv6/conf/all/disable_ipv6": "1"})  # its neighbour discovery would be counted
        _run("ip", "-n", name, "link", "set", "lo", "up")
    for index, name in enumerate(hosts.names):
        port = _port(index)
        _run("ip", "-n", hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "-n", name, "link", "set", "eth0", "mtu", str(MTU), "address", _mac(index))
        _run("ip", "-n", name, "address", "add", f"{_address(index)}/24", "dev", "eth0")
        _limit(name, "eth0", hosts.rate)
        _limit(hub, port, hosts.rate)
        _run("ip", "-n", name, "link", "set", "eth0", "up")
        _run("ip", "-n", hub, "link", "set", port, "up")
        route = ["192.0.2.0/24", "dev", "eth0", "src", _address(index), "congctl", "cubic"]
        _run("ip", "-n", name, "route", "replace", *route)
        for other in range(num):
            if other != index:  # so that no ARP is needed
                _run("ip", "-n", name, "neighbour", "add", _address(other), "lladdr", _mac(other), "dev", "eth0")
        if hosts.delay:  # 64 MB: what is on its way at some Gbit/s
            _write_settings(name, {f"net/ipv4/tcp_{way}mem": "4096 131072 67108864" for way in "rw"})
    if hosts.delay:
        _join_by_relay(hosts)
    else:
        _add_bridge(hub, "bridge", [_port(index) for index in range(num)])
    hosts._counters += [_Counters(name) for name in [*hosts.names, hub]]


def _limit(namespace: str, device: str, rate: float | None) -> None:
    """A token bucket of this rate in front of an interface; without a rate a queue, which counts all the same."""
    add = ["tc", "-n", namespace, "qdisc", "add", "dev", device, "root"]
    if rate is None:
        _run(*add, "pfifo", "limit", "10000")
        return
    burst = burst_bytes(rate)
    queue = max(round(rate * 1e6 / 8 * 0.1), 256 * 1024)  # 100 ms, as a switch of some size
    bits = str(round(rate * 1e6))
    _run(*add, "tbf", "rate", f"{bits}bit", "burst", str(burst), "limit", str(queue + burst))
    _run("ip", "-n", namespace, "link", "set", device, "gso_max_size", str(min(_LARGEST, burst * 4 // 5)))


def _join_by_relay(hosts: Hosts) -> None:
    """A bridge for each host instead of one for all, and between them the relay, which holds packets back."""
    taps = [f"tap{index}" for index in range(len(hosts.names))]
    for index, tap in enumerate(taps):
        _run("ip", "-n", hosts.hub, "tuntap", "add", "dev", tap, "mode", "tap", "vnet_hdr")
        _run("ip", "-n", hosts.hub, "link", "set", tap, "mtu", str(MTU), "txqueuelen", "20000", "up")
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
    _run("ip", "-n", namespace, "link", "add", bridge, "type", "bridge", "mcast_snooping", "0")
    for port in ports:
        _run("ip", "-n", namespace, "link", "set", port, "master", bridge)
    _run("ip", "-n", namespace, "link", "set", bridge, "up")


def _address(index: int) -> str:
    return f"192.0.2.{index + 1}"


def _mac(index: int) -> str:
    return f"02:00:00:00:00:{index + 1:02x}"


def _port(index: int) -> str:
    return f"port{index}"


# --------------------------------------------------------------------------------------------------------- the machine


def _check_machine() -> None:
    if not sys.platform.startswith("linux"):
        raise HostsError(f"hosts are network namespaces, which Linux has and {sys.platform} has not: run it on Linux.")
    if os.geteuid() != 0:
        raise HostsError("making network namespaces and limiting their rate needs root: start it with sudo.")
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        raise HostsError(f"there is no {' and no '.join(missing)} here: install the package iproute2.")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise HostsError(
            f"{' '.join(command)}: {done.stderr.strip()}. In a container this needs the capabilities NET_ADMIN and "
            f"SYS_ADMIN (docker run --privileged); the kernel needs veth, bridge, tbf and CUBIC."
        )
    return done.stdout


def _namespaces() -> list[str]:
    return [line.split()[0] for line in _run("ip", "netns", "list").splitlines()]


def _write_settings(namespace: str, settings: Mapping[str, str]) -> None:
    lines = [f"echo '{value}' > /proc/sys/{name}" for name, value in settings.items()]
    _run("ip", "netns", "exec", namespace, "sh", "-ec", "\n".join(lines))


@contextlib.contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """This thread in a namespace for a while. (`os.setns` is only in Python 3.12 and newer.)"""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as outside, open(f"/run/netns/{namespace}") as inside:
        if libc.setns(inside.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
        try:
            yield
        finally:
            libc.setns(outside.fileno(), _CLONE_NEWNET)


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


class _Counters:
    """Bytes that the interfaces of a namespace have sent, asked of the kernel over netlink: cheap enough to ask often."""

    _GET, _DUMP, _DONE, _ERROR = 38, 0x301, 3, 2
    """RTM_GETQDISC; NLM_F_REQUEST | NLM_F_DUMP; NLMSG_DONE; NLMSG_ERROR."""
    _ROOT, _STATS = 0xFFFFFFFF, 3
    """TC_H_ROOT; TCA_STATS, a struct tc_stats, which begins with the bytes as 64 bits."""

    def __init__(self, namespace: str):
        with _inside(namespace):
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


# --------------------------------------------------------------------------------------------------------- measurement


def measure_rate(hosts: Hosts, seconds: float = 2.0, source: int = 0, target: int = 1) -> dict[str, float]:
    """One TCP connection that sends all it can: Mbit/s on the wire, with all headers, and of payload alone.

    Looked at once the connection has come up to its rate: after a quarter of the time, and ten round trips.
    """
    sender, receiver = _connect(hosts, source, target)
    ended = threading.Event()
    total = 0

    def send() -> None:
        block = bytes(1 << 16)
        with contextlib.suppress(OSError):
            while not ended.is_set():
                sender.sendall(block)

    def receive() -> None:
        nonlocal total
        buffer = bytearray(1 << 20)
        with contextlib.suppress(OSError):
            while size := receiver.recv_into(buffer):
                total += size

    threads = [threading.Thread(target=work, daemon=True) for work in (send, receive)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 4 + 10 * 2 * hosts.delay / 1000)
    began, wire, payload = time.perf_counter(), hosts.received()[target], total
    time.sleep(seconds)
    elapsed = time.perf_counter() - began
    wire, payload = hosts.received()[target] - wire, total - payload
    ended.set()
    for end in (sender, receiver):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
    for thread in threads:
        thread.join()
    return {"wire": 8e-6 * wire / elapsed, "payload": 8e-6 * payload / elapsed}


def measure_round_trip(hosts: Hosts, source: int = 0, target: int = 1, num: int = 5) -> float:
    """Milliseconds, the median, from one host to another and back through an idle link: one byte over TCP."""
    first, second = _connect(hosts, source, target)

    def echo() -> None:
        while byte := second.recv(1):
            second.sendall(byte)

    thread = threading.Thread(target=echo, daemon=True)
    thread.start()
    times = []
    for _ in range(num):
        began = time.perf_counter()
        first.sendall(b".")
        first.recv(1)
        times.append(1000 * (time.perf_counter() - began))
    first.close()
    thread.join()
    second.close()
    return sorted(times)[num // 2]


def _connect(hosts: Hosts, source: int, target: int) -> tuple[socket.socket, socket.socket]:
    listener, first = hosts.socket(target), hosts.socket(source)
    with listener:
        listener.bind((hosts.addresses[target], 0))
        listener.listen()
        first.connect(listener.getsockname())
        second, _ = listener.accept()
    for end in (first, second):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return first, second


def check_links(rate: float | None, delay: float, seconds: float = 2.0) -> dict:
    """Rate both ways and round trip of links that are made for it: what was asked for, and what came of it."""
    with make_hosts(2, rate, delay) as hosts:
        round_trip = measure_round_trip(hosts)
        there, back = measure_rate(hosts, seconds, 0, 1), measure_rate(hosts, seconds, 1, 0)
    return {
        "rate": rate,
        "delay": delay,
        "wire_mbit": [there["wire"], back["wire"]],
        "payload_mbit": [there["payload"], back["payload"]],
        "round_trip_ms": round_trip,
    }


def main() -> int:
    """The check, or the cleaning."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clean", action="store_true", help="remove what killed runs have left behind")
    parser.add_argument("--rates", nargs="+", default=["none", "1000", "100", "20", "5"], help="Mbit/s, or none")
    parser.add_argument("--delays", nargs="+", type=float, default=[0.0], help="milliseconds one way")
    arguments = parser.parse_args()
    try:
        if arguments.clean:
            print(*clean() or ["nothing was left"], sep="\n")
            return 0
        for rate in arguments.rates:
            for delay in arguments.delays:
                print(link_in_words(check_links(None if rate == "none" else float(rate), delay)), flush=True)
    except HostsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def link_in_words(check: dict) -> str:
    """A line for what `check_links` found."""
    rate = "no limit" if check["rate"] is None else f"{check['rate']:g} Mbit/s"
    wire, payload = (" / ".join(f"{value:.4g}" for value in check[f"{kind}_mbit"]) for kind in ("wire", "payload"))
    return (
        f"{rate}, {check['delay']:g} ms one way: {wire} Mbit/s there / back on the wire, {payload} of payload, "
        f"round trip {check['round_trip_ms']:.2f} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
