"""An output that breaks: a pipe whose reader has gone, a full disk, descriptors that were closed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from pipeflow import cli, train
from tests.small_runs import small_config

BREAKS = {"pipe": "Broken pipe", "disk": "No space left on device"}


@pytest.fixture(params=BREAKS)
def broken(request) -> Iterator[tuple[TextIO, str]]:
    """An output that cannot be written to, and why."""
    if request.param == "disk":
        stream = open("/dev/full", "w")
    else:
        reader, writer = os.pipe()
        os.close(reader)
        stream = os.fdopen(writer, "w")
    yield stream, BREAKS[request.param]
    stream.close()  # raises where something is left in its buffer


def test_a_training_goes_on_without_its_output(broken, tmp_path, capsys, monkeypatch):
    stream, why = broken
    monkeypatch.setattr("sys.stdout", stream)
    config = small_config(tmp_path / "run", schedule={"mode": "concurrent", "local_epochs": 1, "finetune_epochs": 0})
    assert train(config).num_epochs == 1
    assert sys.stdout is stream
    assert (tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1].startswith('{"event": "end"')
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"standard output: {why}: the run goes on without it; its log is {tmp_path}/run/metrics.jsonl."


def test_a_command_ends_without_a_traceback(broken, capsys, monkeypatch):
    """`| head` has seen enough, which is no error; a full disk is one."""
    stream, why = broken
    monkeypatch.setattr("sys.stdout", stream)
    code = cli.main(["plan"])
    assert (code, capsys.readouterr().err) == ((0, "") if "pipe" in why else (1, f"error: standard output: {why}\n"))


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_no_file_gets_the_number_of_a_standard_descriptor_that_was_closed(closed, tmp_path):
    program = (
        "from pipeflow.output import open_standard_descriptors, say; open_standard_descriptors(); say('nobody hears')\n"
    )
    program += f"number = open({str(tmp_path / 'file')!r}, 'w').fileno(); raise SystemExit(number)"
    command = f'exec {sys.executable} -c "$PROGRAM" {" ".join(f"{number}>&-" for number in closed)}'
    done = subprocess.run(["sh", "-c", command], env={**os.environ, "PROGRAM": program, "PYTHONPATH": str(Path.cwd())})
    assert done.returncode > 2


def test_ctrl_c_in_a_command_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("pipeflow.cli.load", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.main(["plan"]) == 130 and capsys.readouterr().err == "interrupted\n"
