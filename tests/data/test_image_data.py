"""`ImageData`: what it takes, what it refuses, and its fingerprint."""

import math

import pytest
import torch

from pipeflow.data import ImageData
from pipeflow.errors import DataError

GOOD = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
FLOATS = torch.linspace(0, 1, 96).reshape(2, 3, 4, 4)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    "train, test, says",
    [
        (GOOD.double(), GOOD, "train images are floats, but whole numbers"),
        (FLOATS, GOOD, "train images are torch.float32, the test images torch.uint8"),
        (GOOD, [GOOD], "test images are list"),
        (GOOD, torch.zeros(2, 3, 4, 5, dtype=torch.uint8), "[3, 4, 5]"),
        (GOOD[:0], GOOD, "at least one image"),
        (GOOD[:, 0, 0, 0], GOOD[:, 0, 0, 0], "[2]"),
        (FLOATS, torch.full((2, 3, 4, 4), math.nan), "test images have 96 values that are NaN or infinite"),
    ],
)
def test_images_that_cannot_be(train, test, says):
    with pytest.raises(DataError) as caught:
        ImageData(train, test, "mine")
    assert says in str(caught.value) and "mine" in str(caught.value) and "give" in str(caught.value).lower()


def test_floats_may_have_a_background_of_one_value():
    images = torch.rand(2, 1, 512, 512, generator=torch.Generator().manual_seed(0))
    images[:, :, :256] = 0
    images[:, :, 256:384, :200] = -1.5
    assert ImageData(images, images, "scans").train is not None


@pytest.mark.parametrize(
    "labels, says",
    [
        ({"train_labels": LABELS}, "the train images have labels, the test images none"),
        ({"test_labels": LABELS}, "the test images have labels, the train images none"),
        ({"train_labels": LABELS, "test_labels": LABELS / 2}, "test labels are float32 [2]; give a whole number"),
        ({"train_labels": LABELS[:1], "test_labels": LABELS}, "train labels are 1; give one for each of the 2 images"),
        ({"train_labels": ["cat", "dog"], "test_labels": LABELS}, "train labels are <U3 [2]; give"),
        ({"train_labels": LABELS - 1, "test_labels": LABELS}, "train labels go from -1 to 0; they must be 0 or more"),
        ({"train_labels": LABELS, "test_labels": LABELS, "classes": ("cat",)}, "go from 0 to 1; they must be 0 to 0"),
        ({"classes": ("cat", "dog")}, "names of classes, but no labels"),
        ({"train_labels": LABELS, "test_labels": LABELS, "classes": ("cat", "cat")}, "two classes have the same name"),
    ],
)
def test_labels_that_cannot_be(labels, says):
    with pytest.raises(DataError) as caught:
        ImageData(GOOD, GOOD, **labels)
    assert says in str(caught.value) and str(caught.value).startswith("python: ")


def test_fingerprint_is_that_of_images_alone():
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
    fingerprint = ImageData(images, images[:1], "mine").fingerprint
    strided = images.transpose(0, 3).contiguous().transpose(0, 3)
    assert ImageData(strided, images[:1].clone(), "moved").fingerprint == fingerprint and len(fingerprint) == 64
    changed = images.clone()
    changed[1, 2, 3, 4] ^= 1
    others = [
        (changed, images[:1]),
        (images, changed[1:]),
        (images, images),
        (images.flip(0), images[:1]),
        (images.reshape(2, 3, 5, 4), images[:1].reshape(1, 3, 5, 4)),
        (torch.cat([images, images[:1]]), images[1:]),
    ]
    found = {ImageData(*pair, "mine").fingerprint for pair in others}
    assert len(found) == len(others) and fingerprint not in found


def test_labels_have_a_fingerprint_of_their_own():
    plain = ImageData(GOOD, GOOD)
    # Written down by a version without labels: a run of that version is resumed, also where its images have labels now.
    assert plain.fingerprint == "7c200ab0c7be45ce3acff0db94b81130c50e1da0604ecd549a3dc4bfae124d70"
    assert plain.labels_fingerprint is None
    labels = [(LABELS, LABELS), (LABELS.flip(0), LABELS), (LABELS, LABELS.flip(0))]
    labelled = [ImageData(GOOD, GOOD, train_labels=train, test_labels=test) for train, test in labels]
    assert {each.fingerprint for each in labelled} == {plain.fingerprint}
    assert len({each.labels_fingerprint for each in labelled}) == 3
    assert ImageData(FLOATS, FLOATS).fingerprint != plain.fingerprint
