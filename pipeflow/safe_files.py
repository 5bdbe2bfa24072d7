"""Reading of files that somebody else may have written: regular files only, of bounded size, as plain data.

A pipe in the place of a file would block a reader forever, and a few kilobytes of JSON can nest deeper than the stack.
"""

import errno
import io
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Hashable
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

MAX_JSON_BYTES = 64_000_000
"""Most bytes of a summary, a log or a manifest: some 40,000 epochs. Its Python objects take twenty times as much memory."""

MAX_YAML_BYTES = 256_000
"""Most bytes of a YAML file. The longest of pipeflow have some kilobytes, and PyYAML takes seconds for a megabyte."""

MAX_DEPTH = 50
"""Most levels of lists and mappings in JSON; files written by pipeflow have five."""

_MAX_SHOWN = 200


def open_file(path: str | Path) -> io.BufferedReader:
    """Opens a regular file for reading. Raises OSError if there is none, for example if there is a pipe."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        number, why = (errno.EISDIR, os.strerror(errno.EISDIR)) if stat.S_ISDIR(mode) else (errno.EINVAL, "Not a file")
        raise OSError(number, why, str(path))
    return os.fdopen(handle, "rb")


def read_bytes(path: str | Path, limit: int) -> bytes:
    """A regular file's content. Raises OSError if the file has more than `limit` bytes, without reading the rest."""
    with open_file(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"Larger than {limit:,} bytes, the limit for such a file", str(path))
    return content


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError if it is not JSON, or nested more than `MAX_DEPTH` deep."""
    too_deep = ValueError(f"nested more than {MAX_DEPTH} deep")
    try:
        value = json.loads(text)
    except RecursionError:
        raise too_deep from None
    level = [value]
    for _ in range(MAX_DEPTH):
        mappings = (each.values() for each in level if isinstance(each, dict))
        lists = (each for each in level if isinstance(each, list))
        level = list(chain.from_iterable(chain(mappings, lists)))
    if level:
        raise too_deep
    return value


def read_json(path: str | Path) -> Any:
    """The value of a JSON file. Raises OSError if it cannot be read, ValueError as `parse_json` does."""
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
    """The value of a YAML file. Raises OSError if it cannot be read, ValueError if it is not YAML of plain values."""
    content = read_bytes(path, MAX_YAML_BYTES)
    try:
        return yaml.load(content.decode(), _Loader)
    # PyYAML's constructors raise many kinds of errors: `!!int ''` an IndexError, `!!bool x` a KeyError.
    except Exception as error:
        raise ValueError(brief(" ".join(str(error).split()), str)) from None


def brief(value: Any, show: Callable[[Any], str] = repr) -> str:
    """A value as a message shows it, shortened if it is long."""
    try:
        text = show(value)
    except ValueError:  # Python refuses to print an integer of thousands of digits
        return f"{type(value).__name__} of thousands of digits"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def in_full(path: str | Path) -> str:
    """A path where nothing is, as a message shows it: a relative one by itself does not say where was looked for it."""
    full = printable(os.path.abspath(path))
    return full if os.path.isabs(path) else f"{full} ({printable(str(path))}, relative to the current folder)"


def printable(name: str) -> str:
    """A file's name as a message shows it, with control characters, which might move a cursor, written out."""
    return name if name.isprintable() else brief(name)
