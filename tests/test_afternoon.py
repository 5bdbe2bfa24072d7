"""A newcomer's afternoon in an empty folder, with the commands that he types and the advice that he is given.

No worker prints a traceback, nothing rewrites what was, and every refusal's advice works when it is followed.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeflow.data import dead_leaves
from pipeflow.errors import PREEMPTED_EXIT_CODE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SMALL = (
    "--data.name images --data.path pictures --model.num_blocks 2 --model.width 8 --parts.num 3 --optim.batch_size 32 "
    "--schedule.local_epochs 2 --schedule.finetune_epochs 1"
)
LONG = SMALL.replace("--schedule.local_epochs 2", "--schedule.local_epochs 4000")
TORCHRUN = "torchrun --standalone --nproc_per_node=3 -m pipeflow.launch"

MY_FLOWS = """
import torch
from pipeflow import Config, glow, load_flow, train


def make():
    torch.manual_seed(0)
    return glow((3, 32, 32), num_blocks=1, num_steps=2, width=8)


if __name__ == "__main__":
    config = Config.from_dict({
        "run": {"dir": "runs/mine"}, "data": {"num_train": 64, "num_test": 32}, "optim": {"batch_size": 32},
        "parts": {"num": 2}, "schedule": {"local_epochs": 1, "finetune_epochs": 1},
    })
    print(train(config, flow=make()).test_bpd)
    print(load_flow("runs/mine", flow=make).sample(2).shape)
"""


class Terminal:
    """Commands in one folder. Whatever they print is looked at for tracebacks of workers."""

    def __init__(self, folder: Path):
        self.folder = folder

    def start(self, command: str) -> subprocess.Popen[str]:
        """Starts a command in a session of its own, as a terminal does with a job."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PATH": path,
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        }
        environment["PYTHONPATH"] = f"{Path(__file__).parents[1]}:{environment['PYTHONPATH']}"
        return subprocess.Popen(
            shlex.split(command), cwd=self.folder, env=environment, start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, command: str, code: int = 0) -> str:
        """Runs a command to its end; what it printed."""
        process = self.start(command)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == code, f"{command}: {process.returncode}\n{output}"
        assert "Traceback" not in output or "torchrun" in command, output
        assert "/pipeflow/training/" not in output, output
        return output

    def interrupt(self, command: str, line: str) -> tuple[int, str]:
        """Types Ctrl-C once a line that begins so is printed; exit code and output."""
        process = self.start(command)
        assert process.stdout is not None
        seen = ""
        while not seen.splitlines()[-1:] or not seen.splitlines()[-1].startswith(line):
            read = process.stdout.readline()
            assert read, seen
            seen += read
        os.killpg(process.pid, signal.SIGINT)
        output = seen + process.communicate(timeout=120)[0]
        assert "/pipeflow/" not in output and "terminate called" not in output, output
        return process.returncode, output


def contents(folder: Path) -> dict[Path, bytes]:
    """The files of a run but its lock."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"}


def advised(output: str, option: str) -> str:
    """An option with its value, as the advice in the output writes it."""
    found = re.search(rf"--{re.escape(option)} [^\s;,]+", output)
    assert found is not None, output
    return found[0].rstrip(".)")


def with_option(command: str, option: str) -> str:
    """The command with an option put in the place of the one of that name, or behind."""
    name = option.split()[0]
    return re.sub(rf"{re.escape(name)} \S+", option, command) if name in command else f"{command} {option}"


def write_pictures(folder: Path, seed: int) -> None:
    for part, num in (("train", 96), ("test", 40)):
        (folder / part).mkdir(parents=True)
        for index, image in enumerate(dead_leaves(num, seed=seed + (part == "test"))):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / part / f"{index:02}.png")


@pytest.fixture(scope="module")
def terminal(tmp_path_factory) -> Terminal:
    """A terminal in a folder with pictures and one run, `runs/quickstart`, of three workers."""
    terminal = Terminal(tmp_path_factory.mktemp("afternoon"))
    write_pictures(terminal.folder / "pictures", seed=1)
    assert "done: test" in terminal.run(f"{TORCHRUN} {SMALL}")
    return terminal


def test_another_option_on_a_finished_run(terminal):
    run = terminal.folder / "runs/quickstart"
    before = contents(run)
    assert "nothing to do" in terminal.run(f"pipeflow train {SMALL}")
    command = f"python -m pipeflow.launch {SMALL} --optim.lr 5e-3"
    refused = terminal.run(command, code=1)
    assert "optim.lr: 0.005, was 0.002" in refused and len(refused.splitlines()) == 1
    under_torchrun = terminal.run(f"{TORCHRUN} {SMALL} --optim.lr 5e-3", code=1)
    cause = under_torchrun.partition("Root Cause")[2]
    assert under_torchrun.startswith(refused) and refused.strip() in cause and "was lost" not in under_torchrun
    assert contents(run) == before
    assert "done: test" in terminal.run(f"{command} {advised(refused, 'run.dir')}")
    assert contents(run) == before
    longer = with_option(command, advised(refused, "schedule.finetune_epochs"))
    assert "from here on optim.lr: 0.005, was 0.002" in terminal.run(longer)
    assert "optim.lr: [0.002, 0.005]" in (run / "config_history.yaml").read_text()


@pytest.mark.parametrize("launcher", ["python -m pipeflow.launch", TORCHRUN], ids=["one process", "torchrun"])
def test_ctrl_c_and_the_command_that_goes_on(terminal, launcher):
    name = f"long-{len(launcher)}"
    code, output = terminal.interrupt(f"{launcher} {LONG} --run.dir runs/{name}", "epoch 0 (1 of 4001)")
    assert code == (1 if launcher == TORCHRUN else PREEMPTED_EXIT_CODE)
    assert list((terminal.folder / f"runs/{name}/checkpoints").glob("epoch-*"))
    told = next(line for line in output.splitlines() if "nothing that was trained is lost" in line)
    goes_on = told.partition("Resume with: ")[2]
    assert f"--run.dir runs/{name}" in goes_on, told
    _, output = terminal.interrupt(goes_on, "epoch ")
    assert "resuming after" in output
    shorter = goes_on.replace("--schedule.local_epochs 4000", "--schedule.local_epochs 1")
    refused = terminal.run(shorter, code=1)
    assert "are fewer than" in refused or "set it to" in refused


def test_the_data_moves(terminal):
    command = f"pipeflow train {SMALL} --run.dir runs/moved"
    terminal.run(command)
    here, there = terminal.folder / "pictures", terminal.folder / "elsewhere"
    here.rename(there)
    try:
        refused = terminal.run(with_option(command, "--schedule.finetune_epochs 2"), code=1)
        assert str(here) in refused and "data.path" in refused
        moved = with_option(with_option(command, "--data.path elsewhere"), "--schedule.finetune_epochs 2")
        assert "done: test" in terminal.run(moved)
        assert str(here) in terminal.run("pipeflow evaluate runs/quickstart", code=1)
        assert "the same to the last bit" in terminal.run("pipeflow evaluate runs/quickstart --data elsewhere")
        write_pictures(here, seed=7)
        before = contents(terminal.folder / "runs/moved")
        others = terminal.run(with_option(command, "--schedule.finetune_epochs 3"), code=1)
        assert "not those that the run in runs/moved was trained on" in others
        assert contents(terminal.folder / "runs/moved") == before
        terminal.run("pipeflow evaluate runs/quickstart", code=1)
        anew = f"{with_option(command, '--schedule.finetune_epochs 3')} {advised(others, 'run.resume')}"
        assert "is kept as runs/moved.old-1" in terminal.run(anew)
        assert contents(terminal.folder / "runs/moved.old-1").keys() == {
            terminal.folder / "runs/moved.old-1" / path.relative_to(terminal.folder / "runs/moved") for path in before
        }
    finally:
        for folder in (here, there):
            if folder.exists() and there.exists():
                subprocess.run(["rm", "-r", here], check=False)
                there.rename(here)


def test_failed_starts_leave_nothing_that_a_report_stumbles_over(terminal):
    terminal.run(f"pipeflow train {SMALL} --run.dir runs/failed --data.path nowhere", code=1)
    assert not (terminal.folder / "runs/failed").exists()
    (terminal.folder / "runs/odd").mkdir()
    output = terminal.run("pipeflow report runs/quickstart runs/odd")
    assert "runs/odd" in output and "quickstart" in output
    (terminal.folder / "runs/odd").rmdir()


def test_a_flow_from_python(terminal):
    (terminal.folder / "my_flows.py").write_text(MY_FLOWS)
    assert "torch.Size([2, 3, 32, 32])" in terminal.run("python my_flows.py")
    refused = terminal.run("pipeflow sample runs/mine", code=1)
    assert "--flow" in refused
    terminal.run("pipeflow sample runs/mine --num 4 --flow my_flows:make")
    assert "the same to the last bit" in terminal.run("pipeflow evaluate runs/mine --flow my_flows:make")
