"""Rate and round trip of the links between hosts, held against what was asked for.

    python -m benchmarks.links.check            # links of several rates
    python -m benchmarks.links.check --clean    # removes what a run that was killed has left behind

Linux and root only.
"""

import argparse
import contextlib
import socket
import sys
import threading
import time

from benchmarks.links.hosts import Hosts, clean, make_hosts
from benchmarks.links.namespaces import HostsError


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


def mbit(text: str) -> float | None:
    """A rate of the command line; None for links without a limit."""
    return None if text == "none" else float(text)


def main() -> int:
    """The check, or the cleaning."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clean", action="store_true", help="remove what killed runs have left behind")
    rates = (None, 1000.0, 100.0, 20.0, 5.0)
    parser.add_argument("--rates", nargs="+", type=mbit, default=rates, metavar="RATE", help="Mbit/s, or none")
    parser.add_argument("--delays", nargs="+", type=float, default=[0.0], help="milliseconds one way")
    arguments = parser.parse_args()
    try:
        if arguments.clean:
            print(*clean() or ["nothing was left"], sep="\n")
            return 0
        for rate in arguments.rates:
            for delay in arguments.delays:
                print(link_in_words(check_links(rate, delay)), flush=True)
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
