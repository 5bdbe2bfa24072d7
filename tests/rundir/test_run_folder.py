"""The run folder at the start of a run: what is continued, what is kept, and what is refused."""

import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml

from pipeflow.config import Config
from pipeflow.errors import CheckpointError
from pipeflow.rundir.folder import RunFolder
from pipeflow.rundir.records import Manifest
from tests.run_records import manifest, summary, write_file
from tests.small_runs import small_config


def begin(path: Path, num_checkpoints: int = 0, launchers: Sequence[str] = (), **sections) -> RunFolder:
    """The folder of a run that was interrupted after some epochs."""
    folder = RunFolder(small_config(path, **sections))
    folder.open(launchers)
    folder.write_config()
    folder.has_begun = True
    for epoch in range(1, num_checkpoints + 1):
        entry = write_file(folder.checkpoints, epoch, 0, {"model/a.b": torch.ones(3)})
        folder.checkpoints.commit([entry], manifest(epoch))
    folder.close()
    return folder


def reopen(config: Config, launchers: Sequence[str] = ()) -> tuple[Manifest | None, list[str]]:
    """What opening a run's folder finds; it is closed again."""
    folder = RunFolder(config)
    try:
        return folder.open(launchers)
    finally:
        folder.close()


def said(config: Config) -> str:
    """The error of opening a run's folder."""
    with pytest.raises(CheckpointError) as error:
        reopen(config)
    return str(error.value)


class TestFresh:
    @pytest.mark.parametrize("resume", ["auto", "never"])
    def test_a_start_that_fails_leaves_nothing_but_what_was_there(self, tmp_path, resume, monkeypatch):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a launch")
        path = tmp_path / "deep/er/run"
        config = small_config(path, run={"resume": resume})
        folder = RunFolder(config)
        assert folder.open() == (None, [])
        assert "run.lock" in os.listdir(path)
        folder.close()
        assert os.listdir(tmp_path) == []
        path.mkdir(parents=True)
        assert reopen(config) == (None, []) and os.listdir(path) == []
        (path / "notes.txt").touch()
        assert reopen(config) == (None, []) and os.listdir(path) == ["notes.txt"]
        (path / "tensorboard").mkdir()
        (path / "tensorboard/of another").touch()
        assert reopen(config) == (None, []) and os.listdir(path / "tensorboard") == ["of another"]

    def test_must_resume_but_there_is_nothing(self, tmp_path):
        message = said(small_config(tmp_path / "run", run={"resume": "must"}))
        assert message.startswith("run.resume: must, but ") and "check run.dir" in message

    def test_config_yaml_is_the_run_s(self, tmp_path):
        folder = begin(tmp_path / "run", parts={"split": ["a.b", "c.d"]}, optim={"lr": 1e-5, "part_lr": [1e-5, 1, 2]})
        text = (folder.path / "config.yaml").read_text()
        assert Config.from_dict(yaml.safe_load(text)) == folder.config
        assert text.index("run:") < text.index("data:") < text.index("checkpoint:")


class TestResume:
    @pytest.mark.parametrize("resume", ["auto", "must"])
    def test_from_the_newest_checkpoint(self, tmp_path, resume):
        begin(tmp_path / "run", num_checkpoints=2)
        found, notes = reopen(small_config(tmp_path / "run", run={"resume": resume}))
        assert (found.folder, found.stage, notes) == ("epoch-000002", "local", [])

    def test_interrupted_before_the_first_checkpoint(self, tmp_path):
        folder = begin(tmp_path / "run")
        write_file(folder.checkpoints, 1, 0, {"model/a.b": torch.ones(3)})
        assert reopen(small_config(tmp_path / "run")) == (None, [])
        assert not list(folder.checkpoints.folder.iterdir()), "what was begun is removed"

    def test_damaged_checkpoints_are_noted_and_if_all_are_the_run_does_not_start_anew_unseen(self, tmp_path):
        begin(tmp_path / "run", num_checkpoints=2)
        (tmp_path / "run/checkpoints/epoch-000002/worker-0.safetensors").unlink()
        found, (note,) = reopen(small_config(tmp_path / "run"))
        assert found.folder == "epoch-000001"
        assert "worker-0.safetensors is missing" in note and "Taking the one before, epoch-000001" in note
        (tmp_path / "run/checkpoints/epoch-000001/manifest.json").write_text("{")
        message = said(small_config(tmp_path / "run"))
        assert "No other checkpoint is whole" in message and "--run.resume never" in message
        found, (note,) = reopen(small_config(tmp_path / "run", run={"resume": "never"}))
        assert found is None and "run.old-1" in note

    def test_what_may_change(self, tmp_path):
        begin(tmp_path / "run", num_checkpoints=1)
        changed = {
            "run": {"resume": "must", "device": "cpu"},
            "parts": {"split": "blocks", "num": None, "head": "standard"},
            "schedule": {"mode": "alternate", "local_epochs": 7, "finetune_epochs": 3, "alternate_every": "2 steps"},
            "optim": {"lr": 1e-5, "clip_norm": 1, "ema": 0, "warmup_steps": 7, "decay": "none"},
            "precision": {"coupling": "bfloat16"},
            "link": {"dtype": "bfloat16", "depth": 1, "timeout_s": 5},
            "finetune": {"parallel": "ddp", "lr": 1e-5},
            "eval": {"every_epochs": 2, "num_images": None},
            "checkpoint": {"every_epochs": 2, "keep": 1},
        }
        folder = RunFolder(small_config(tmp_path / "run", **changed))
        found, notes = folder.open()
        assert (found.folder, notes) == ("epoch-000001", [])
        told = {name: after for name, (_, after) in folder.change.options.items()}
        given = {f"{section}.{key}": value for section, values in changed.items() for key, value in values.items()}
        del given["run.resume"]
        assert told == given and (folder.change.epoch, folder.change.step) == (1, 0)
        folder.close()

    @pytest.mark.parametrize(
        "name, new, old",
        [("run.seed", 1, 0), ("optim.name", "adamax", "adam"), ("optim.batch_size", 16, 32)],
    )
    def test_what_must_stay(self, tmp_path, name, new, old):
        begin(tmp_path / "run", num_checkpoints=1)
        section, key = name.split(".")
        changed = {section: {key: new}}
        message = said(small_config(tmp_path / "run", **changed))
        assert message.startswith(f"{name}: is {new!r}, but the run in {tmp_path / 'run'} has {old!r}.")
        assert "Set it back" in message and "run.dir" in message and "--run.resume never" in message
        found, _ = reopen(small_config(tmp_path / "run"))
        assert found.folder == "epoch-000001", "the refused run has changed nothing"

    def test_every_option_of_model_and_data_must_stay(self, tmp_path):
        """A new option of these sections is one of them without further ado."""
        begin(tmp_path / "run")
        path = tmp_path / "run/config.yaml"
        text = path.read_text()
        for section in ("model", "data"):
            for key, value in yaml.safe_load(text)[section].items():
                other = {str: "mine:other", int: 7, bool: True, type(None): "other"}[type(value)]
                other = {"coupling": "additive", "invconv": "plain", "pad": 8, "num_classes": 9, "memory": "1 GB"}.get(
                    key, other
                )
                changed = yaml.safe_load(text)
                if key in ("channels", "resize", "crop", "test_fraction"):  # which a run of dead leaves cannot have
                    continue
                changed[section][key] = other
                path.write_text(yaml.safe_dump(changed))
                assert said(small_config(tmp_path / "run")).startswith(f"{section}.{key}: is {value!r}, ")


class TestNever:
    def test_the_old_run_is_kept_aside(self, tmp_path):
        begin(tmp_path / "run", num_checkpoints=1)
        never = RunFolder(small_config(tmp_path / "run", run={"resume": "never"}, model={"width": 16}))
        found, (note,) = never.open()
        assert found is None and str(tmp_path / "run.old-1") in note
        assert (tmp_path / "run.old-1/checkpoints/epoch-000001/manifest.json").exists()
        assert [each.name for each in (tmp_path / "run").iterdir()] == ["run.lock"]
        never.has_begun = True
        never.close()
        assert sorted(os.listdir(tmp_path)) == ["run", "run.old-1"]

    def test_the_old_run_is_put_back_where_the_new_one_does_not_begin(self, tmp_path):
        begin(tmp_path / "run", num_checkpoints=1)
        reopen(small_config(tmp_path / "run", run={"resume": "never"}))
        assert os.listdir(tmp_path) == ["run"]
        assert reopen(small_config(tmp_path / "run"))[0].folder == "epoch-000001"

    def test_a_restart_by_the_launcher_goes_on_with_what_was_begun_anew(self, tmp_path, monkeypatch):
        begin(tmp_path / "run", num_checkpoints=2)
        never = small_config(tmp_path / "run", run={"resume": "never"})
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        assert reopen(never)[0] is None, "the attempt before was killed before it looked at the folder"
        begin(tmp_path / "run", num_checkpoints=1, run={"resume": "never"})
        found, notes = reopen(never)
        assert (found.folder, notes) == ("epoch-000001", [])
        for run_id, count in (("second", "1"), ("second", "0")):
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
            assert reopen(never)[0] is None
            begin(tmp_path / "run", num_checkpoints=1, run={"resume": "never"})
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.old-1", "run.old-2", "run.old-3"]

    def test_a_restart_that_worker_0s_launcher_does_not_count(self, tmp_path, monkeypatch):
        """With several machines a launcher restarts its workers for another's sake, or is not the one of the start."""
        never = small_config(tmp_path / "run", run={"resume": "never"})
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "always-the-same")
        begin(tmp_path / "run", num_checkpoints=1, launchers=["a", "b"], run={"resume": "never"})
        launch = tmp_path / "run/run.launch"
        assert reopen(never, ["a", "b"])[0] is None, "this process has begun that run, and now begins another"
        process = f"{socket.gethostname()} {os.getpid()}"
        launch.write_text(launch.read_text().replace(process, "another process"))
        assert reopen(never, ["c", "b"])[0].folder == "epoch-000001"
        launch.write_text(launch.read_text().replace(process, "another process"))
        assert reopen(never, ["c"])[0].folder == "epoch-000001", "c has come to a run that goes on"
        launch.write_text(launch.read_text().replace(process, "another process"))
        assert reopen(never, ["d"])[0] is None, "the same command again"

    def test_a_folder_that_cannot_be_renamed(self, tmp_path, monkeypatch):
        """A mount point, for one."""
        begin(tmp_path / "run")
        busy = OSError(16, "Device or resource busy")
        monkeypatch.setattr(Path, "rename", lambda self, target: (_ for _ in ()).throw(busy))
        message = said(small_config(tmp_path / "run", run={"resume": "never"}))
        assert "Device or resource busy" in message and "choose another run.dir" in message

    @pytest.mark.parametrize("run_dir", [".", "../run"])
    def test_the_current_folder_is_not_moved_away_under_the_run(self, tmp_path, monkeypatch, run_dir):
        begin(tmp_path / "run", num_checkpoints=1)
        monkeypatch.chdir(tmp_path / "run")
        message = said(small_config(Path(run_dir), run={"resume": "never"}))
        assert "current folder cannot be moved" in message
        assert reopen(small_config(Path(run_dir)))[0].folder == "epoch-000001"


class TestRefused:
    @pytest.mark.parametrize(
        "path, words",
        [
            ("file/run", "Not a directory"),
            ("file", "a file of that name is there.*choose another"),
            ("/proc/run", "cannot be written to (.*choose another"),
            ("/proc/self", "cannot be written to (.*choose another"),
        ],
    )
    def test_where_nothing_can_be_written(self, tmp_path, path, words):
        """Also where the folder is there: permission bits tell root nothing."""
        (tmp_path / "file").touch()
        message = said(small_config(tmp_path / path))
        assert message.startswith(f"run.dir: {tmp_path / path} ") and re.search(words.replace("(", "\\("), message)

    def test_a_damaged_config(self, tmp_path):
        begin(tmp_path / "run", num_checkpoints=1)
        (tmp_path / "run/config.yaml").write_text("optim: {lrr: 1}")
        message = said(small_config(tmp_path / "run"))
        assert f"{tmp_path}/run/config.yaml is damaged" in message and "choose another" in message


def test_a_token_is_seen_where_the_folder_is_shared(tmp_path):
    folder = RunFolder(small_config(tmp_path))
    token = folder.show_token()
    assert RunFolder(small_config(tmp_path)).sees(token)
    assert not RunFolder(small_config(tmp_path / "other")).sees(token)
    folder.remove_token(token)
    assert not folder.sees(token) and os.listdir(tmp_path) == []
    assert folder.show_token() != token


def test_a_summary_is_whole_or_not_there(tmp_path):
    folder = RunFolder(small_config(tmp_path))
    assert folder.summary() is None
    folder.write_summary(summary("a"))
    assert folder.summary() == summary("a") and os.listdir(tmp_path) == ["summary.json"]
    for _ in range(2):
        folder.write_summary(None)
        assert folder.summary() is None


def test_a_run_that_has_ended_is_not_trained_anew_where_its_checkpoints_were_removed(tmp_path):
    begin(tmp_path / "run").write_summary(summary("a"))
    assert "has ended, and no checkpoint" in said(small_config(tmp_path / "run"))
    assert reopen(small_config(tmp_path / "run", run={"resume": "never"}))[0] is None
