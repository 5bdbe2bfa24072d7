"""Two runs on one folder are kept apart, and what a killed run leaves never stands in the way."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

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


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        RunLock(folder).take(patience=0)
    return str(error.value)


def test_the_second_is_told_who_is_there_and_let_in_when_that_one_is_killed(tmp_path):
    """Whatever stands in the file meanwhile: between the taking and the signing it is empty, or another run's."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "taken\n"
        message = refusal(tmp_path)
        assert f"process {holder.pid} on {socket.gethostname()} trains in it since 20" in message
        assert "choose another run.dir" in message
        (tmp_path / "run.lock").write_bytes(b"\xff")
        assert "is in use: another run holds its lock" in refusal(tmp_path)
        threading.Timer(0.3, holder.kill).start()
        lock = RunLock(tmp_path)
        assert lock.take(patience=60) is None
        assert str(os.getpid()) in refusal(tmp_path)
        lock.release()


def test_a_lock_that_went_aside_with_its_folder_is_another_s(tmp_path):
    aside = RunLock(tmp_path)
    aside.take()
    tmp_path.rename(tmp_path.with_name("aside"))
    tmp_path.mkdir()
    lock = RunLock(tmp_path)
    assert lock.take(patience=0) is None
    assert "is in use" in refusal(tmp_path)
    for each in (lock, aside):
        each.release()
