"""Image folders as people have them: classes, no test images, several sizes."""

import numpy as np
import pytest
from PIL import Image

from pipeflow.config import Config
from pipeflow.data import load_data
from pipeflow.data.image_files import read_images
from pipeflow.data.image_folder import measure_images
from pipeflow.data.picture import Conversion
from pipeflow.errors import ConfigError, DataError
from tests.data.test_images import encode, write_folder, write_zip


def value_of(images) -> list[int]:
    """The values of images of one value."""
    return images[:, 0, 0, 0].tolist()


def plain(*paths: str) -> dict[str, bytes]:
    """Grey images of 4x4, whose values are their places among the paths."""
    return {path: encode(np.full((4, 4), index, np.uint8)) for index, path in enumerate(paths)}


def test_folders_in_train_are_classes(options, tmp_path):
    files = plain("train/dog/0.png", "train/dog/old/1.png", "train/ant/2.png", "test/ant/3.png", "test/dog/4.png")
    data = load_data(options(path=write_zip(tmp_path / "a.zip", files)))
    assert data.classes == ("ant", "dog") and data.notes == ()
    assert dict(zip(value_of(data.train), data.train_labels.tolist())) == {0: 1, 1: 1, 2: 0}
    assert dict(zip(value_of(data.test), data.test_labels.tolist())) == {3: 0, 4: 1}


@pytest.mark.parametrize(
    "paths, note",
    [
        (("train/0.png", "test/2.png"), ()),
        (
            ("train/dog/0.png", "train/1.png", "test/dog/2.png"),
            ("The images get no labels: train/1.png lies in no folder of a class, as others do.",),
        ),
        (
            ("train/dog/0.png", "test/2.png"),
            ("The images get no labels: test/2.png lies in no folder of a class, as others do.",),
        ),
        (
            ("train/dog/0.png", "test/dog/1.png", "test/cat/2.png"),
            ("The images get no labels: the class cat is in test/ and not in train/.",),
        ),
    ],
)
def test_classes_are_for_all_images_or_for_none(paths, note, options, tmp_path):
    data = load_data(options(path=write_folder(tmp_path / "a", plain(*paths))))
    assert data.train_labels is None and data.classes == () and data.notes == note


@pytest.mark.parametrize("front", ["train/", "", "photos/", "photos/train/"])
def test_a_part_is_held_out_where_there_are_no_test_images(front, options, tmp_path):
    files = plain(*(f"{front}{'ant' if i % 2 else 'bee'}/{i:02}.png" for i in range(20)))
    asked = options(path=write_zip(tmp_path / "a.zip", files), test_fraction=0.25)
    data = load_data(asked)
    assert len(data.test) == 5 and sorted(value_of(data.train) + value_of(data.test)) == list(range(20))
    assert data.notes == ("data.test_fraction 0.25: 5 of 20 are held out as test images, the same in every run.",)
    for images, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        assert [data.classes[label] for label in labels] == ["ant" if i % 2 else "bee" for i in value_of(images)]
    again = load_data(options(path=write_folder(tmp_path / "b", files), test_fraction=0.25))
    assert again.fingerprint == data.fingerprint
    assert measure_images(asked) == ((1, 4, 4), 15, 5)


def test_a_fraction_needs_images_to_take_from_and_none_that_are_there(options, tmp_path):
    both = write_folder(tmp_path / "both", plain("train/0.png", "test/1.png"))
    alone = write_folder(tmp_path / "alone", plain("train/0.png", "train/1.png"))
    nowhere = write_folder(tmp_path / "nowhere", plain("cat/0.png", "dog/1.png"))
    for path, fraction, says in (
        (both, 0.5, r"test_fraction is 0.5, but .*both has 1 images in test/: set it to null"),
        (alone, 0.9, r"test_fraction is 0.9: of 2 images none would be left to train on; lower it"),
        (alone, None, r"alone has no images in test/ .*set data.test_fraction to hold some of train/ out"),
        (nowhere, None, r"nowhere has no images in train/ .*set data.test_fraction to hold some of them out"),
    ):
        with pytest.raises(DataError, match=says):
            load_data(options(path=path, test_fraction=fraction))


@pytest.mark.parametrize("option", [{"test_fraction": 0.1}, {"resize": 8}, {"crop": 8}])
def test_options_of_image_files_are_for_image_files(option):
    with pytest.raises(ConfigError, match=f"data.{next(iter(option))}: data.name 'cifar10' has its .*null"):
        Config.from_dict({"data": {"name": "cifar10", **option}})


SIZES = {"train/a.png": (90, 64), "train/b.png": (70, 130), "test/c.png": (64, 64)}
PHOTOS = {
    path: np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8) for path, size in SIZES.items()
}  # fmt: skip


@pytest.fixture
def photos(tmp_path) -> str:
    """Images of several sizes."""
    return write_folder(tmp_path / "photos", {path: encode(pixels) for path, pixels in PHOTOS.items()})


def fitted(pixels: np.ndarray, size: int) -> np.ndarray:
    """The middle of an image resized by Pillow, [3, size, size]."""
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    resized = Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    return np.asarray(resized)[top : top + size, left : left + size].transpose(2, 0, 1)


def test_images_of_several_sizes_are_resized_and_cropped(photos, options, tmp_path, cache):
    asked = options(path=photos, resize=32, crop=32)
    for _ in range(2):  # from the files, then from the cache
        data = load_data(asked)
        expected = {fitted(PHOTOS[f"train/{name}.png"], 32).tobytes() for name in "ab"}
        assert {image.numpy().tobytes() for image in data.train} == expected
        assert (data.test[0].numpy() == fitted(PHOTOS["test/c.png"], 32)).all()
        assert [note.split(":")[0] for note in data.notes] == ["data.resize", "data.crop"]
    assert measure_images(asked) == ((3, 32, 32), 2, 1)
    other = load_data(options(path=photos, resize=48, crop=32))
    assert other.fingerprint != data.fingerprint and len(list(cache.rglob("*.npy"))) == 2
    (read,) = read_images([f"{photos}/train/a.png"], (3, 32, 32), Conversion(None, 32, 32))
    assert read.numpy().tobytes() in expected


def test_a_crop_alone_keeps_pixels(photos, options):
    data = load_data(options(path=photos, crop=64))
    assert data.shape == (3, 64, 64) and (data.test[0].numpy() == PHOTOS["test/c.png"].transpose(2, 0, 1)).all()
    assert len(data.notes) == 1 and "the middle 64x64" in data.notes[0]


@pytest.mark.parametrize(
    "asked, says",
    [
        ({}, r"train/b.png in .* is 130x70 .*, but train/a.png is 64x90 .*: set data.resize and data.crop"),
        ({"resize": 32}, r"train/b.png .* is 59x32 .*, but train/a.png is 32x45 .*: set data.resize and data.crop"),
        ({"crop": 80}, r"train/a.png in .* is 64x90 \(width x height\), smaller than data.crop 80; lower it, or set"),
        ({"resize": 4096}, r"train/a.png in .* has more than 16,000,000 pixels"),
    ],
)
def test_sizes_that_do_not_become_one(asked, says, photos, options):
    with pytest.raises(DataError, match=says):
        load_data(options(path=photos, **asked))
