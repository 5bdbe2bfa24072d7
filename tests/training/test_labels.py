"""Training given the label: it learns, goes on where it was stopped, and says what labels cannot be."""

import itertools

import pytest
import torch

import pipeflow
from pipeflow import ImageData, train
from pipeflow.errors import CheckpointError, ConfigError, DataError, Preempted
from tests.labelled import images
from tests.small_runs import checkpoint_tensors, small_config
from tests.training.labelled_runs import config_of


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one worker."""
    folder = tmp_path_factory.mktemp("alone")
    train(config_of(folder, "plain"))
    return folder / "plain"


def test_labels_tell_of_their_images(tmp_path):
    """The classes' means are far apart, which the right labels give away and others do not."""
    schedule = {"mode": "end_to_end", "local_epochs": 8, "finetune_epochs": 0}
    sections = {"schedule": schedule, "optim": {"lr": 0.02}, "memory": {"micro_batches": 3}}
    model = {"num_blocks": 1, "num_steps": 1, "width": 4, "num_classes": 3}
    right, wrong = (
        train(small_config(tmp_path / data.__name__, model=model, **sections), data=data()).test_bpd
        for data in (images, shuffled)
    )
    assert right < wrong - 0.05


def test_a_run_that_was_stopped_inside_an_epoch_goes_on_to_the_same_end(alone, tmp_path):
    told, asked = [], itertools.count()
    config = config_of(tmp_path, "plain")
    with pytest.raises(Preempted, match="epoch-000001-step-000001"):
        train(config, report=told.append, stop=lambda: bool(told) and next(asked) == 1)
    shuffled = config_of(tmp_path, "plain", data={"name": "tests.training.test_labels:shuffled"})
    with pytest.raises(CheckpointError, match="but their labels differ"):
        train(shuffled)
    train(config)
    whole, resumed = checkpoint_tensors(alone), checkpoint_tensors(tmp_path / "plain")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def shuffled(options: object = None) -> ImageData:
    """The same images with other labels."""
    return images(options, shuffled=True)


LABELLED = images()


@pytest.mark.parametrize(
    "num_classes, data, error, says",
    [
        (
            3,
            ImageData(LABELLED.train, LABELLED.test, "bare"),
            DataError,
            "takes labels of 3 classes, but the images have",
        ),
        (2, LABELLED, ConfigError, r"2 classes, but the images have 3 \(dark, grey, light\): set it to 3"),
        (
            3,
            ImageData(LABELLED.train, LABELLED.test, "of one", (), LABELLED.train_labels + 1, LABELLED.test_labels + 1),
            DataError,
            "count from 0, but the images' labels are from 1 to 3: subtract 1 from each",
        ),
        (4, LABELLED, ConfigError, r"4 classes, but the images have 3 \(dark, grey, light\): set it to 3"),
    ],
)
def test_labels_that_do_not_fit_the_flow(tmp_path, num_classes, data, error, says):
    with pytest.raises(error, match=f"^model.num_classes: .*{says}"):
        train(small_config(tmp_path, model={"num_classes": num_classes}), data=data)


def test_a_flow_of_ones_own_takes_the_labels_that_are_asked_for(tmp_path):
    flow = pipeflow.glow((3, 8, 8), 2, 2, 8)
    with pytest.raises(ConfigError, match=r"model.num_classes: 3, but the flow takes no labels.*ClassPrior"):
        train(small_config(tmp_path, model={"num_classes": 3}), flow=flow, data=images())
