"""`--config FILE --section.option VALUE`, and the messages about other command lines."""

import pytest

from pipeflow.config import Config, load, parse_arguments
from tests.config.errors import message_of


def from_options(*arguments: str) -> Config:
    """A configuration from a command line."""
    return load(*parse_arguments(list(arguments)))


def test_both_forms():
    arguments = ["--config", "a.yaml", "--optim.lr", "1e-4", "--run.seed=1", "--run.dir=a=b", "--data.path="]
    overrides = {"optim.lr": "1e-4", "run.seed": "1", "run.dir": "a=b", "data.path": ""}
    assert parse_arguments(arguments) == ("a.yaml", overrides)
    assert len(arguments) == 7, "the caller's list is left as it is"
    assert parse_arguments(["--config=a.yaml"]) == ("a.yaml", {})
    assert parse_arguments([]) == (None, {})


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["--optim.lr"], ["--optim.lr has no value", "write --optim.lr VALUE"]),
        (["--optim.lr", "--run.seed", "1"], ["--optim.lr has no value"]),
        (["--data.flip"], ["write --data.flip true or false."]),
        (["--run.resume"], ["write --run.resume auto or never or must."]),
        (["--config"], ["write --config FILE."]),
        (["--optim.lr", "1", "--optim.lr=2"], ["--optim.lr is given twice ('1' and '2')"]),
        (["1e-4"], ["'1e-4' is not an option", "--section.name value"]),
        (["--optim.lrr", "1"], ["unknown option 'optim.lrr'", "did you mean 'optim.lr'?"]),
        (["--lr", "1"], ["unknown option 'lr'", "did you mean 'optim.lr'?"]),
        (["--zzz", "1"], ["unknown option 'zzz'", "there are run, data"]),
        (["--"], ["unknown option ''"]),
        (
            ["--link.cache_draws", "0"],
            ["'link.cache_draws': version 0.2.0 removed this option: the latents", "Leave it out."],
        ),
    ],
)
def test_command_lines_that_are_refused(arguments, parts):
    message = message_of(parse_arguments, arguments)
    assert all(part in message for part in parts), message


def test_values_that_begin_with_a_minus():
    """One minus begins a value, two begin an option."""
    for arguments in (["--optim.lr", "-1e-3"], ["--optim.lr=-1e-3"]):
        assert message_of(from_options, *arguments) == "optim.lr: must be a number above 0, got -0.001."
    assert from_options("--run.dir", "-x").run.dir == "-x"
    assert from_options("--run.dir=--x").run.dir == "--x"
    assert "--run.dir has no value" in message_of(from_options, "--run.dir", "--x")


def test_only_rank_0_reports_a_mistake(monkeypatch, capsys):
    from pipeflow import launch

    monkeypatch.setattr(launch.threading.Event, "wait", lambda self, timeout=None: True)
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    for rank, expected in [("0", "error: --optim.lr has no value: write --optim.lr VALUE.\n"), ("1", "")]:
        monkeypatch.setenv("RANK", rank)
        assert launch.main(["--optim.lr"]) == 1
        assert capsys.readouterr().err == expected
