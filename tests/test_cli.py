import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import pipeflow
from pipeflow import launch
from pipeflow.cli import main

ROOT = Path(__file__).parents[1]


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    try:
        code = main(list(arguments))
    except SystemExit as stopped:
        code = stopped.code
    output = capsys.readouterr()
    return code, output.out, output.err


COMMANDS = (
    "train",
    "plan",
    "sample",
    "evaluate",
    "encode",
    "interpolate",
    "import",
    "report",
    "sweep",
    "configs",
    "recipe",
)


@pytest.mark.parametrize("command", [(), *((command,) for command in COMMANDS)])
def test_every_command_has_help(capsys, command):
    code, out, err = run(capsys, *command, "--help")
    assert (code, err) == (0, "") and out.startswith("usage: ")
    assert command or all(re.search(rf"\n    {each}\s", out) for each in COMMANDS)


def test_help_into_a_pipe_that_closes_ends_quietly():
    command = [sys.executable, "-m", "pipeflow", "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # long before anything is printed
        assert (process.stderr.read(), process.wait()) == (b"", 0)


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("bogus",), ("sample",), ("report", "--bogus"), ("evaluate", "run", "--bogus", "1"), ("evaluate", "a", "b"),
        ("evaluate", "run", "--device", "tpu"), ("sample", "run", "--num", "0"), ("sample", "run", "--num", "many"),
        ("sample", "run", "--temperature", "-1"), ("sample", "run", "--temperature", "nan"),
        ("sample", "run", "--seed", "-1"), ("sample", "run", "--out", "samples.jpg"), ("encode", "run", "a.png"),
        ("encode", "run", "--out", "latents.safetensors"), ("interpolate", "run", "a.png", "b.png"),
        ("interpolate", "run", "a.png", "b.png", "--out", "way.png", "--num", "1"),
    ],
)  # fmt: skip
def test_a_command_line_that_cannot_be_is_exit_code_2(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and "error: " in err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("sample", "nowhere"), "nowhere (nowhere, relative to the current folder): give a run folder"),
        (("evaluate", "nowhere"), "nowhere (nowhere, relative to the current folder): give a run folder"),
        (("report", "nowhere"), "nowhere (nowhere, relative to the current folder) is not the folder of a run"),
        (("plan", "--optim.lt", "1"), "did you mean 'optim.lr'"),
        (("plan", "--config", "nowhere.yaml"), "nowhere.yaml"),
        (("plan", "--workers", "2", "--link", "nonsense"), "--link: expected '1 Gbit/s'"),
        (("plan", "nowhere"), "'nowhere' is not an option"),
        (("train", "--optim.lt", "1"), "did you mean 'optim.lr'"),
        (("train", "--config", "two_mons"), "did you mean 'two_moons'?"),
        (("configs", "cifar10/small_glo"), "did you mean 'cifar10/small_glow'"),
        (("recipe", "slrum"), "did you mean 'slurm'?"),
        (("recipe", "kubernetes"), "is not the name of a recipe: `pipeflow recipe` lists them."),
    ],
)
def test_an_error_the_user_can_act_on_is_one_line_and_exit_code_1(capsys, arguments, words):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and words in err and err.count("\n") == 1


def test_sample_says_where_it_wrote_or_could_not(capsys, finished_run, tmp_path):
    grid = tmp_path / "grid.png"
    said = run(capsys, "sample", str(finished_run), "--num", "2", "--out", str(grid))
    assert said == (0, f"2 samples, temperature 0.7, seed 0: {grid}\n", "") and grid.is_file()
    code, out, err = run(capsys, "sample", str(finished_run), "--num", "1", "--out", str(grid / "below_a_file.png"))
    assert (code, out) == (1, "") and err.startswith(f"error: {tmp_path}")


def test_evaluate_is_one_line(capsys, finished_run):
    code, out, err = run(capsys, "evaluate", str(finished_run), "--device", "cpu")
    assert (code, err) == (0, "") and out.endswith("on 64 images (cpu); summary.json: the same to the last bit\n")


def test_encode_and_interpolate_say_where_they_wrote(capsys, finished_run, tmp_path):
    a, out, way = (str(tmp_path / name) for name in ("a.png", "latents.safetensors", "way.png"))
    Image.new("RGB", (32, 32)).save(a)
    model = str(finished_run / "model.safetensors")
    code, said, err = run(capsys, "encode", model, a, a, "--out", out, "--device", "cpu")
    assert (code, err) == (0, "") and said.startswith("last [2, ") and said.endswith(f": {out}\n")
    said = run(capsys, "interpolate", model, a, a, "--num", "3", "--out", way)
    assert said == (0, f"3 images from {a} to {a}: {way}\n", "")


def test_report_prints_the_table_and_where_the_page_is(capsys, finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeflow.report.command.write_page", lambda runs, folder, png: [f"{folder}/page of {[*runs]}"])
    code, out, err = run(capsys, "report", str(finished_run), "--out", str(tmp_path))
    assert (code, err) == (0, "") and "1 concurrent + 1 finetune" in out
    assert f"{tmp_path}/page of ['finished']" in out and "MB all: evaluations, samples, initial latents" in out


def test_a_tilde_is_the_home_folder_wherever_a_path_stands(capsys, finished_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("pipeflow.report.command.write_page", lambda runs, folder, png: [f"{folder}/report.html"])
    (tmp_path / "run").symlink_to(finished_run)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    for arguments, said in [
        (("report", "~/run", "--out", "~/figures"), "figures/report.html"),
        (("sample", "~/run", "--num", "1", "--out=~/samples.png"), "samples.png"),
        (("encode", "~/run", "~/a.png", "--out", "~/latents"), "latents"),
        (("interpolate", "~/run", "~/a.png", "~/a.png", "--num", "2", "--out", "~/way.png"), "way.png"),
    ]:
        code, out, err = run(capsys, *arguments)
        assert (code, err) == (0, "") and f"{tmp_path}/{said}" in out, arguments
    assert run(capsys, "plan", "--workers", "1", "--flops", "1e12", "--json", "~/plan.json")[0] == 0
    assert (tmp_path / "samples.png").is_file() and (tmp_path / "plan.json").is_file()


def test_plan_takes_the_options_of_a_run(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("schedule: {local_epochs: 5}\n")
    options = ("--config", str(tmp_path / "run.yaml"), "--parts.num=2", "--optim.lr", "1e-4")
    code, out, err = run(capsys, "plan", *options)
    assert (code, err) == (0, "") and "5 concurrent + 2 finetune" in out and "with 2 workers" in out
    code, out, err = run(capsys, "plan", *options, "--phases")
    assert (code, err) == (0, "") and out.count("concurrent") == 5 and out.count("whole flow") == 2


def test_configurations_and_recipes_are_listed_and_printed(capsys):
    code, listed, err = run(capsys, "configs")
    assert (code, err) == (0, "") and re.search(
        r"^cifar10/small_glow +End to end at the small size", listed, re.MULTILINE
    )
    for name in (line.split()[0] for line in listed.splitlines()):
        code, out, err = run(capsys, "configs", name)
        assert (code, err, out) == (0, "", (ROOT / "configs" / f"{name}.yaml").read_text())
    assert run(capsys, "recipe")[1].startswith("slurm  Trains on the GPUs of several machines")
    assert run(capsys, "recipe", "slurm") == (0, (ROOT / "launch" / "slurm.sh").read_text(), "")


def test_train_runs(capsys, monkeypatch):
    monkeypatch.setattr("pipeflow.launch.main", lambda arguments: print("train", *arguments) or 3)
    assert run(capsys, "train", "--optim.lr", "1e-4") == (3, "train --optim.lr 1e-4\n", "")


@pytest.mark.parametrize("command", [("pipeflow",), ("pipeflow", "train"), ("pipeflow.launch",)])
def test_versions(capsys, command):
    main_of = {"pipeflow": main, "pipeflow.launch": launch.main}[command[0]]
    try:
        code = main_of([*command[1:], "--version"])
    except SystemExit as stopped:
        code = stopped.code
    torch = importlib.metadata.version("torch")
    assert (code, capsys.readouterr().out.split(", ")[:2]) == (
        0,
        [f"pipeflow {pipeflow.__version__}", f"torch {torch}"],
    )


def test_the_package_is_a_command_and_its_help_waits_for_nothing():
    program = "import sys, runpy; sys.argv = ['pipeflow', '--help']\ntry: runpy.run_module('pipeflow')\n"
    program += "except SystemExit: print(sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: pipeflow") and done.stdout.endswith("\n[]\n")
