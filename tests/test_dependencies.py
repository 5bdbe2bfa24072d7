"""Every dependency has a lower and an upper bound, and what is installed here lies between them."""

import importlib.util
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [Requirement(each) for each in PROJECT["dependencies"]]


@pytest.fixture(scope="module")
def lowest():
    """The script that makes the constraints of `make test-lowest`."""
    spec = importlib.util.spec_from_file_location("lowest", ROOT / ".ci" / "lowest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_lowest_versions_are_pinned(lowest):
    pinned = lowest.constraints(PROJECT)
    for requirement in REQUIREMENTS:
        (pin,) = [pin for pin in pinned if pin.split("==")[0] == requirement.name]
        assert f">={pin.split('==')[1]}" in str(requirement.specifier).split(",")


@pytest.mark.parametrize("requirement", ["numpy", "numpy>=1", "numpy<2", "numpy==1.26", "numpy>=1,<2,!=1.5"])
def test_a_dependency_without_bounds_is_an_error(lowest, requirement):
    with pytest.raises(ValueError, match="has no bounds"):
        lowest.lowest(requirement)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_what_is_installed_is_allowed(requirement):
    # A build that was not released, such as 2.14.1+cpu, counts as the release it is of.
    assert requirement.specifier.contains(version(requirement.name), prereleases=True)
