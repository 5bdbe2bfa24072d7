"""Every dependency has a lower and an upper bound, and the installed versions lie between them."""

import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = [Requirement(each) for extra in PROJECT["optional-dependencies"].values() for each in extra]


@pytest.mark.parametrize("requirement", [*map(Requirement, PROJECT["dependencies"])], ids=lambda each: each.name)
def test_every_dependency_has_both_bounds_and_what_is_installed_lies_between_them(requirement):
    assert sorted(each.operator for each in requirement.specifier) == ["<", ">="]
    # A build that was not released, such as 2.14.1+cpu, counts as the release it is of.
    assert requirement.specifier.contains(version(requirement.name), prereleases=True)


def test_every_extra_has_both_bounds():
    unbounded = [each.name for each in EXTRAS if sorted(bound.operator for bound in each.specifier) != ["<", ">="]]
    assert set(unbounded) == {PROJECT["name"]}, "an extra that contains others"
