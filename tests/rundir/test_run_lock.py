"""Two runs on one folder are kept apart, and what a killed run leaves never stands in the way."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from pipeflow.errors import CheckpointError
from pipeflow.rundir.lock import RunLock

HOLDER = """
import sys, threading
from pathlib import Path
from pipeflow.rundir.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.take()
print("taken", flush=True)
threading.Event().wait()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of this test's folder."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "taken\n"
        yield process
        process.kill()


def test_the_second_is_refused_and_told_who_is_there(tmp_path, holder):
    with pytest.raises(CheckpointError) as error:
        RunLock(tmp_path).take(patience=0)
    message = str(error.value)
    assert f"process {holder.pid} on {socket.gethostname()} trains in it since 20" in message
    assert "choose another run.dir" in message


def test_what_a_killed_run_leaves_does_not_block(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run.lock").exists()
    lock = RunLock(tmp_path)
    assert lock.take(patience=0) is None
    lock.release()


def test_a_run_that_is_ending_is_waited_for(tmp_path, holder):
    """Killed while the second waits, as when a launcher restarts at once."""
    timer = threading.Timer(0.5, lambda: os.kill(holder.pid, signal.SIGKILL))
    timer.start()
    lock = RunLock(tmp_path)
    assert lock.take(patience=60) is None
    lock.release()


def test_whatever_stands_in_the_file(tmp_path, holder):
    """Read between the taking and the signing it is empty, or another run's."""
    (tmp_path / "run.lock").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"is in use: another run holds its lock"):
        RunLock(tmp_path).take(patience=0)


def test_a_lock_that_went_aside_with_its_folder_is_another_s(tmp_path, holder):
    tmp_path.rename(tmp_path.with_name("aside"))
    tmp_path.mkdir()
    lock = RunLock(tmp_path)
    assert lock.take(patience=0) is None
    with pytest.raises(CheckpointError, match=str(os.getpid())):
        RunLock(tmp_path).take(patience=0)
    lock.release()
