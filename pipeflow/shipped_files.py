"""Files that come along with the package: configurations, which `--config NAME` reads, and recipes that start clusters.

In the repository they are in the folders configs/ and launch/; the wheel has them inside the package (`pyproject.toml`).
"""

import difflib
from pathlib import Path

from pipeflow.errors import ConfigError

_PACKAGE = Path(__file__).parent


def configurations() -> dict[str, Path]:
    """The file of each configuration, by its name: `cifar10/across3_lr1e-5`."""
    return _by_name(_folder("configs", "configs"), "*.yaml")


def recipes() -> dict[str, Path]:
    """The file of each recipe, by its name: `slurm`."""
    return _by_name(_folder("recipes", "launch"), "*.sh")


def text_of(name: str, files: dict[str, Path], kind: str, command: str) -> str:
    """The text of one of `files`. Raises ConfigError for a name that none of them has.

    kind: such as 'a recipe', and command: the one that lists them, for the message.
    """
    if name not in files:
        raise ConfigError(f"{name!r} is not the name of {kind}: {advice(name, files, command)}")
    return files[name].read_text()


def list_of(files: dict[str, Path]) -> str:
    """A line for each file: its name, and what it says of itself in its first line that begins with '# '."""
    width = max(map(len, files))
    return "\n".join(f"{name:{width}}  {_title(path)}" for name, path in files.items())


def advice(name: str, names: dict[str, Path], command: str) -> str:
    """The end of a message about an unknown name: those that may have been meant, or the command that lists all."""
    wanted = name.removeprefix("configs/").removesuffix(".yaml").removesuffix(".sh")
    same = [each for each in names if wanted in (each, each.rpartition("/")[2])]
    close = same or difflib.get_close_matches(wanted, names, n=3)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"`{command}` lists them."


def _folder(in_wheel: str, in_repository: str) -> Path:
    inside = _PACKAGE / in_wheel
    return inside if inside.is_dir() else _PACKAGE.parent / in_repository


def _by_name(folder: Path, pattern: str) -> dict[str, Path]:
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob(pattern))}


def _title(path: Path) -> str:
    with path.open() as lines:
        return next((line[2:].strip() for line in lines if line.startswith("# ")), "")
