import subprocess
import sys

import pytest

from pipeflow.cli import main


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    try:
        code = main(list(arguments))
    except SystemExit as stopped:
        code = stopped.code
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.mark.parametrize("command", [(), ("sample",), ("evaluate",), ("report",), ("plan",), ("train",)])
def test_every_command_has_help(capsys, command):
    code, out, err = run(capsys, *command, "--help")
    assert (code, err) == (0, "") and out.startswith("usage: ")


def test_help_into_a_pipe_that_closes_ends_quietly():
    command = subprocess.Popen(
        [sys.executable, "-m", "pipeflow", "train", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    command.stdout.close()  # long before anything is printed
    assert (command.stderr.read(), command.wait()) == (b"", 0)
    command.stderr.close()


def test_help_names_every_command(capsys):
    out = run(capsys, "--help")[1]
    assert all(f"\n    {command} " in out for command in ("train", "plan", "sample", "evaluate", "report"))


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("bogus",), ("sample",), ("report",), ("evaluate", "run", "--bogus", "1"), ("evaluate", "a", "b"),
        ("evaluate", "run", "--device", "tpu"), ("sample", "run", "--num", "0"), ("sample", "run", "--num", "many"),
        ("sample", "run", "--temperature", "-1"), ("sample", "run", "--temperature", "nan"),
        ("sample", "run", "--seed", "-1"), ("sample", "run", "--out", "samples.jpg"),
    ],
)  # fmt: skip
def test_a_command_line_that_cannot_be_is_exit_code_2(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and "error: " in err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("sample", "nowhere"), "nowhere is not a run folder"),
        (("evaluate", "nowhere"), "nowhere is not a run folder"),
        (("report", "nowhere"), "nowhere is not the folder of a run"),
        (("plan", "--optim.lt", "1"), "did you mean 'optim.lr'"),
        (("plan", "--config", "nowhere.yaml"), "nowhere.yaml"),
        (("plan", "nowhere"), "'nowhere' is not an option"),
        (("train", "--optim.lt", "1"), "did you mean 'optim.lr'"),
    ],
)
def test_an_error_the_user_can_act_on_is_one_line_and_exit_code_1(capsys, arguments, words):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and words in err and err.count("\n") == 1


def test_sample_says_where_it_wrote(capsys, finished_run, tmp_path):
    out = tmp_path / "grid.png"
    assert run(capsys, "sample", str(finished_run), "--num", "2", "--out", str(out)) == (
        0, f"2 samples, temperature 0.7, seed 0: {out}\n", "",
    )  # fmt: skip
    assert out.is_file()


def test_a_file_that_cannot_be_written_is_an_error(capsys, finished_run, tmp_path):
    (tmp_path / "file").touch()
    code, out, err = run(capsys, "sample", str(finished_run), "--num", "1", "--out", str(tmp_path / "file" / "x.png"))
    assert (code, out) == (1, "") and err.startswith(f"error: {tmp_path}")


def test_evaluate_is_one_line(capsys, finished_run):
    code, out, err = run(capsys, "evaluate", str(finished_run), "--device", "cpu")
    assert (code, err) == (0, "") and out.endswith("on 64 images (cpu); summary.json: the same to the last bit\n")


def test_report_prints_the_table_and_the_figures(capsys, finished_run, tmp_path):
    code, out, err = run(capsys, "report", str(finished_run), "--out", str(tmp_path))
    assert (code, err) == (0, "")
    assert "1 concurrent + 1 finetune" in out and len(list(tmp_path.glob("*.png"))) == 4


def test_plan_takes_the_options_of_a_run(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("schedule: {local_epochs: 5}\n")
    options = ("--config", str(tmp_path / "run.yaml"), "--parts.num=2", "--optim.lr", "1e-4")
    code, out, err = run(capsys, "plan", *options)
    assert (code, err) == (0, "") and "5 concurrent + 2 finetune" in out and "with 2 workers" in out
    code, out, err = run(capsys, "plan", *options, "--phases")
    assert (code, err) == (0, "") and out.count("concurrent") == 5 and out.count("whole flow") == 2


def test_train_runs(capsys, monkeypatch):
    monkeypatch.setattr("pipeflow.launch.main", lambda arguments: print("train", *arguments) or 3)
    assert run(capsys, "train", "--optim.lr", "1e-4") == (3, "train --optim.lr 1e-4\n", "")


def test_the_package_is_a_command_and_its_help_waits_for_nothing():
    program = "import sys, runpy; sys.argv = ['pipeflow', '--help']\ntry: runpy.run_module('pipeflow')\n"
    program += "except SystemExit: print(sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: pipeflow") and done.stdout.endswith("\n[]\n")
