"""Hosts of one machine: what goes between them is limited and counted, and nothing is left of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.links import namespaces as commands
from benchmarks.links.check import measure_rate, measure_round_trip
from benchmarks.links.hosts import PREFIX, make_hosts
from benchmarks.links.namespaces import HostsError
from benchmarks.links.report import falls_below, summarize

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def namespaces(pid: int) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.startswith(f"{PREFIX}-{pid}-")]


@pytest.mark.root
def test_rate_and_bytes(tmp_path):
    with make_hosts(3, rate=20) as hosts:
        assert len(namespaces(os.getpid())) == 4
        before = hosts.sent(), hosts.received()
        output = tmp_path / "out.txt"
        code = (
            "import socket; server = socket.create_server(('', 5000)); print('up', flush=True)\n"
            "end, _ = server.accept(); total = 0\n"
            "while data := end.recv(65536): total += len(data)\n"
            "print(total)"
        )
        receiver = hosts.start(1, [sys.executable, "-c", code], output)
        sleeper = hosts.start(2, ["sleep", "1000"], tmp_path / "sleep.txt")
        while "up" not in output.read_text():
            time.sleep(0.01)
        began = time.perf_counter()
        with hosts.socket(0) as sender:
            sender.connect((hosts.addresses[1], 5000))
            sender.sendall(bytes(2_000_000))
        assert receiver.wait(10) == 0
        seconds = time.perf_counter() - began
        assert output.read_text().split() == ["up", "2000000"]
        sent = [after - start for after, start in zip(hosts.sent(), before[0])]
        received = [after - start for after, start in zip(hosts.received(), before[1])]
    packets = 2_000_000 / (1500 - 52)
    assert 2_000_000 + 66 * packets <= sent[0] <= 1.01 * (2_000_000 + 66 * packets)
    assert received[1] == sent[0] and received[0] == sent[1] < 0.05 * sent[0]
    assert sent[2] == 0 and received[2] <= 200  # a bridge sends to all what it does not know yet
    assert seconds > 0.95 * 8 * sent[0] / 20e6
    assert sleeper.poll() is not None and namespaces(os.getpid()) == []


@pytest.mark.root
def test_delay_keeps_the_rate():
    with make_hosts(2, rate=50, delay=20) as hosts:
        assert 40 <= measure_round_trip(hosts) < 60
        # Packets that waited for the delay one by one would come to less than a megabit. Loaded cores send with gaps.
        assert 25 < measure_rate(hosts, seconds=1)["wire"] < 52


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_removed_after_a_signal(number):
    code = (
        # A shell starts what it runs in the background with interrupts ignored, and that is inherited.
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import time\nfrom benchmarks.links.hosts import make_hosts\n"
        "with make_hosts(2):\n    print('up', flush=True)\n    time.sleep(1000)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    assert len(namespaces(process.pid)) == 3
    process.send_signal(number)
    process.communicate(timeout=20)
    if number == signal.SIGKILL:
        command = [sys.executable, "-m", "benchmarks.links.check", "--clean"]
        cleaned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert f"-{process.pid}-" in cleaned
    assert namespaces(process.pid) == []


def test_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(commands.sys, "platform", "linux")
    monkeypatch.setattr(commands.os, "geteuid", lambda: 1000)
    with pytest.raises(HostsError, match=r"needs root: start it with sudo"), make_hosts():
        pass
    monkeypatch.setattr(commands.os, "geteuid", lambda: 0)
    monkeypatch.setattr(commands.shutil, "which", lambda name: None)
    with pytest.raises(HostsError, match=r"no ip and no tc here: install the package iproute2"), make_hosts():
        pass


def measured(rate: float | None, speed: float, micro_batches: int, number: int = 0) -> dict:
    return {
        "system": "a", "label": f"a{micro_batches}", "pipeflow": False, "micro_batches": micro_batches, "rate": rate,
        "delay": 0.0, "batch": 64, "round": number, "steps": 39, "images_per_s": speed, "payload": [1000, 1000],
        "sent": [1050, 1050],
    }  # fmt: skip


def test_best_micro_batches_and_where_speed_falls():
    runs = [
        (None, 100, 2),
        (None, 80, 4),
        (100.0, 95, 2),
        (100.0, 97, 2, 1),
        (100.0, 60, 4),
        (1.0, 20, 2),
        (1.0, 84, 4),
    ]
    points = summarize([measured(*run) for run in runs])
    found = [(point["rate"], point["micro_batches"], point["kept"]) for point in points]
    assert found == [(None, 2, 1.0), (100.0, 2, 0.96), (1.0, 4, 0.84)]
    assert points[0]["payload"] == 2000 * 2  # an epoch of 4,992 images is 78 batches of 64
    # 10: half way between 0.84 and 0.96, over log(rate)
    assert [falls_below(points, share) for share in (0.9, 0.8, 0.99)] == ["10", "below 1", "above 100"]
