"""The blocks of code in a page, as they are executed.

A comment in the line before a block says what is done with it: `<!-- not executed: why -->`, or `<!-- file: name.py -->`,
which writes it into a file.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SMALL = {
    "--data.num_train": "96", "--data.num_test": "32", "--model.width": "8", "--optim.batch_size": "32",
    "--schedule.local_epochs": "1", "--schedule.finetune_epochs": "1", "--run.device": "cpu", "--run.figures": "false",
}  # fmt: skip
"""Options that make the trainings of a page small, where the page does not give them itself."""
_BLOCK = re.compile(r"(?:^<!-- (not executed|file): (.*?) -->\n)?^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """Some code of a page. executed: whether it is; file: where it is written instead of run."""

    language: str
    code: str
    executed: bool = True
    file: str | None = None


def blocks(page: str) -> list[Block]:
    """The blocks of a page, by its path in the repository."""
    found = _BLOCK.findall((ROOT / page).read_text())
    return [
        Block(language, code, executed=note != "not executed", file=detail if note == "file" else None)
        for note, detail, language, code in found
    ]


def commands(code: str) -> list[str]:
    """The commands of a block: lines, those that end with a backslash joined with the next, without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


def made_small(command: str) -> str:
    """A command as it is, but that a training gets the options of a small one."""
    if not command.startswith("pipeflow train") and "-m pipeflow.launch" not in command:
        return command
    return " ".join([command, *(f"{name} {value}" for name, value in SMALL.items() if f"{name} " not in command)])


def run_page(page: str, folder: Path, **given: Any) -> str:
    """Executes the blocks of a page in a folder, in their order; what the commands printed.

    Python blocks share one set of names. given: those that the page takes for granted.

    AssertionError says which command failed, and what it printed.
    """
    names: dict[str, Any] = {"__name__": "__main__", **given}
    said = []
    for block in blocks(page):
        if not block.executed:
            continue
        if block.file is not None:
            (folder / block.file).write_text(block.code)
        elif block.language == "python":
            exec(compile(block.code, f"{page}, a block", "exec"), names)
        else:
            said += [shell(made_small(command), folder) for command in commands(block.code)]
    return "".join(said)


def shell(command: str, folder: Path) -> str:
    """Runs a command in a folder, as in a terminal of this environment; what it printed."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout
