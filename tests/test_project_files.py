"""Files about the project say the same things: the version, the versions of Python, the licence, the commands of make."""

import re
import tomllib
from pathlib import Path

import yaml

import pipeflow

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_version_has_one_place():
    assert PROJECT["dynamic"] == ["version"] and "version" not in CITATION
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == pipeflow.__version__


def test_what_the_package_says_it_runs_on_is_what_is_tested():
    classified = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    assert classified == WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={classified[0]}"


def test_the_licence_is_the_same_everywhere():
    assert PROJECT["license"] == CITATION["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()


def test_every_command_of_make_that_is_named_is_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = "\n".join(
        (ROOT / name).read_text() for name in ("CONTRIBUTING.md", "README.md", ".github/workflows/ci.yml")
    )
    named = re.findall(r"(?:`|run: )make ([a-z -]+)(?=[`\n])", texts)
    assert {name for names in named for name in names.split()} <= targets and len(named) > 8
