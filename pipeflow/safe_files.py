"""Files that somebody else may have written: what is read of them has a bound, and is data.

A pipe in the place of a file would be waited for without end; a few kilobytes of JSON can nest deeper than the stack.
"""

import errno
import io
import json
import os
import stat
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

MAX_JSON_BYTES = 64_000_000
"""Of a summary, a log or a manifest: some 40,000 epochs. As objects of Python it takes twenty times as much memory."""

MAX_YAML_BYTES = 256_000
"""Of a configuration or of machines, the longest of which have some kilobytes: reading YAML takes seconds a megabyte."""

MAX_DEPTH = 50
"""Of lists and mappings in each other; what pipeflow writes has five."""

_MAX_SHOWN = 200


def open_file(path: str | Path) -> io.BufferedReader:
    """Opens a regular file for reading. Raises OSError where there is none, such as at a pipe."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        number, why = (errno.EISDIR, os.strerror(errno.EISDIR)) if stat.S_ISDIR(mode) else (errno.EINVAL, "Not a file")
        raise OSError(number, why, str(path))
    return os.fdopen(handle, "rb")


def read_bytes(path: str | Path, limit: int) -> bytes:
    """A regular file's content. Raises OSError where it has more than `limit` bytes, which are all that is read."""
    with open_file(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"Larger than {limit:,} bytes, the limit for such a file", str(path))
    return content


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds. Raises ValueError where it is none, or nested more than `MAX_DEPTH` deep."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
        ]
    if level:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    return value


def read_json(path: str | Path) -> Any:
    """What a JSON file holds. Raises OSError where it cannot be read, ValueError where it is no JSON."""
    return parse_json(read_bytes(path, MAX_JSON_BYTES))


class _Loader(yaml.SafeLoader):
    """`yaml.safe_load`, but a key that is written twice is an error, and so is a reference to another place.

    The last of two equal keys would win unseen. References to references double the size with each line.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("a reference (*name) is not followed: write out what it stands for")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            ((key, _),) = Counter(key.value for key, _ in node.value).most_common(1)
            raise yaml.YAMLError(f"{key!r} is written twice (line {node.start_mark.line + 1} and after)")
        return mapping


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds. Raises OSError where it cannot be read, ValueError where it is no YAML of plain values."""
    content = read_bytes(path, MAX_YAML_BYTES)
    try:
        return yaml.load(content.decode(), _Loader)
    # PyYAML's constructors raise many kinds of errors: `!!int ''` an IndexError, `!!bool x` a KeyError.
    except Exception as error:
        raise ValueError(brief(" ".join(str(error).split()), str)) from None


def brief(value: Any, show: Any = repr) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = show(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"{type(value).__name__} of thousands of digits"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def printable(name: str) -> str:
    """A file's name for a message; one that would move a terminal's cursor with its characters written out."""
    return name if name.isprintable() else brief(name)
