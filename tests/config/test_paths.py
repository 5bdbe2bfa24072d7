"""Paths of folders and files: the home folder, empty ones, and those where nothing is."""

from pathlib import Path

import pytest

from pipeflow.config import Config, DataConfig, RunConfig, load, parse_arguments
from tests.config.errors import message_of


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def from_yaml(home: Path) -> Config:
    (home / "c.yaml").write_text("run: {dir: ~/runs/x}\ndata: {path: ~/my.zip}\n")
    return load("~/c.yaml")


FORMS = {
    "YAML": from_yaml,
    "command line": lambda home: load(*parse_arguments(["--run.dir=~/runs/x", "--data.path", "~/my.zip"])),
    "Python": lambda home: Config(run=RunConfig(dir="~/runs/x"), data=DataConfig(path="~/my.zip")),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_home_folder_is_put_in_its_place(form, home):
    config = FORMS[form](home)
    assert (config.run.dir, config.data.path) == (f"{home}/runs/x", f"{home}/my.zip")
    assert config.to_dict()["run"]["dir"] == f"{home}/runs/x", "as in the config.yaml of a run"


def test_only_a_tilde_in_front_is_the_home_folder():
    assert Config(run=RunConfig(dir="runs/~/x~")).run.dir == "runs/~/x~"


def test_an_empty_run_folder():
    assert message_of(Config.from_dict, {"run": {"dir": ""}}).startswith("run.dir: expected text, got ''")
    assert message_of(Config, run=RunConfig(dir="")).startswith("run.dir: is empty: name a folder")


def test_a_file_that_is_not_there_is_named_in_full(home, monkeypatch):
    monkeypatch.chdir(home)
    says = f"--config: {home}/my/c.yaml (my/c.yaml, relative to the current folder): No such file"
    assert message_of(load, "my/c.yaml").startswith(says)
    assert message_of(load, "~/c.yaml").startswith(f"--config: {home}/c.yaml: No such file")
