"""Images given from Python: arrays, tensors and datasets, with labels and without."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset, random_split

import pipeflow
from pipeflow.data import ImageData
from pipeflow.data.given import as_image_data
from pipeflow.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 6), np.uint8)
LABELS = [0, 1, 2] * 4
TABLE = np.random.default_rng(1).normal(size=(12, 2))


class Listed(Dataset):
    """A dataset of the items of a list."""

    classes = ("ant", "bee", "cat")

    def __init__(self, items: list):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


class Endless(IterableDataset):
    def __iter__(self):
        yield PIXELS[0]


def pictures(pixels=PIXELS) -> list[Image.Image]:
    return [Image.fromarray(each.transpose(1, 2, 0)) for each in pixels]


@pytest.mark.parametrize(
    "part",
    [
        PIXELS,
        PIXELS[::-1].copy()[::-1],
        torch.from_numpy(PIXELS),
        Listed(list(PIXELS)),
        Listed(list(torch.from_numpy(PIXELS))),
        Listed(pictures()),
    ],
    ids=["array", "strided", "tensor", "dataset of arrays", "dataset of tensors", "dataset of pictures"],
)
def test_images_come_as_they_are(part):
    data = as_image_data((part, PIXELS[:5]))
    assert (data.train.numpy() == PIXELS).all() and (data.test.numpy() == PIXELS[:5]).all()
    assert data.notes == () and data.train_labels is None and data.name == "python"


@pytest.mark.parametrize(
    "part, classes",
    [
        ((PIXELS, LABELS), ()),
        ([torch.from_numpy(PIXELS), np.array(LABELS, np.uint8)], ()),
        ((PIXELS, torch.tensor(LABELS, dtype=torch.int32)), ()),
        ((PIXELS, np.array(LABELS)[:, None]), ()),
        (TensorDataset(torch.from_numpy(PIXELS), torch.tensor(LABELS)), ()),
        (Listed(list(zip(pictures(), LABELS))), Listed.classes),
    ],
)
def test_labels_come_with_their_images(part, classes):
    data = as_image_data((part, part))
    assert data.train_labels.dtype == torch.int64 and data.test_labels.tolist() == LABELS
    assert data.classes == classes and (data.test.numpy() == PIXELS).all()


def test_image_data_takes_what_a_pair_does():
    """Arrays, lists of labels and datasets stand in an ImageData, too, which has a name and labels of its own."""
    arrays = ImageData(PIXELS, PIXELS[:4], "mine", train_labels=LABELS, test_labels=np.array(LABELS[:4], np.uint8))
    tensors = ImageData(torch.from_numpy(PIXELS), torch.from_numpy(PIXELS[:4]))
    assert arrays.fingerprint == tensors.fingerprint and arrays.train_labels.tolist() == LABELS
    labelled = Listed(list(zip(pictures(), LABELS)))
    read = ImageData(labelled, labelled)
    assert read.classes == Listed.classes and read.test_labels.tolist() == LABELS
    assert ImageData(labelled, labelled, train_labels=LABELS[::-1], test_labels=LABELS).train_labels[0] == LABELS[-1]
    rounded = ImageData(TABLE, TABLE)
    assert rounded.train.dtype == torch.float32 and "float64" in rounded.notes[0]
    assert rounded.in_memory().notes == rounded.notes


def test_grey_pictures_have_one_channel_and_subsets_are_datasets():
    grey = Listed([Image.fromarray(each[0]) for each in PIXELS])
    train, test = random_split(grey, [8, 4], torch.Generator().manual_seed(0))
    data = as_image_data((train, test))
    assert data.shape == (1, 8, 6) and (data.train[0, 0].numpy() == PIXELS[train.indices[0], 0]).all()


def test_floats_are_not_scaled_and_what_is_rounded_is_said():
    data = as_image_data((TABLE, TABLE.astype(np.float32)))
    assert torch.equal(data.train, torch.from_numpy(TABLE).float()) and torch.equal(data.train, data.test)
    assert data.notes == ("python: the train images are float64 and are rounded to float32.",)
    assert as_image_data((TABLE.astype(np.float16), TABLE.astype(">f4"))).notes == ()


@pytest.mark.parametrize(
    "part, says",
    [
        (PIXELS.transpose(0, 2, 3, 1), r"\[12, 8, 6, 3\], which looks like .*channels\]: give .* images.transpose"),
        (Listed(list(PIXELS.transpose(0, 2, 3, 1))), "looks like .*give"),
        (PIXELS / 255, "8-bit values over 255, as ToTensor makes them.*uint8.*PILToTensor"),
        (Listed(list(torch.from_numpy(PIXELS) / 255)), "8-bit values over 255"),
        (PIXELS.astype(np.float32), "floats, but whole numbers"),
        (
            (np.arange(24_576).reshape(8, 3, 32, 32) % 250 - 120.7) / 63.1,
            r"has 250 values in 8,192 pixels, as 8-bit ones",
        ),
        (PIXELS.astype(np.int64), r"int64; give pixels as uint8, images.astype"),
        (PIXELS > 3, "bool; give uint8"),
        (Listed([]), "empty"),
        (Endless(), "no length"),
        (Listed(["a.png"] * 3), "item 0 is a str; give a tensor, an array or a PIL image"),
        (Listed([PIXELS[0], PIXELS[0, :, :3]]), r"item 1 is torch.uint8 \[3, 3, 6\], item 0 torch.uint8 \[3, 8, 6\]"),
        (Listed([PIXELS[0], (PIXELS[0], 1)]), "1 of 2 items have labels"),
        (Listed([(PIXELS[0], {"box": 1})]), r"label of item 0 is a dict; give \(image, whole number\)"),
        (Listed([Image.new("RGBA", (6, 8))]), "mode RGBA; give L or RGB"),
        ((PIXELS, [0.5] * 12), r"labels are float64 \[12\]; give a whole number for each image"),
        ((PIXELS, LABELS[:3]), "labels are 3; give one for each of the 12"),
    ],
)
def test_what_a_flow_would_learn_wrongly_is_refused(part, says):
    with pytest.raises(DataError, match=f"python: the train .*{says}"):
        as_image_data((part, part))


@pytest.mark.parametrize("given", [PIXELS, (PIXELS,), (PIXELS, "a"), ((), ()), "train"])
def test_what_stands_for_no_images(given):
    with pytest.raises(DataError, match=r"python: a .* does not stand for images; give an ImageData, or a pair"):
        as_image_data(given)


def test_a_run_and_its_evaluation_take_pairs(tmp_path):
    config = pipeflow.Config.from_dict({
        "run": {"dir": str(tmp_path / "run"), "device": "cpu", "figures": False},
        "model": {"num_blocks": 1, "num_steps": 2, "width": 4},
        "parts": {"num": 2, "split": "balanced"},
        "optim": {"batch_size": 4},
        "schedule": {"local_epochs": 1, "finetune_epochs": 0},
    })  # fmt: skip
    given = Listed(list(zip(pictures(), LABELS))), (PIXELS[:4], LABELS[:4])
    summary = pipeflow.train(config, data=given)
    assert summary.data == ImageData(*map(torch.from_numpy, (PIXELS, PIXELS[:4]))).fingerprint
    assert pipeflow.evaluate(tmp_path / "run", "cpu", data=given).test_bpd == summary.test_bpd


def test_as_many_of_the_given_images_as_the_options_ask_for(tmp_path):
    def config(**data: int) -> pipeflow.Config:
        return pipeflow.Config.from_dict({
            "run": {"dir": str(tmp_path / "run"), "device": "cpu", "figures": False},
            "model": {"num_blocks": 1, "num_steps": 1, "width": 4},
            "parts": {"num": 1},
            "optim": {"batch_size": 4},
            "schedule": {"local_epochs": 1, "finetune_epochs": 0},
            "data": data,
        })  # fmt: skip

    given = (PIXELS, LABELS), (PIXELS[:6], LABELS[:6])
    summary = pipeflow.train(config(num_train=8, num_test=4), data=given)
    assert summary.epochs[0].images == 8
    assert pipeflow.evaluate(tmp_path / "run", "cpu", data=given).num_images == 4
    with pytest.raises(DataError, match="data.num_train is 13, but there are only 12 images"):
        pipeflow.train(config(num_train=13), data=given)
