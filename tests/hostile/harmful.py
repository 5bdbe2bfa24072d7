"""Files made to do harm that several kinds of input can be."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file


def write(path: Path, text: str) -> None:
    path.write_bytes(text.encode(errors="surrogateescape"))


def change_json(path: Path, change: Callable[[dict], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def change_tensors(path: Path, change: Callable[[dict], object], **metadata: str) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


LAUGHS = "\n".join(["a0: &a0 lol", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))])
YAMLS = {
    "call": ("run: !!python/object/apply:os.mkdir [was_run]", "python/object"),
    "billion laughs": (LAUGHS, "write out what it stands for"),
    "a megabyte of nesting": ("[" * 1_000_000, "Larger than 256,000 bytes"),
    "nesting": ("[" * 5_000, "recursion"),
    "five thousand keys": ("\n".join(f"{i:x}:" for i in range(5_000)), "unknown section"),
    "a long key": (f"? {'k' * 200_000}\n: 1", "unknown section"),
    "a long number": (f"optim: {{batch_size: 0x{'f' * 200_000}}}", "optim.batch_size"),
    "a zero byte": ('run: {dir: "a\\0b"}', "run.dir"),
    "so long a turn": (f"schedule: {{alternate_every: '{'9' * 5000} steps'}}", "schedule.alternate_every"),
    "so many names": (f"parts: {{split: [{', '.join(['x'] * 2_000)}], num: 3}}", "parts.num"),
}  # fmt: skip


TEXTS = {
    "nesting": "[" * 5_000_000,
    "nesting of objects": '{"a":' * 1_000_000,
    "nesting that closes": "[" * 400 + "]" * 400,
    "no object": "[]",
    "null": "null",
    "no text": "\udcff\udcfe",
    "nothing in it": "{}",
}


def header(tensors: dict, size: int | None = None, content: bytes = b"") -> bytes:
    """A safetensors file whose header says what it is told to."""
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + content


def tensor(shape: list, dtype: str = "F32", end: int = 0) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


SAFETENSORS = {
    "a header of 2^60 bytes": header({}, size=2**60),
    "a header of 2^64 - 1 bytes": header({}, size=2**64 - 1),
    "a shape of 2^80": header({"a": tensor([2**40, 2**40])}),
    "offsets beyond the file": header({"a": tensor([2**30], end=2**32)}),
    "offsets that run backwards": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, content=bytes(4)),
    "a dtype of no kind": header({"a": tensor([1], "PICKLE", 4)}, content=bytes(4)),
    "a dtype that torch has not": header({"a": tensor([2], "F4", 1)}, content=bytes(1)),
    "empty": b"",
    "a pickle": b"\x80\x04\x95cposix\nmkdir\n",
}  # fmt: skip


NO_FILES = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "10 GB": lambda path: sparse(path, 10**10),
}
"""Makers of what can stand in the place of a file."""

STEP = "blocks.0.steps.0.actnorm.bias"
"""A parameter of the flow."""
