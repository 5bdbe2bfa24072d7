"""Options of a run that is resumed: which differ from the run's own, which of them may, and what is left to do."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from pipeflow.config import Config
from pipeflow.config.loading import show
from pipeflow.errors import CheckpointError
from pipeflow.flow.part import is_head
from pipeflow.rundir.records import Change, GivenLabel, Manifest
from pipeflow.safe_files import in_full
from pipeflow.units import count_text

_OF_HEADS = ("parts.head_width", "parts.head_depth")
"""Options that autoregressive heads alone have."""
_OF_THE_COMMAND = ("run.dir", "run.resume")
"""Options that say where the run is and how it is begun, and are no properties of it."""

_FIXED = ("model", "data.flip", "data.pad", "run.seed", "optim.name", "optim.batch_size")
"""Sections and options that a run keeps for as long as it lives."""

_DATA = "data"
"""The section that may change as long as the images stay the same, which their fingerprint tells."""

Options = Mapping[str, Mapping[str, object]]


def differing_options(old: Options, config: Config) -> dict[str, tuple[object, object]]:
    """Options that differ from the run's own, with their values before and now. An option that is newer than the run had
    its default."""
    defaults = Config().to_dict()
    heads = {config.parts.head, old.get("parts", {}).get("head", config.parts.head)}
    without_effect = () if "autoregressive" in heads else _OF_HEADS
    return {
        f"{section}.{name}": (before, now)
        for section, options in config.to_dict().items()
        for name, now in options.items()
        if (before := old.get(section, {}).get(name, defaults[section][name])) != now
        and f"{section}.{name}" not in (*_OF_THE_COMMAND, *without_effect)
    }


def in_words(differing: Mapping[str, tuple[object, object]]) -> str:
    """The options that differ, one beside the other: `optim.lr: 0.005, was 0.002; ...`."""
    return "; ".join(f"{name}: {_show(now)}, was {_show(before)}" for name, (before, now) in differing.items())


def check_options(path: Path, differing: Mapping[str, tuple[object, object]], same_images: bool) -> None:
    """Raises CheckpointError where options differ that a run keeps.

    path: of the run's folder. same_images: whether a fingerprint will tell if the images are the run's.
    """
    fixed = _FIXED if same_images else (*_FIXED, _DATA)
    wrong = {name: values for name, values in differing.items() if name in fixed or name.partition(".")[0] in fixed}
    if wrong:
        listed = ", and ".join(
            f"{name}: is {now!r}, but the run in {path} has {before!r}" for name, (before, now) in wrong.items()
        )
        raise CheckpointError(
            f"{listed}. Set it back to resume that run, or choose another run.dir (or --run.resume never)."
        )


def with_its_heads(manifest: Manifest, config: Config) -> Manifest:
    """The manifest, without its heads where they are of another kind than the run has from here on: those begin anew."""
    differing = differing_options(manifest.config or config.to_dict(), config)
    if not differing.keys() & {"parts.head", *_OF_HEADS}:
        return manifest
    counts = {owner: count for owner, count in manifest.counts.items() if not is_head(owner)}
    return dataclasses.replace(manifest, counts=counts)


def check_images(path: Path, manifest: Manifest | None, config: Config, fingerprint: str) -> None:
    """Raises CheckpointError where the images are not those that the run was trained on, whatever their name."""
    if manifest is not None and manifest.data not in (None, fingerprint):
        about = config.data
        images = about.name if about.path is None else f"{about.name}, {in_full(about.path)}"
        images = "given from Python" if about.name == "python" else images
        taken = "".join(f", {name} {num}" for name, num in _taken(config).items())
        raise CheckpointError(
            f"data: these images ({images}{taken}) are not those that the run in {path} was trained on. Give the same "
            f"images, wherever they are now, or choose another run.dir (or --run.resume never)."
        )


def check_labels(path: Path, manifest: Manifest | None, given: GivenLabel | None) -> None:
    """Raises CheckpointError where the images' labels are not those that the run was trained on."""
    before = None if manifest is None else manifest.given_label
    if before is not None and given is not None and before.fingerprint != given.fingerprint:
        raise CheckpointError(
            f"data: the images are those that the run in {path} was trained on, but their labels differ. Give the same "
            f"labels, or choose another run.dir (or --run.resume never)."
        )


def _taken(config: Config) -> dict[str, int]:
    numbers = {"num_train": config.data.num_train, "num_test": config.data.num_test}
    return {name: num for name, num in numbers.items() if num is not None}


def check_epochs(path: Path, manifest: Manifest, config: Config) -> None:
    """Raises CheckpointError where the run has gone further, or another way, than the epochs that are asked for."""
    local = sum(record.is_local for record in manifest.history)
    begun = manifest.epoch + (manifest.position is not None)
    local_begun = local + (manifest.position is not None and manifest.stage == "local")
    asked = config.schedule
    if config.num_epochs < begun:
        raise CheckpointError(
            f"schedule: {asked.local_epochs} local and {asked.finetune_epochs} end-to-end epochs (local_epochs, "
            f"finetune_epochs) are fewer than the {begun} that the run in {path} has begun: ask for {begun} or more, or "
            f"choose another run.dir."
        )
    if asked.mode != "end_to_end" and config.num_local_epochs < local_begun:
        raise CheckpointError(
            f"schedule.local_epochs: is {asked.local_epochs}, but the run in {path} has begun {local_begun}: set it to "
            f"{local_begun} or more."
        )
    if manifest.stage == "whole" and config.num_local_epochs > local:
        more = max(config.num_epochs, begun + 1) - local
        fix = f"--schedule.local_epochs {local} --schedule.finetune_epochs {more}"
        if local == 0:
            fix = "--schedule.mode end_to_end"
        raise CheckpointError(
            f"schedule.local_epochs: is {asked.local_epochs}, but the run in {path} went end to end after {local}, and its "
            f"parts do not train by themselves again. For more end-to-end epochs: {fix}; for more local ones: another "
            f"run.dir."
        )


def check_ended(config: Config, differing: Mapping[str, tuple[object, object]]) -> None:
    """Raises CheckpointError where a run that has ended is asked to be another one. Its results stay what they are."""
    others = {name: values for name, values in differing.items() if name.partition(".")[0] not in ("run", "data")}
    if others:
        raise CheckpointError(
            f"run.dir: {ended(config)}, with other options ({in_words(others)}), and stays as it is. "
            f"{next_commands(config)}."
        )


def rate_option(config: Config, is_local: bool) -> str:
    """The option that sets the learning rate of local epochs, or of end-to-end ones."""
    if is_local:
        return "optim.lr" if config.optim.part_lr is None else "optim.part_lr"
    return "optim.lr" if config.finetune.lr is None else "finetune.lr"


def ended(config: Config) -> str:
    """The beginning of a message about a run that has ended."""
    return f"the run in {config.run.dir} has ended"


def next_commands(config: Config) -> str:
    """The options with which the same command does something in the place of a run that has ended."""
    more = config.schedule.finetune_epochs + 1
    return f"For a new run: --run.dir {config.run.dir}-2; to train this one further: --schedule.finetune_epochs {more}"


def resume_lines(manifest: Manifest, config: Config, changed: Mapping[str, tuple[object, object]]) -> list[str]:
    """The lines that tell the user where a run goes on, what is left of it, and which options are others from here on."""
    local = max(0, config.num_local_epochs - manifest.epoch)
    whole = config.num_epochs - manifest.epoch - local
    left = [f"{local} {config.schedule.mode}"] * (local > 0) + [f"{whole} end-to-end"] * (whole > 0)
    to_come = f"{' and '.join(left)} {'epoch' if local + whole == 1 else 'epochs'} to come" if left else "none to come"
    done = count_text(manifest.epoch, "epoch")
    if manifest.step:
        done += f" and {count_text(manifest.step, 'batch', 'es')}"
    lines = [f"resuming after {done} from {manifest.folder}: {to_come}"]
    return lines + [f"from here on {in_words({name: values})}" for name, values in changed.items()]


def change_at(manifest: Manifest, differing: Mapping[str, tuple[object, object]]) -> Change | None:
    """The record of options that change where the run goes on; None where none does."""
    return Change(epoch=manifest.epoch, step=manifest.step, options=differing) if differing else None


def _show(value: object) -> str:
    return show(tuple(value) if isinstance(value, list) else value)
