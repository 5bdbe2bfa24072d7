"""Training given the label on replicas, in a pipeline, data-parallel, and after a re-cut."""

import shutil

import pytest
import torch

from pipeflow import train
from pipeflow.plan.plan import make_plan
from pipeflow.rundir.reading import read_run
from tests.small_runs import assert_same_tensors, checkpoint_tensors, train_in_turn
from tests.training.labelled_runs import config_of

pytestmark = pytest.mark.slow

CLOSE = 1e-5
"""By how much all parameters may differ, of their norm, where sums are taken in another order."""

TWO_PARTS = {"split": ["blocks.1.squeeze"]}
REPLICATED = {**TWO_PARTS, "replicas": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the runs by number of workers; of 4, two for each of two parts."""
    folders = {num: tmp_path_factory.mktemp(f"workers{num}") for num in (1, 2, 3, 4)}
    for name in ("pipeline", "ddp"):
        train(config_of(folders[1], name, parts=TWO_PARTS))
    train_in_turn(2, [config_of(folders[2], "pipeline"), config_of(folders[2], "ddp", parts=TWO_PARTS)])
    train_in_turn(3, [config_of(folders[3], "pipeline")])
    train_in_turn(4, [config_of(folders[4], name, parts=REPLICATED) for name in ("plain", "pipeline")])
    train(config_of(folders[1], "plain", parts=TWO_PARTS))
    return folders


def assert_close(ours, theirs):
    """The models of the last checkpoints, up to the order of sums."""
    models = []
    for run in (ours, theirs):
        tensors = checkpoint_tensors(run)
        newest = [name for name in sorted(tensors) if name.startswith("epoch-000003 model/")]
        models.append(torch.cat([tensors[name].double().flatten() for name in newest]))
    assert (models[0] - models[1]).norm() < CLOSE * models[1].norm()


def test_how_parts_are_spread_does_not_change_a_pipeline(runs):
    assert_same_tensors(runs[2] / "pipeline", runs[3] / "pipeline")


@pytest.mark.parametrize("num, name", [(2, "ddp"), (4, "plain"), (4, "pipeline")])
def test_workers_that_share_a_batch_learn_what_one_does(runs, num, name):
    assert_close(runs[num] / name, runs[1] / name)


@pytest.mark.parametrize(
    "num, name, receivers", [(4, "plain", 2), (4, "pipeline", 2), (3, "pipeline", 1), (2, "ddp", 1)]
)
def test_labels_are_sent_once_to_each_worker_behind_the_first_part(runs, num, name, receivers):
    parts = {2: TWO_PARTS, 3: {}, 4: REPLICATED}[num]
    sent = read_run(runs[num] / name).summary.bytes.labels
    assert sent == receivers * 8 * (96 + 40) == make_plan(config_of(runs[num], name, parts=parts)).label_bytes


def test_a_run_goes_on_with_other_cuts_and_workers(runs, tmp_path):
    copy = shutil.copytree(runs[1] / "pipeline", tmp_path / "pipeline")
    for path in [copy / "summary.json", copy / "model.safetensors"]:
        path.unlink()
    for epoch in (2, 3):
        shutil.rmtree(copy / f"checkpoints/epoch-00000{epoch}")
    assert "resuming after 1 epoch" in train_in_turn(3, [config_of(tmp_path, "pipeline")])
    assert read_run(copy).summary.num_epochs == 3
