"""What torchrun's report shows as the cause: torch's own reader of the file that a worker leaves."""

import os
import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from pipeflow.errors import PREEMPTED_EXIT_CODE
from tests.small_runs import errors_in, finish, options, read_until, small_config


def report(path: Path, code: int) -> str:
    """What torchrun prints at its end."""
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=code, error_file=str(path))
    return str(ChildFailedError("pipeflow.launch", {0: failure}))


@pytest.mark.parametrize("option", ["--optim.lrr=1", "--link.backend=nccl"])
def test_the_report_has_the_line_that_was_said(launch, tmp_path, option):
    """Of an error from before torch is imported, and of one from within the run."""
    file = tmp_path / "error.json"
    arguments = [f"--run.dir={tmp_path / 'run'}", "--run.device=cpu", option]
    process = launch(2, *arguments, TORCHELASTIC_ERROR_FILE=str(file))
    (said,) = errors_in(finish(process))
    assert f"traceback : {said}\n" in report(file, 1)


def test_the_report_has_the_traceback_of_a_failure_that_nobody_foresaw(launch, tmp_path):
    file = tmp_path / "error.json"
    arguments = [f"--run.dir={tmp_path / 'run'}"]
    entry = "tests.training.programs.careless_report:main"
    finish(launch(2, *arguments, entry=entry, TORCHELASTIC_ERROR_FILE=str(file)))
    assert "ZeroDivisionError: division by zero" in report(file, 1)


def test_the_report_has_what_an_interrupted_run_said(launch, tmp_path):
    file = tmp_path / "error.json"
    config = small_config(tmp_path / "run", schedule={"mode": "concurrent", "local_epochs": 400, "finetune_epochs": 0})
    process = launch(None, *options(config), TORCHELASTIC_ERROR_FILE=str(file))
    read_until(process, lambda line: line.startswith("epoch 0 ("))
    os.kill(process.workers[0], signal.SIGTERM)
    (said,) = [line for line in finish(process).splitlines() if line.startswith("preempted")]
    assert f"traceback : {said}\n" in report(file, PREEMPTED_EXIT_CODE)
