"""Options that are gone: 0.1 wrote all options into its run folders."""

import shutil
from pathlib import Path

import pytest
import yaml

import pipeflow
from pipeflow.cli import main
from pipeflow.config import Config, PartsConfig, load, option_names
from pipeflow.config.removed import REMOVED, _log_ignored
from tests.config.errors import refused

OLD_DEFAULTS = Path(__file__).with_name("config_0.1.yaml")
"""The default configuration, as 0.1 wrote it."""


def test_old_defaults_are_ignored_which_the_first_worker_logs_once(caplog, monkeypatch):
    _log_ignored.cache_clear()
    assert load(str(OLD_DEFAULTS)) == load(str(OLD_DEFAULTS)) == Config(parts=PartsConfig(num=3))
    (message,) = caplog.messages
    assert all(f"{name} (was {default})" in message for name, (default, _) in REMOVED.items())
    assert not REMOVED.keys() & option_names()
    monkeypatch.setenv("RANK", "1")
    _log_ignored.cache_clear()
    load(str(OLD_DEFAULTS))
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    "name, value",
    [("link.cache_draws", 2), ("link.cache_gb", 1), ("link.cache_dir", "/scratch"), ("precision.graphs", True)],
)
def test_other_values_are_refused(name, value):
    message = refused(name, value)
    assert message.startswith(f"{name}: version 0.2.0 removed this option: ")
    assert message.endswith(f"Leave it out: only its old default {REMOVED[name][0]} is ignored, got {value!r}.")


def test_a_run_folder_of_0_1_is_sampled_evaluated_reported_and_resumed(finished_run, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(finished_run, tmp_path / "run")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    for name, (default, _) in REMOVED.items():
        section, _, key = name.partition(".")
        settings[section][key] = default
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    for command in (["sample", "run", "--num", "1"], ["evaluate", "run", "--device", "cpu"], ["report", "run"]):
        assert main(command) == 0
    del settings["run"]["dir"]
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(settings))
    pipeflow.train(load("again.yaml", {"run.dir": "run", "schedule.finetune_epochs": "2"}))
    assert "resuming after 2 epochs" in capsys.readouterr().out
