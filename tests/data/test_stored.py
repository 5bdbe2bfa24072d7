"""Images on the disk: indexed as those in memory, to the same bits of training; refused where they are damaged."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeflow.config import Config
from pipeflow.data import Batches, ImageData, StoredImages, load_data
from pipeflow.data.stored import CHUNK_BYTES, in_chunks, subset
from pipeflow.errors import ConfigError, DataError
from tests.config.errors import refused
from tests.data.test_images import encode, write_folder


def noise(num: int, *shape: int) -> torch.Tensor:
    return torch.randint(256, (num, *shape), generator=torch.Generator().manual_seed(num)).to(torch.uint8)


def stored(path: Path, images: torch.Tensor) -> StoredImages:
    np.save(path, images.numpy())
    return StoredImages(path)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_they_are_indexed_as_a_tensor_is(kind, tmp_path):
    images = noise(50, 3, 4, 5).to(kind)
    disk = stored(tmp_path / "images.npy", images)
    about = ("shape", "ndim", "dtype", "nbytes")
    assert [getattr(disk, name) for name in about] == [getattr(images, name) for name in about]
    assert len(disk) == 50 and disk.numel() == images.numel() and disk.is_floating_point() == images.is_floating_point()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    for chosen in (slice(None), slice(7, 20), slice(-3, None), slice(30, 10), order, order[:0], order.sort()[0][5:9]):
        assert torch.equal(disk[chosen], images[chosen])
        assert torch.equal(subset(disk, chosen)[:], images[chosen]) and len(subset(disk, chosen)) == len(images[chosen])
        assert torch.equal(disk.subset(order)[chosen], images[order][chosen])
    with pytest.raises(IndexError):
        disk[torch.tensor([50])]
    disk[:3].zero_()
    assert torch.equal(disk[:], images), "what was read is a copy"


def test_chunks_are_of_some_megabytes_and_are_all_there_is(tmp_path):
    images = noise(5, 3, 1000, 1000)
    for each in (images, stored(tmp_path / "images.npy", images)):
        chunks = list(in_chunks(each))
        assert all(chunk.nbytes <= CHUNK_BYTES for chunk in chunks) and torch.equal(torch.cat(chunks), images)


def test_a_file_that_takes_the_name_changes_nothing_and_one_that_is_cut_short_is_an_error(tmp_path):
    path = tmp_path / "images.npy"
    images = noise(9, 2, 2)
    disk = stored(path, images)
    stored(tmp_path / "others.npy", images + 1)
    os.replace(tmp_path / "others.npy", path)
    assert torch.equal(disk[:], images)
    others = StoredImages(path)
    os.truncate(path, 140)
    with pytest.raises(DataError, match=r"images\.npy was cut short while it was read"):
        others[:]


@pytest.mark.parametrize(
    "content, says",
    [
        (b"no array", "no .npy file"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "no .npy file"),
        (np.zeros((3, 4)), "float64 of shape"),
        (np.zeros((3, 4), ">f4"), ">f4 of shape"),
        (np.zeros(3, np.uint8), "shape .3."),
        (np.zeros((0, 3), np.uint8), "shape .0, 3."),
        (np.asfortranarray(np.zeros((3, 4), np.uint8)), "in Fortran order"),
        (np.array([[None]]), "object of shape"),
    ],
)
def test_files_that_hold_something_else(content, says, tmp_path):
    path = tmp_path / "images.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content, allow_pickle=True)
    with pytest.raises(DataError, match=says) as caught:
        StoredImages(path)
    assert str(path) in str(caught.value)
    with pytest.raises(DataError, match=r"gone.npy cannot be read \(No such file"):
        StoredImages(tmp_path / "gone.npy")


@pytest.fixture
def folder(tmp_path) -> str:
    """Forty training and twelve test images."""
    paths = [f"train/{i:02}.png" for i in range(40)] + [f"test/{i:02}.png" for i in range(12)]
    pixels = zip(paths, noise(52, 4, 5, 3).numpy())
    return write_folder(tmp_path / "source", {path: encode(image) for path, image in pixels})


def batches_of(data: ImageData) -> list[torch.Tensor]:
    batches = Batches(data, seed=3, batch_size=8, flip=True)
    training = [batches.train(epoch, step) for epoch in range(2) for step in range(batches.steps_per_epoch)]
    return [batches.initial(), *training, *batches.test_batches(None, 5), *batches.test_batches(7, 4)]


@pytest.mark.parametrize("num", [{}, {"num_train": 30, "num_test": 7}], ids=["all", "some"])
def test_batches_from_the_disk_are_those_from_memory_to_the_last_bit(num, folder, options):
    memory = load_data(options(path=folder, **num))
    for _ in range(2):  # decoded, then from the cache
        disk = load_data(options(path=folder, memory="1 kB", **num))
        assert isinstance(memory.train, torch.Tensor) and isinstance(disk.train, StoredImages)
        assert disk.fingerprint == memory.fingerprint
        assert all(map(torch.equal, batches_of(disk), batches_of(memory)))
    assert memory.notes == () and len(disk.notes) == 1
    assert disk.notes[0].endswith("of images are more than data.memory (1 kB): they are read from the disk.")


def test_the_bound_is_on_the_images_that_are_taken(folder, options):
    taken = 60 * (30 + 7)
    for memory, kind in ((str(taken), torch.Tensor), (str(taken - 1), StoredImages)):
        data = load_data(options(path=folder, num_train=30, num_test=7, memory=memory))
        assert data.nbytes == taken and isinstance(data.train, kind) and isinstance(data.test, kind)


def test_image_data_looks_at_floats_on_the_disk(tmp_path):
    images = noise(9, 2, 2) / 7
    assert ImageData(stored(tmp_path / "good.npy", images), images).fingerprint == ImageData(images, images).fingerprint
    images[8, 1, 1] = torch.nan
    with pytest.raises(DataError, match="train images have 1 values that are NaN"):
        ImageData(stored(tmp_path / "bad.npy", images), images[:2])


def test_what_cannot_be_kept_on_the_disk_must_fit_into_memory(folder, options, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError) as caught:
        load_data(options(path=folder, memory="3 kB"))
    for words in (
        "52 images of 5x4",
        "take 3.12 kB",
        "data.memory (3 kB)",
        "Not a directory",
        "XDG_CACHE_HOME",
        "raise",
    ):
        assert words in str(caught.value)
    data = load_data(options(path=folder, memory="3120"))
    assert isinstance(data.train, torch.Tensor) and len(data.notes) == 1
    assert "decoded at every start" in data.notes[0] and str(tmp_path / "file") in data.notes[0]


def test_amounts_of_memory_that_are_none():
    for value, num in (("2000", 2000), ("1.5 GiB", 1.5 * 2**30), ("100 MB", 10**8)):
        assert Config.from_dict({"data": {"memory": value}}).data.memory_bytes == num
    for value in ("much", "0 GB", "-1 GB", "2 Gbit/s"):
        assert refused("data.memory", value).startswith("data.memory: expected '80 GB', '16 GiB' or a number of bytes")
    with pytest.raises(ConfigError, match="quote it"):
        Config.from_dict({"data": {"memory": 2000000000}})
