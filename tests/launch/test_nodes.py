"""Several machines, as launch/README.md has them: here network namespaces, each with an address of its own."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from benchmarks.links.hosts import Hosts, make_hosts
from pipeflow.config import load, parse_arguments
from pipeflow.training.train import train
from tests.small_runs import assert_same_tensors, learned, options, small_config

ROOT = Path(__file__).parents[2]
RECIPE = (ROOT / "launch" / "README.md").read_text()
SLURM = ROOT / "launch" / "slurm.sh"


def lines_of(text: str) -> list[str]:
    """Commands of a recipe or a script, each in one line."""
    return [line.strip() for line in text.replace("\\\n", " ").splitlines()]


def torchrun_line(text: str) -> list[str]:
    """The arguments of the torchrun that a text has."""
    (line,) = [line for line in lines_of(text) if re.match(r"(srun .*)?torchrun ", line)]
    words = shlex.split(line.removesuffix("&"))
    return words[words.index("torchrun") + 1 :]


def exports(text: str) -> dict[str, str]:
    (line,) = [line for line in lines_of(text) if line.startswith("export ") and "=eth0" in line]
    return dict(word.split("=") for word in shlex.split(line)[1:])


def on_host(hosts: Hosts, host: int, num_workers: int, arguments: list[str], output: Path) -> subprocess.Popen:
    """The recipe's line on one machine, with its own numbers in it."""
    recipe = torchrun_line(RECIPE)
    given = recipe[: recipe.index("-m")]
    changed = {
        "--nproc-per-node": str(num_workers),
        "--rdzv-endpoint": f"{hosts.addresses[0]}:29400",
        "--rdzv-conf": f"is_host={'true' if host == 0 else 'false'}",
        "--local-addr": hosts.addresses[host],
    }
    names = [word.split("=")[0] for word in given]
    assert set(changed) <= set(names)
    given = [f"{name}={changed[name]}" if name in changed else word for name, word in zip(names, given)]
    command = [sys.executable, "-m", "torch.distributed.run", *given, "-m", "pipeflow.launch", *arguments]
    environment = {**exports(RECIPE), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return hosts.start(host, command, output, environment)


@pytest.mark.slow
@pytest.mark.root
def test_three_workers_on_two_machines_are_the_run_of_one_process(tmp_path):
    train(small_config(tmp_path / "one_process", run={"device": "cpu"}))
    folder, outputs = tmp_path / "run", [tmp_path / "host0.txt", tmp_path / "host1.txt"]
    arguments = options(small_config(folder, run={"device": "cpu"}))
    with make_hosts(2) as hosts:
        processes = [on_host(hosts, host, 2 - host, arguments, outputs[host]) for host in (1, 0)]
        for process, output in zip(processes, outputs[::-1]):
            assert process.wait(150) == 0, output.read_text()
        between = sum(hosts.sent())
    assert_same_tensors(folder, tmp_path / "one_process")
    assert learned(folder) == learned(tmp_path / "one_process")
    # One of the two links is within a machine, so that the other's latents, at least, went over the wire.
    assert between > min(learned(folder)["forward"])


@pytest.mark.parametrize("text", [RECIPE, SLURM.read_text()], ids=["README", "slurm.sh"])
def test_torchrun_takes_the_line(text):
    line = [re.sub(r"\$\(\(.*\)\)", "29400", word) for word in torchrun_line(text)]
    line = [{"--nnodes": "--nnodes=2", "--nproc-per-node": "--nproc-per-node=1"}.get(w.split("=")[0], w) for w in line]
    parsed = get_args_parser().parse_args(line)
    assert (parsed.rdzv_backend, parsed.training_script) == ("c10d", "pipeflow.launch") and parsed.module
    assert parsed.rdzv_endpoint and parsed.rdzv_id


def test_pipeflow_takes_the_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in (RECIPE, SLURM.read_text()):
        (sbatch,) = (line for line in lines_of(text) if line.lstrip("# ").startswith("sbatch "))
        given = shlex.split(sbatch.partition(" slurm.sh ")[2])
        assert load(*parse_arguments(given)).run.dir.startswith("/shared/")
    given = torchrun_line(RECIPE)
    assert load(*parse_arguments(given[given.index("pipeflow.launch") + 1 :])).run.dir == "/shared/my-run"


def test_the_script_is_one_that_bash_reads():
    assert subprocess.run(["bash", "-n", SLURM], capture_output=True, text=True).stderr == ""
    assert SLURM.stat().st_mode & 0o111
    # Slurm reads options up to the first command and ignores, without a word, those after it.
    before, _, after = SLURM.read_text().partition("set -euo pipefail")
    assert before.count("#SBATCH --") >= 5 and "#SBATCH" not in after
