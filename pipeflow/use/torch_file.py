"""Reads the tensors of a file of `torch.save`: the one place where a file of somebody else's is unpickled.

torch's restricted unpickler (`weights_only`) makes tensors and plain containers and calls nothing else.
"""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeflow.errors import CheckpointError
from pipeflow.safe_files import brief, in_full, open_file

MAX_FILE_BYTES = 2_000_000_000
"""Most bytes of a file. The published Glow has 0.18 GB, and 0.53 GB with its optimizer."""

_HOLDERS = ("model", "state_dict")
"""Keys under which a checkpoint of a whole training keeps the model's tensors."""
_WRAPPER = "module."
"""Prefix of torch's data-parallel wrappers before every name."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors by name in a file of `torch.save`: a state dict, or a dict with one under `model` or `state_dict`.

    They are on the CPU. A prefix `module.` of all names is taken off.

    Raises CheckpointError where the file is too large, damaged, holds other objects, or no state dict.
    """
    found = _unpickle(path)
    if isinstance(found, Mapping):
        found = next((found[key] for key in _HOLDERS if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping) or not found:
        raise _no_state_dict(path, f"a {type(found).__name__}")
    for name, value in found.items():
        if not isinstance(name, str):
            raise _no_state_dict(path, f"a dict with the key {type(name).__name__}")
        if type(value) not in (Tensor, nn.Parameter):
            raise _no_state_dict(path, f"a dict in which {brief(name)} is a {type(value).__name__}")
        _check_tensor(path, name, value)
    if all(name.startswith(_WRAPPER) for name in found):
        found = {name.removeprefix(_WRAPPER): value for name, value in found.items()}
    return {name: value.detach() for name, value in found.items()}


def _unpickle(path: Path) -> object:
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        raise CheckpointError(
            f"{path}: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set, so that torch would run code from the file: unset it."
        )
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise CheckpointError(
                    f"{path} has {size:,} bytes, the limit is {MAX_FILE_BYTES:,}: save the state dict alone."
                )
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    if sum(entry.file_size for entry in archive.infolist()) > size:
                        raise CheckpointError(f"{path} is compressed, as torch.save writes none: unpack it first.")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no {in_full(path)}: give a file of torch.save.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None
    except CheckpointError:
        raise
    # A damaged file fails in as many ways as there are records in it, and torch's words advise to trust it.
    except Exception:
        raise CheckpointError(
            f"{path} is damaged, no file of torch.save, or holds a whole model, which is not read because that would run "
            f"code. Where the model's code is, torch.save(model.state_dict(), path) writes a file that can be read."
        ) from None


def _check_tensor(path: Path, name: str, value: Tensor) -> None:
    """Raises CheckpointError for a tensor without memory of its own: one that repeats a value may claim any size."""
    is_plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    if not is_plain or value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise CheckpointError(f"{path}: {brief(name)} does not hold its values one by one: save it as a plain tensor.")


def _no_state_dict(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds {what}: expected is a state dict, names with their tensors, by itself or under "
        f"{' or '.join(map(repr, _HOLDERS))}."
    )
