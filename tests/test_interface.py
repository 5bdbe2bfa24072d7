"""The public interface `import pipeflow`: its names, its imports, and its types as a user's type checker sees them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import pipeflow

ROOT = Path(__file__).parents[1]
PROGRAM = """
from typing import Any
from pipeflow import Config, load_flow, train

config = Config.from_dict({"run": {"dir": "runs/mine"}, "optim": {"lr": 1e-4}})


def report(event: dict[str, Any]) -> None:
    print(event["event"], config.optim.lr, load_flow(config.run.dir).shape)


summary = train(config, report=report)
print(summary.test_bpd + 1.0, summary.seconds, [epoch.test_bpd for epoch in summary.epochs])
"""
MISTAKES = {
    "train(config, report=report)": (
        'train({"optim": {"lr": 1e-4}}, report=report)', '"train" has incompatible type "dict[str, dict[str, float]]"'
    ),
    "config.optim.lr": ("config.optim.learning_rate", '"OptimConfig" has no attribute "learning_rate"'),
    "print(summary.test_bpd": ("print(summary.test_bdp", '"Summary" has no attribute "test_bdp"'),
    "train(config, report": ("train(config, data=[[0, 1]], report", '"data" to "train" has incompatible type'),
    "(event: dict[str, Any])": ("(epoch: int, event: Any)", '"report" to "train" has incompatible type'),
}  # fmt: skip
"""What the program says, what a user wrote in its place, and what mypy answers."""


def test_every_name_is_shown_and_there():
    assert set(pipeflow.__all__) < set(dir(pipeflow))
    assert all(getattr(pipeflow, name) is not None for name in dir(pipeflow))
    with pytest.raises(AttributeError, match="'trian'"):
        _ = pipeflow.trian


def test_import_looks_at_the_parent_first_and_waits_for_nothing():
    program = (
        "import sys, pipeflow; from pipeflow import Config, train; print([name for name in sys.modules if "
        "name.startswith('pipeflow.')][:3], sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "['pipeflow.workers', 'pipeflow.workers.processes', 'pipeflow.workers.parent'] []\n"


@pytest.mark.slow
def test_a_type_checker_finds_a_user_s_mistakes(tmp_path):
    pytest.importorskip("mypy")
    programs = {"right": PROGRAM}
    for number, (right, (wrong, _)) in enumerate(MISTAKES.items()):
        programs[f"wrong{number}"] = PROGRAM.replace(right, wrong)
    for name, text in programs.items():
        (tmp_path / f"{name}.py").write_text(text)
    # pyproject.toml's settings, so that the cache of `make lint` serves here too.
    command = [sys.executable, "-m", "mypy", *(str(tmp_path / f"{name}.py") for name in programs)]
    output = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout
    found = {name: re.findall(rf"{name}\.py:\d+: error: (.*)", output) for name in programs}
    assert found.pop("right") == []
    for (_, message), errors in zip(MISTAKES.values(), found.values(), strict=True):
        assert len(errors) == 1 and message in errors[0], output
