"""Whether a checkpoint is one of this run: a checksum tells of damage, not of who wrote it."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from pipeflow.errors import CheckpointError
from pipeflow.flow import Part
from pipeflow.rundir.records import EPOCH, Each, IfThere, Optional, count, finite, number, text, whole, wrong

_MOMENTS = {"adam": {"exp_avg", "exp_avg_sq"}, "adamax": {"exp_avg", "exp_inf"}}
"""Names of what each optimizer keeps for a parameter."""


def _stage(value: object) -> bool:
    return value in ("local", "whole") if isinstance(value, str) else False


def _counts(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(whole, value))


def _float(value: object) -> bool:
    """A manifest has numbers that are not finite as JSON's `NaN`, not as words."""
    return number(value) and not isinstance(value, str)


_SECONDS = ("local", "gather", "finetune", "eval", "checkpoint", "total")

_CARRIED = {"seconds": count, "bytes": EPOCH["bytes"]}
"""Of an epoch that was interrupted."""

MANIFEST = {
    "epoch": whole,
    "stage": _stage,
    "cuts": IfThere([text]),
    "config": IfThere({"parts": lambda value: isinstance(value, dict)}),
    "counts": Each(_counts),
    "history": [
        {**EPOCH, "train_loss": Each(_float), "test_bpd": Optional(_float), "exit_bpd": Optional([_float])},
    ],
    "state": {
        "seconds": dict.fromkeys(_SECONDS, count),
        "bytes": Each(count),
        "macs": count,
        "initial_bpd": finite,
        "exit_bpd": Optional([_float]),
    },
    "log_position": whole,
    "position": IfThere(
        {"step": whole, "losses": [Each([_float])], "replicas": IfThere(whole), "carried": Optional(_CARRIED)}
    ),
}


def check_manifest(manifest: dict, folder: Path) -> None:
    """Raises CheckpointError where a manifest holds something else than a run writes into one."""
    found = wrong(manifest, MANIFEST)
    if found is None:
        epochs = [record["epoch"] for record in manifest["history"]]
        if len(epochs) != manifest["epoch"] or epochs != list(range(len(epochs))):
            found = f"its history has other epochs than the {manifest['epoch']} that are done"
    if found is not None:
        raise CheckpointError(
            f"checkpoint {folder}: manifest.json is not of a run of pipeflow: {found}. Remove this folder to go on from an "
            f"older checkpoint, or start anew with --run.resume never."
        )


def check_tensors(tensors: dict[str, Tensor], manifest: dict, parts: Sequence[Part], optimizer: str) -> None:
    """Raises CheckpointError where what a checkpoint holds of these parts is not what they have, tensor by tensor.

    Of a head that is new there is nothing; of everything that `manifest` counts updates of, all.
    """
    where = f"checkpoint {manifest['folder']}"
    for part in parts:
        parameters, state = part.global_parameters(), part.global_state()
        for name, expected in state.items():
            is_known = any(name.startswith(f"{owner}.") for owner in part.owners() if owner in manifest["counts"])
            if f"model/{name}" not in tensors and is_known:
                raise CheckpointError(f"{where}: has no {name}, which this flow has: it is of another model.")
            moments = {key for key in _MOMENTS[optimizer] if f"optim.{key}/{name}" in tensors}
            if moments and moments != _MOMENTS[optimizer]:
                raise CheckpointError(f"{where}: the optimizer's state of {name} is not whole: it is of another run.")
            for section in ("model", "ema", *(f"optim.{key}" for key in moments)):
                found = tensors.get(f"{section}/{name}")
                if found is not None and (found.shape != expected.shape or found.dtype != expected.dtype):
                    raise CheckpointError(
                        f"{where}: {section}/{name} is {found.dtype} {list(found.shape)}, this flow has {expected.dtype} "
                        f"{list(expected.shape)}: it is of another model."
                    )
        for key in tensors:
            section, _, name = key.partition("/")
            known = {"model": state, "ema": parameters}.get(section, parameters)
            if any(name.startswith(f"{owner}.") for owner in part.owners()) and (
                name not in known or section.removeprefix("optim.") not in {"model", "ema", *_MOMENTS[optimizer]}
            ):
                raise CheckpointError(f"{where}: {key} is no tensor of this flow: it is of another model.")
