"""Every dependency has a lower and an upper bound, and the installed versions lie between them."""

import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import pipeflow

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
NEEDED = [Requirement(each) for each in PROJECT["dependencies"]]
EXTRAS = [Requirement(each) for extra in PROJECT["optional-dependencies"].values() for each in extra]


@pytest.mark.parametrize("requirement", NEEDED + EXTRAS, ids=str)
def test_every_dependency_has_a_lower_and_an_upper_bound(requirement):
    if requirement.name != PROJECT["name"]:  # an extra that contains others
        assert sorted(each.operator for each in requirement.specifier) == ["<", ">="]


@pytest.mark.parametrize("requirement", NEEDED, ids=lambda requirement: requirement.name)
def test_installed_versions_are_allowed(requirement):
    # A build that was not released, such as 2.14.1+cpu, counts as the release it is of.
    assert requirement.specifier.contains(version(requirement.name), prereleases=True)


def test_the_wheel_contains_licence_types_and_configurations():
    """The name on PyPI is not `pipeflow`, which is another project."""
    assert PROJECT["name"] == "pipeflow-flows" and PROJECT["license-files"] == ["LICENSE"]
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
    package = Path(pipeflow.__file__).parent
    data = {
        path
        for pattern in PYPROJECT["tool"]["setuptools"]["package-data"]["pipeflow"]
        for path in package.glob(pattern)
    }
    configs = {package / "configs" / path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert data == configs | {package / "py.typed"}
