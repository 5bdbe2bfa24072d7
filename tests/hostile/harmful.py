"""Files made to do harm that several kinds of input can be."""

import json
import struct
from collections.abc import Callable
from pathlib import Path


def write(path: Path, text: str) -> None:
    path.write_bytes(text.encode(errors="surrogateescape"))


def change_json(path: Path, change: Callable[[dict], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def laughs(levels: int = 30) -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    return "\n".join(lines + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)])


YAMLS = {
    "call": ("run: !!python/object/apply:os.mkdir [was_run]", "python/object"),
    "billion laughs": (laughs(), "write out what it stands for"),
    "refers to itself": ("run: &a [*a]", "write out what it stands for"),
    "50 MB of nesting": ("[" * 50_000_000, "Larger than 256,000 bytes"),
    "nesting": ("[" * 250_000, "recursion"),
    "a key twice": ("optim:\n  lr: 1\n  lr: 2", "'lr' is written twice"),
    "a section twice": ("optim: {lr: 1}\noptim: {lr: 2}", "'optim' is written twice"),
    "sixty thousand keys": ("\n".join(f"{i:x}:" for i in range(35_000)), "unknown section"),
    "a long key": (f"? {'k' * 200_000}\n: 1", "unknown section"),
    "a long value": (f"optim: {{lr: {'v' * 200_000}}}", "optim.lr"),
    "a long number": (f"optim: {{batch_size: 0x{'f' * 200_000}}}", "optim.batch_size"),
    "a long decimal": (f"optim: {{batch_size: {'9' * 200_000}}}", "is not YAML"),
    "a number of base 60": (f"optim: {{lr: 1{':01' * 80_000}}}", ""),
    "a number beyond floats": (f"optim: {{lr: 0x{'f' * 1000}}}", "optim.lr"),
    "a date that is none": ("run: 2026-99-99", "is not YAML"),
    "an empty number": ("run: !!int ''", "is not YAML"),
    "a set": ("run: !!set {a, b}", "run:"),
    "a text as mapping": ("run: !!map x", "is not YAML"),
    "a zero byte": ('run: {dir: "a\\0b"}', "run.dir"),
    "so many blocks": ("model: {num_blocks: 1000000000}", "model.num_blocks: must be 16 or less"),
    "so many steps": ("model: {num_steps: 1000000000}", "model.num_steps: must be 1,024 or less"),
    "so wide": ("model: {width: 1000000000}", "model.width: must be 16,384 or less"),
    "so many parts": ("parts: {split: balanced, num: 1000000000}", "parts.num: must be"),
    "so many epochs": ("schedule: {local_epochs: 1000000000}", "schedule.local_epochs: must be"),
    "so many images": ("data: {num_train: 1000000000000}", "data.num_train: must be"),
    "so long a turn": (f"schedule: {{alternate_every: '{'9' * 5000} steps'}}", "schedule.alternate_every"),
    "so many names": (f"parts: {{split: [{', '.join(['x'] * 60_000)}], num: 3}}", "parts.num"),
}  # fmt: skip


TEXTS = {
    "nesting": "[" * 5_000_000,
    "nesting of objects": '{"a":' * 1_000_000,
    "nesting that closes": "[" * 400 + "]" * 400,
    "no object": "[]",
    "null": "null",
    "empty": "",
    "no text": "\udcff\udcfe",
    "a number": "9" * 100_000,
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
    "a header longer than the file": header({}, size=90_000_000),
    "a header that nests": struct.pack("<Q", 90_000) + b"[" * 90_000,
    "a shape of 2^80": header({"a": tensor([2**40, 2**40])}),
    "a shape of 2^62": header({"a": tensor([2**62])}),
    "a negative shape": header({"a": tensor([-1])}),
    "offsets beyond the file": header({"a": tensor([2**30], end=2**32)}),
    "offsets that run backwards": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, content=bytes(4)),
    "a hole between tensors": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, content=bytes(8)),
    "a dtype of no kind": header({"a": tensor([1], "PICKLE", 4)}, content=bytes(4)),
    "a dtype that torch has not": header({"a": tensor([2], "F4", 1)}, content=bytes(1)),
    "empty": b"",
    "a pickle": b"\x80\x04\x95cposix\nmkdir\n",
    "a torch file": b"PK\x03\x04",
}  # fmt: skip


STEP = "blocks.0.steps.0.actnorm.bias"
"""A parameter of the flow."""
