"""Which files of a folder or a zip are training and test images, and which classes their folders name."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pipeflow.data.image_source import LAYOUT, SUFFIXES, Member
from pipeflow.errors import DataError


@dataclass(frozen=True)
class Layout:
    """The files of a source."""

    train: Sequence[Member]
    """Training images, sorted by path."""
    test: Sequence[Member]
    """Test images, sorted by path; none where `data.test_fraction` is to hold some of the others out."""
    train_classes: Sequence[str]
    """For each training image the folder in train/ that it lies in, at any depth; empty where one lies in none."""
    test_classes: Sequence[str]
    loose: str | None
    """A file that lies in no folder of a class, where others do."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, sorted: none unless each image lies in one, and test images in those of train/."""
        names = set(self.train_classes)
        has_labels = not self.test or (self.test_classes and names >= set(self.test_classes))
        return tuple(sorted(names)) if has_labels else ()

    @property
    def notes(self) -> list[str]:
        """Lines for the user about folders that are no classes."""
        if self.loose is not None:
            return [f"The images get no labels: {self.loose} lies in no folder of a class, as others do."]
        unknown = sorted(set(self.test_classes) - set(self.train_classes)) if self.train_classes else []
        return [f"The images get no labels: the class {each} is in test/ and not in train/." for each in unknown[:1]]


def lay_out(members: Sequence[Member], source: str, test_fraction: float | None) -> Layout:
    """Finds training and test images: those in train/ and test/, both of which may lie in one common folder.

    Without test/ all images are training images, in train/ or anywhere.

    Args:
        source: path, for messages.
        test_fraction: `data.test_fraction`, which is for sources without test/.

    Raises DataError where there are no images of a kind, or test images and a fraction too.
    """
    members = sorted(members, key=lambda member: member.path)
    tops = {member.path.split("/")[0] for member in members}
    front = "" if len(tops) != 1 or tops & {"train", "test"} else f"{tops.pop()}/"
    train, test = ([m for m in members if m.path.startswith(f"{front}{part}/")] for part in ("train", "test"))
    if test and test_fraction is not None:
        raise DataError(
            f"data.test_fraction is {test_fraction:g}, but {source} has {len(test):,} images in test/: set it to null, or "
            f"take them away."
        )
    in_train = f"{front}train/"
    if not train and not test and test_fraction is not None:
        train, in_train = members, front
    for part, found in (("train", train), ("test", test)):
        if not found and not (part == "test" and test_fraction is not None):
            suffixes = ", ".join(SUFFIXES)
            fix = f", or set data.test_fraction to hold some of {'train/' if train else 'them'} out" if not test else ""
            raise DataError(f"data.path: {source} has no images in {part}/ ({suffixes}); it must be {LAYOUT}{fix}.")
    train_classes, loose_train = _classes(train, in_train)
    test_classes, loose_test = _classes(test, f"{front}test/")
    has_classes = len(loose_train) < len(train) or len(loose_test) < len(test)
    loose = next(iter(loose_train + loose_test), None) if has_classes else None
    return Layout(train, test, train_classes, test_classes, loose)


def _classes(members: Sequence[Member], front: str) -> tuple[list[str], list[str]]:
    """For each image the folder that it lies in, none if one lies in none; and the paths of those that do."""
    names, loose = [], []
    for member in members:
        first, is_inside, _ = member.path.removeprefix(front).partition("/")
        if is_inside:
            names.append(sys.intern(first))  # there may be millions of images
        else:
            loose.append(member.path)
    return ([] if loose else names), loose
