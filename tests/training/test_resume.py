"""A run that was interrupted ends as one that never was, also with other workers."""

import json
import shutil

import pytest
import torch
import yaml
from PIL import Image

from pipeflow import ImageData, train
from pipeflow.errors import CheckpointError
from pipeflow.rundir.folder import RunFolder
from pipeflow.rundir.reading import read_config, read_run
from tests.small_runs import (
    assert_same_tensors,
    learned,
    small_config,
    train_in_turn,
)
from tests.training.interrupted import SCHEDULE, as_if_interrupted_after


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that was never interrupted, with a checkpoint after each of its 5 epochs."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(small_config(folder, schedule=SCHEDULE))
    return folder


@pytest.mark.parametrize("epoch", [1, 2, 3, 4, 5])
def test_resuming_after_any_epoch_gives_the_same_run(undisturbed, tmp_path, epoch):
    folder = as_if_interrupted_after(epoch, undisturbed, tmp_path / "run")
    train(small_config(folder, schedule=SCHEDULE))
    assert_same_tensors(undisturbed, folder)
    assert learned(undisturbed) == learned(folder)
    log = (folder / "metrics.jsonl").read_text()
    assert log.count('"event": "epoch"') == 5 and log.count('"event": "start"') == 1
    assert not list(folder.glob("checkpoints/*.partial"))


def files_of(folder):
    """Every file of a run but its lock, with its time and content."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.lock"
    }


def test_a_finished_run_is_left_as_it_is(undisturbed, capsys):
    before = files_of(undisturbed)
    summary = train(small_config(undisturbed, schedule=SCHEDULE))
    assert summary.num_epochs == 5
    told = capsys.readouterr().out
    assert "has ended: nothing to do" in told and "--run.dir" in told and "--schedule.finetune_epochs 3" in told
    train(small_config(undisturbed, schedule=SCHEDULE, run={"heartbeat_timeout_s": 7}))
    assert files_of(undisturbed) == before


@pytest.mark.parametrize(
    "sections, words",
    [
        ({"optim": {"lr": 5e-3, "clip_norm": 1.0}}, "optim.lr: 0.005, was 0.002; optim.clip_norm: 1.0, was 0.0"),
        ({"schedule": {**SCHEDULE, "local_epochs": 4}}, "--schedule.local_epochs 3 --schedule.finetune_epochs 3"),
        ({"schedule": {**SCHEDULE, "local_epochs": 2}}, "fewer than the 5"),
        ({"schedule": {**SCHEDULE, "local_epochs": 2, "finetune_epochs": 4}}, "set it to 3 or more"),
        ({"model": {"width": 16}, "run": {"seed": 1}}, "run.seed: is 1, .* and model.width: is 16, "),
        ({"data": {"num_train": 64}}, "num_train 64, num_test 40.* are not those that the run"),
    ],
)
def test_a_finished_run_is_not_made_another_one(undisturbed, sections, words):
    before = files_of(undisturbed)
    with pytest.raises(CheckpointError, match=words):
        train(small_config(undisturbed, **{"schedule": SCHEDULE, **sections}))
    assert files_of(undisturbed) == before


def test_advice_for_more_epochs_can_be_taken_and_the_change_is_kept(undisturbed, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    longer = {"schedule": {**SCHEDULE, "finetune_epochs": 3}, "optim": {"lr": 1e-3}}
    summary = train(small_config(folder, **longer))
    assert [record.phase for record in summary.epochs[5:]] == ["finetune"]
    told = capsys.readouterr().out
    assert "resuming after 5 epochs from epoch-000005: 1 end-to-end epoch to come" in told
    assert "from here on optim.lr: 0.001, was 0.002" in told
    changed = {"schedule.finetune_epochs": [2, 3], "optim.lr": [0.002, 0.001]}
    assert yaml.safe_load((folder / "config_history.yaml").read_text()) == [{"epoch": 5, "step": 0, "options": changed}]
    assert read_config(folder).optim.lr == 1e-3
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (event,) = [event for event in log if event["event"] == "resume"]
    assert (event["epoch"], event["changed"]) == (5, changed)
    assert [change.options for change in read_run(folder).summary.changes] == [
        {name: tuple(values) for name, values in changed.items()}
    ]


def test_what_has_travelled_and_the_exits_stay_where_a_single_process_trains_further(tmp_path):
    about = {"schedule": {"local_epochs": 1, "finetune_epochs": 0}}
    train_in_turn(2, [small_config(tmp_path / "run", **about)])
    before = read_run(tmp_path / "run").summary
    summary = train(small_config(tmp_path / "run", schedule={"local_epochs": 1, "finetune_epochs": 1}))
    assert summary.wire and read_run(tmp_path / "run").summary.wire
    assert summary.exit_bpd == pytest.approx(before.exit_bpd)


def test_a_run_is_read_back_whatever_its_folder_is_called(tmp_path):
    folder = tmp_path / "試み\u30001"
    train(small_config(folder, schedule={"local_epochs": 1, "finetune_epochs": 0}))
    assert "試み" in read_run(folder).summary.name


def test_a_change_is_not_lost_with_the_sitting_that_was_killed_after_it(undisturbed, tmp_path):
    """The sitting had written config.yaml but no checkpoint: what is trained with it is trained by the next one."""
    folder = as_if_interrupted_after(3, undisturbed, tmp_path / "run")
    changed = small_config(folder, schedule=SCHEDULE, optim={"lr": 1e-3})
    RunFolder(changed).write_config()
    summary = train(changed)
    assert [(change.epoch, dict(change.options)) for change in summary.changes] == [(3, {"optim.lr": (0.002, 0.001)})]


def test_without_its_model_a_run_has_not_ended(undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    (folder / "model.safetensors").unlink()
    train(small_config(folder, schedule=SCHEDULE))
    assert_same_tensors(undisturbed, folder)
    assert learned(undisturbed) == learned(folder)


def images(seed):
    made = torch.randint(0, 256, (136, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return made[:96], made[96:]


@pytest.mark.parametrize("epochs", [1, 2], ids=["ended", "to be continued"])
def test_a_run_knows_its_images_by_their_contents(tmp_path, epochs):
    """Other images of the same name, and the same ones under another."""
    first, more = ({"schedule": {"local_epochs": 1, "finetune_epochs": num}} for num in (0, epochs - 1))
    train(small_config(tmp_path / "run", **first), data=ImageData(*images(0), "mine"))
    before = files_of(tmp_path / "run")
    with pytest.raises(CheckpointError, match="these images .* are not those that the run"):
        train(small_config(tmp_path / "run", **more), data=ImageData(*images(1), "mine"))
    assert files_of(tmp_path / "run") == before
    assert train(small_config(tmp_path / "run", **more), data=ImageData(*images(0), "other")).num_epochs == epochs


@pytest.mark.parametrize("more", [{}, {"finetune_epochs": 1}], ids=["ended", "to be continued"])
def test_images_that_were_moved_are_the_same_images(tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    for part, each in zip(("train", "test"), images(0)):
        folder = tmp_path / "here" / part
        folder.mkdir(parents=True)
        for index, pixels in enumerate(each[:64, :, :8, :8]):
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{index:02}.png")
    about = {
        "data": {"name": "images", "path": "here", "num_train": None, "num_test": None},
        "model": {"num_blocks": 1},
    }
    about |= {"parts": {"num": 2}, "schedule": {"local_epochs": 1, "finetune_epochs": 0}, "optim": {"batch_size": 32}}
    train(small_config(tmp_path / "run", **about))
    (tmp_path / "here").rename(tmp_path / "there")
    moved = {**about, "data": {**about["data"], "path": str(tmp_path / "there")}}
    train(small_config(tmp_path / "run", **{**moved, "schedule": {**about["schedule"], **more}}))
    (tmp_path / "there/train/00.png").unlink()
    with pytest.raises(CheckpointError, match=f"{tmp_path}/there.* are not those"):
        train(small_config(tmp_path / "run", **{**moved, "schedule": {**about["schedule"], **more}}))


def test_a_layers_own_initialisation_is_not_repeated_on_resume(tmp_path, monkeypatch):
    """A layer without a flag of its own, like ActNorm's, must not be set anew from data in the middle of a run."""
    (tmp_path / "careless.py").write_text(
        "import torch\n"
        "from pipeflow import Layer\n"
        "class Centre(Layer):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.bias = torch.nn.Parameter(torch.zeros(3, 1, 1))\n"
        "    def forward(self, x):\n"
        "        return x + self.bias, x.new_zeros(len(x))\n"
        "    def initialize(self, x):\n"
        "        self.bias.data.copy_(-x.mean(dim=(0, 2, 3)).view(3, 1, 1))\n"
        "def layers(config, shape):\n"
        "    return [Centre(), Centre()]\n"
    )
    monkeypatch.chdir(tmp_path)
    own = {"model": {"name": "careless:layers"}, "parts": {"split": "layers.1", "num": 2}}
    train(small_config(tmp_path / "whole", **own, schedule=SCHEDULE))
    for epoch in (1, 4):
        folder = as_if_interrupted_after(epoch, tmp_path / "whole", tmp_path / f"resumed{epoch}")
        train(small_config(folder, **own, schedule=SCHEDULE))
        assert_same_tensors(tmp_path / "whole", folder)


DATA_PARALLEL = {"schedule": {"local_epochs": 1, "finetune_epochs": 3}, "finetune": {"parallel": "ddp"}}


@pytest.fixture(scope="module")
def data_parallel(tmp_path_factory):
    """Of three workers, so that the order of summation matters: one run, and one of the schedule of `undisturbed`."""
    folder = tmp_path_factory.mktemp("data_parallel")
    as_undisturbed = {"schedule": SCHEDULE, "finetune": {"parallel": "ddp"}}
    train_in_turn(3, [small_config(folder / "run", **DATA_PARALLEL), small_config(folder / "other", **as_undisturbed)])
    return folder


@pytest.mark.slow
def test_data_parallel_workers_resume_to_the_same_bits(data_parallel, tmp_path):
    """At the gather, and in the middle of the fine-tuning."""
    run = data_parallel / "run"
    folders = [as_if_interrupted_after(epoch, run, tmp_path / f"after{epoch}") for epoch in (1, 2)]
    train_in_turn(3, [small_config(folder, **DATA_PARALLEL) for folder in folders])
    for folder in folders:
        assert_same_tensors(run, folder)


@pytest.mark.slow
def test_data_parallel_fine_tuning_is_fine_tuning_up_to_rounding(undisturbed, data_parallel):
    """Workers with unequal shares of the batch, against one process with all of it."""
    folder = data_parallel / "other"
    alone, together = learned(undisturbed), learned(folder)
    assert together["test_bpd"] == pytest.approx(alone["test_bpd"], abs=2e-5)
    assert together[4]["train_loss"]["flow"] == pytest.approx(alone[4]["train_loss"]["flow"], abs=2e-5)
    summary = json.loads((folder / "summary.json").read_text())
    values = sum(part["parameters"] for part in summary["parts"]) + 2 * 24  # and the prior
    assert summary["bytes"]["finetune"] == 2 * 3 * (2 * 2 * values * 4)  # images are loaded by each worker
