"""Arrays in .npz and .npy files: what is in them, what is missing, and what was made to do harm."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeflow.config import Config
from pipeflow.data import StoredImages, load_data
from pipeflow.data.array_files import holds_arrays
from pipeflow.errors import DataError
from pipeflow.plan.plan import make_plan
from tests.hostile.test_hostile_images import Evil, as_npy

TRAIN = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8), np.uint8)
TEST = TRAIN[:4] ^ 1
LABELS = np.arange(12) % 3
TABLE = np.random.default_rng(1).normal(size=(12, 2))


def write(path: Path, form: str, **arrays: np.ndarray) -> str:
    """Writes arrays as an .npz, packed or not, or as a folder of .npy files; the path."""
    if form == "folder":
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
        return str(path)
    {"npz": np.savez, "packed": np.savez_compressed}[form](path.with_suffix(".npz"), **arrays)
    return str(path.with_suffix(".npz"))


def rows(images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_a_folder_of_images_is_one_whatever_else_lies_in_it(tmp_path):
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train.npy", TRAIN)
    assert not holds_arrays(str(tmp_path)) and holds_arrays(str(tmp_path / "train.npy"))


@pytest.mark.parametrize("form", ["npz", "packed", "folder"])
@pytest.mark.parametrize("keras", [False, True])
def test_arrays_of_images_and_labels(form, keras, options, tmp_path):
    arrays = {"train": TRAIN, "test": TEST, "train_labels": LABELS, "test_labels": LABELS[:4].astype(np.uint8)}
    if keras and form != "folder":
        arrays = dict(zip(("x_train", "x_test", "y_train", "y_test"), arrays.values()))
    path = write(tmp_path / "a", form, **arrays)
    data = load_data(options(path=path))
    assert rows(data.train) == {each.tobytes() for each in TRAIN} and rows(data.test) == {
        each.tobytes() for each in TEST
    }
    where = {each.tobytes(): label for each, label in zip(TRAIN, LABELS)}
    assert [where[each.numpy().tobytes()] for each in data.train] == data.train_labels.tolist()
    assert data.notes == () and data.classes == () and len(data.test_labels) == 4


def test_one_array_with_a_part_held_out(options, tmp_path):
    np.save(tmp_path / "a.npy", TRAIN)
    data = load_data(options(path=str(tmp_path / "a.npy"), test_fraction=0.25))
    assert len(data.train) == 9 and rows(data.train) | rows(data.test) == {each.tobytes() for each in TRAIN}
    with pytest.raises(DataError, match=r"a.npy has no test images.*set data.test_fraction"):
        load_data(options(path=str(tmp_path / "a.npy")))
    both = write(tmp_path / "b", "npz", train=TRAIN, test=TEST)
    with pytest.raises(DataError, match=r"test_fraction is 0.5, but .*b.npz has test images of its own"):
        load_data(options(path=both, test_fraction=0.5))


@pytest.mark.parametrize("form", ["npz", "folder"])
def test_a_table_of_float64_is_rounded_which_is_said(form, options, tmp_path):
    data = load_data(options(path=write(tmp_path / "a", form, train=np.asfortranarray(TABLE), test=TABLE[:3])))
    assert rows(data.train) == {each.tobytes() for each in TABLE.astype(np.float32)}
    assert len(data.notes) == 2 and data.notes[0].endswith("the train images are float64 and are rounded to float32.")


@pytest.mark.parametrize("form", ["npz", "folder"])
def test_grey_images_get_a_channel_which_is_said(form, options, tmp_path):
    path = write(tmp_path / "a", form, train=TRAIN[:, 0], test=TEST[:, 0], more=LABELS)
    data = load_data(options(path=path, num_train=5))
    assert data.train.shape == (5, 1, 8, 8) and rows(data.train) <= {each[0].tobytes() for each in TRAIN}
    assert len(data.notes) == 2 and any("get one channel: [1, 8, 8]" in note for note in data.notes)
    assert any("not read: more" in note for note in data.notes)
    config = Config.from_dict({"data": {"name": "images", "path": path, "pad": 16}, "optim": {"batch_size": 4}})
    assert make_plan(config).flow.shape == (1, 16, 16)


def test_what_does_not_fit_into_memory_stays_on_the_disk(options, tmp_path):
    folder = write(tmp_path / "a", "folder", train=TRAIN[:, 0], test=TEST[:, 0])
    data = load_data(options(path=folder, memory="500"))
    assert isinstance(data.train, StoredImages) and data.train.shape == (12, 1, 8, 8)
    assert rows(data.train[:]) == {each[0].tobytes() for each in TRAIN}
    with pytest.raises(DataError, match=r"train.npy in .* more than data.memory \(500 bytes\): raise that, or write"):
        load_data(options(path=write(tmp_path / "b", "npz", train=TRAIN, test=TEST), memory="500"))


@pytest.mark.parametrize(
    "arrays, says",
    [
        ({"images": TRAIN}, "has no array train .*, but images"),
        ({"train": TRAIN.transpose(0, 2, 3, 1), "test": TEST.transpose(0, 2, 3, 1)}, "looks like .*width, channels"),
        ({"train": TRAIN.astype(np.int64), "test": TEST}, "train images are torch.int64; give pixels as uint8"),
        ({"train": TRAIN / 255, "test": TEST / 255}, "8-bit values over 255"),
        ({"train": TRAIN, "test": TEST, "train_labels": LABELS}, "train images have labels, the test images none"),
        ({"train": TRAIN, "test": TEST, "train_labels": LABELS / 7}, "train labels are float64"),
        ({"train": TRAIN, "test": TEST[:, :, :4]}, r"shape \[3, 8, 8\], a test image \[3, 4, 8\]"),
        ({"train": np.array(["a"]), "test": TEST}, "train.npy in .* it has <U1, which are not numbers"),
    ],
)  # fmt: skip
def test_arrays_that_cannot_be_learned(arrays, says, options, tmp_path):
    with pytest.raises(DataError, match=says):
        load_data(options(path=write(tmp_path / "a", "npz", **arrays)))


@pytest.mark.parametrize("option", ["channels", "resize", "crop"])
def test_arrays_are_not_converted(option, options, tmp_path):
    path = write(tmp_path / "a", "npz", train=TRAIN, test=TEST)
    with pytest.raises(DataError, match=rf"data.{option} is 1, but .*a.npz has arrays, which are taken as they are"):
        load_data(options(path=path, **{option: 1}))


GOOD = as_npy(TRAIN)
HUGE = GOOD.replace(b"(12, 3, 8, 8), }" + b" " * 24, f"({2**40}, {2**40}, 8, 8), }}".encode().ljust(40))
MEMBERS = {
    "a pickle": (as_npy(np.array([Evil()])), "which are not numbers"),
    "a shape of 2^80": (HUGE, "its size is not the one that its header gives"),
    "cut short": (GOOD[:-1], "its size is not the one that its header gives"),
    "no array": (b"hello", "no header of an array"),
    "nothing": (b"", "no header of an array"),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_arrays_that_were_made_to_do_harm(case, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, says = MEMBERS[case]
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.npy", content)
        archive.writestr("test.npy", as_npy(TEST))
    (tmp_path / "b").mkdir()
    (tmp_path / "b/train.npy").write_bytes(content)
    (tmp_path / "b/test.npy").write_bytes(as_npy(TEST))
    before = sorted(os.listdir())
    for path in ("a.npz", "b"):
        with pytest.raises(DataError, match=f"data.path: .*(train.npy|{tmp_path}).*"):
            load_data(options(path=path))
    with pytest.raises(DataError, match=says):
        load_data(options(path="a.npz"))
    assert sorted(os.listdir()) == before


def test_files_that_are_none(options, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no zip")
    for name, says in (("a.npz", "is no .npz file that can be read"), ("gone.npz", "there is no .*gone.npz; name an")):
        with pytest.raises(DataError, match=says):
            load_data(options(path=str(tmp_path / name)))
