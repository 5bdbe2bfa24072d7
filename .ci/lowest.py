"""Prints pip constraints that pin each dependency of pyproject.toml to the lowest version it allows.

python .ci/lowest.py > constraints.txt
"""

import re
import tomllib
from pathlib import Path


def lowest(requirement: str) -> str:
    """`numpy>=1.26,<3` as `numpy==1.26`. Raises ValueError where a requirement has no lower or no upper bound."""
    found = re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[[a-z,]+\])?>=([0-9.]+),<[0-9.]+", requirement)
    if found is None:
        raise ValueError(f"pyproject.toml: {requirement!r} has no bounds: write it as name>=lowest,<next")
    return f"{found[1]}=={found[2]}"


def constraints(project: dict) -> list[str]:
    """Of all dependencies and extras; an extra may name another one of ours, which pins nothing."""
    extras = project["optional-dependencies"].values()
    requirements = [*project["dependencies"], *(each for extra in extras for each in extra)]
    return [lowest(each) for each in requirements if not each.startswith(f"{project['name']}[")]


if __name__ == "__main__":
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    print(*constraints(tomllib.loads(pyproject.read_text())["project"]), sep="\n")
