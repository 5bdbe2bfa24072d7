"""The launcher for Ray without a cluster: options, where the run folder is, which errors are tried again, what is told."""

import json
from pathlib import Path

import pytest
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError

from pipeflow import Config, train
from pipeflow.errors import ConfigError, DataError, WorkerError
from pipeflow.ray.errors import NoRetryOfMistakes, in_words
from pipeflow.ray.train import main, run_folder, train_on_ray
from pipeflow.ray.worker import metrics_of
from tests.small_runs import small_config

NOWHERE = Path("nowhere.yaml").absolute()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0", "--storage", "/s"], "argument --workers: must be a whole number from 1 on, got '0'."),
        (["--placement", "far", "--storage", "/s"], "argument --placement: invalid choice: 'far'"),
        (["--storage", "/s", "--optim.rl", "1"], "unknown option 'optim.rl': did you mean 'optim.lr'?"),
        (["--storage", "/s", "--workers", "4"], "4 workers for 3 parts"),
        (
            ["--config", "nowhere.yaml"],
            f"--config: {NOWHERE} (nowhere.yaml, relative to the current folder): No such file",
        ),
        ([], "run.dir: runs/quickstart is not the same folder for all workers"),
    ],
)
def test_mistyped_options_are_said_at_once(capsys, arguments, message):
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_help_lists_the_options_of_launcher_and_run(capsys):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert "--max-restarts N" in output and "--schedule.local_epochs" in output


def test_the_number_of_workers_must_be_given_where_nothing_tells_it():
    config = Config.from_dict({"model": {"name": "my:flow"}, "parts": {"split": "blocks", "num": None}})
    with pytest.raises(ConfigError, match="give the number of workers"):
        train_on_ray(config, storage="/shared")


@pytest.mark.parametrize(
    ("storage", "run_dir", "folder"),
    [
        ("/shared/runs", "runs/quickstart", "/shared/runs/quickstart"),
        ("/shared/runs", "./runs/cifar10/small", "/shared/runs/cifar10/small"),
        ("/shared", "mine/quickstart", "/shared/mine/quickstart"),
        ("/shared", "runs", "/shared/runs"),
        ("/shared", "/other/run", "/other/run"),
        (None, "/other/runs/run", "/other/runs/run"),
        ("~/storage", "runs/quickstart", "{home}/storage/quickstart"),
    ],
)
def test_the_storage_takes_the_place_of_runs(monkeypatch, tmp_path, storage, run_dir, folder):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(run_folder(storage, run_dir)) == folder.format(home=tmp_path)


def echo(error):
    """The error as another worker that was told of it raises it."""
    error = WorkerError(str(error))
    error.reported = True
    return error


MISTAKE, LOSS = DataError("data.path: there is no such file."), WorkerError("worker 1 was lost.")


@pytest.mark.parametrize("failures", [{1: MISTAKE}, {0: echo(MISTAKE), 1: MISTAKE}])
def test_a_mistake_ends_the_run(failures):
    with pytest.raises(DataError) as raised:
        NoRetryOfMistakes().after_exception(None, failures)
    assert raised.value is MISTAKE


@pytest.mark.parametrize("failures", [{0: RayActorError()}, {0: KeyError("a bug")}, {0: echo(LOSS), 2: LOSS}])
def test_losses_and_what_nobody_foresaw_are_left_to_ray(failures):
    NoRetryOfMistakes().after_exception(None, failures)


def test_what_ray_raises_is_said_in_pipeflows_words():
    assert in_words(ControllerError(MISTAKE)) is MISTAKE
    assert in_words(WorkerGroupError("", {0: echo(LOSS), 1: LOSS, 2: RayActorError()})) is LOSS
    lost = in_words(WorkerGroupError("", {1: RayActorError()}))
    assert isinstance(lost, WorkerError) and "worker 1 was lost" in str(lost) and "same command" in str(lost)
    bug = WorkerGroupError("", {0: KeyError("a bug")})
    assert in_words(bug) is bug


def test_ray_is_told_bits_images_and_bytes_by_link(tmp_path):
    told = []
    summary = train(small_config(tmp_path / "run"), report=told.append).to_json()
    first, *_, end = map(metrics_of, told)
    record = summary["epochs"][0]
    assert first["link_bytes"] == {f"{source}->{target}": sent for source, target, sent in record["bytes"]["latents"]}
    assert first["test_bpd"] == record["test_bpd"] and first["images_per_second"] == 96 / record["seconds"]
    assert list(end["link_bytes"].values()) == summary["bytes"]["forward"] and end["epoch"] == 3
    assert end["test_bpd"] == summary["test_bpd"] and end["bytes"]["total"] == summary["bytes"]["total"]


def test_what_a_pipeline_sends_back_is_a_link_of_its_own(finished_run):
    """Beside the latents, which go the other way."""
    summary = json.loads((finished_run / "summary.json").read_text())
    record = summary["epochs"][-1]
    record["bytes"] |= {"latents": [[0, 1, 700]], "backward": [[1, 0, 600]]}
    assert metrics_of({"event": "epoch", **record})["link_bytes"] == {"0->1": 700, "1->0": 600}
    summary["bytes"] |= {"forward": [900], "backward": [800]}
    assert metrics_of({"event": "end", **summary})["link_bytes"] == {"0->1": 900, "1->0": 800}
