"""Reads a run back from its folder: its configuration, and its summary or what the log tells so far."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeflow.config import Config
from pipeflow.config.removed import without_removed
from pipeflow.errors import CheckpointError
from pipeflow.rundir.records import Epoch, Gather, GatherKind, RunBytes, RunSeconds, Start, Summary
from pipeflow.rundir.typed_json import Record, Text
from pipeflow.safe_files import MAX_JSON_BYTES, in_full, parse_json, read_bytes, read_json, read_yaml

Event = Start | Epoch | Gather
_EVENTS: dict[str, type[Event]] = {"start": Start, "epoch": Epoch, "gather": Gather}


class _Event(Record):
    event: Text


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A run as its folder tells it. Until it has ended, `test_bpd` and `exit_bpd` are the last evaluated epoch's."""

    summary: Summary
    ended: bool


def read_run(run_dir: str | Path) -> SavedRun:
    """Reads a run, whether it has ended or not.

    Raises CheckpointError where the folder is not a run's, or a file in it cannot be read.
    """
    run_dir = Path(run_dir)
    summary, log = read_summary(run_dir), run_dir / "metrics.jsonl"
    if summary is not None:
        return SavedRun(summary=summary, ended=True)
    if not log.is_file() and (run_dir / "run.lock").exists():
        raise CheckpointError(f"{run_dir} has no results yet: its run is starting, or failed to start.")
    if not log.is_file():
        raise CheckpointError(
            f"{in_full(run_dir)} is not the folder of a run: it has neither summary.json nor metrics.jsonl. "
            f"Give the folder that run.dir named when the run was started."
        )
    try:
        content = read_bytes(log, MAX_JSON_BYTES)
    except OSError as error:
        raise CheckpointError(f"{log} cannot be read: {error.strerror}.") from None
    whole_lines = content[: content.rfind(b"\n") + 1]  # the last one may be half written while the run goes on
    events = _events_in(whole_lines, log)
    start = next((event for event in events if isinstance(event, Start)), None)
    if start is None:
        raise CheckpointError(f"{log} has no line yet of a run that began: try again when the first epoch has begun.")
    return SavedRun(summary=_summary_so_far(run_dir.resolve().name, start, events), ended=False)


def read_config(run_dir: str | Path, for_use: bool = False) -> Config:
    """Reads the configuration that a run was made with. Raises CheckpointError.

    for_use: for who only uses the trained flow, see `to_config`.
    """
    path = Path(run_dir) / "config.yaml"
    if not path.exists():
        raise CheckpointError(f"{in_full(run_dir)} is not a run folder: it has no config.yaml.")
    try:
        return to_config(read_yaml(path), for_use)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or of another version ({error}): take it from a copy, or choose another folder."
        ) from None


def to_config(settings: object, for_use: bool = True) -> Config:
    """A configuration from the sections that a run left. Raises ConfigError.

    for_use: leaves out options that are gone, whatever their value was, and logs it: the flow is trained already.
    """
    if for_use and isinstance(settings, Mapping):
        settings = without_removed(settings, any_value=True)
    return Config.from_dict(settings)  # type: ignore[arg-type]  # it checks what it gets


def read_summary(run_dir: str | Path) -> Summary | None:
    """Reads `summary.json`, which a run writes last; None: it has not ended. Raises CheckpointError."""
    path = Path(run_dir) / "summary.json"
    if not path.exists():
        return None
    try:
        return Summary.from_json(read_json(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): take it from a copy, or remove it and start the run's command again."
        ) from None


def _events_in(log: bytes, path: Path) -> list[Event]:
    """The events of a log that are read back; others, as of a checkpoint, are left out.

    Raises CheckpointError where a line is none that a run writes.
    """
    events: list[Event] = []
    for number, line in enumerate(log.splitlines(), start=1):
        try:
            value = parse_json(line)
            kind = _Event.from_json(value).event
            if kind in _EVENTS:
                events.append(_EVENTS[kind].from_json(value))
        except ValueError as error:
            raise CheckpointError(
                f"{path}, line {number}: {error}. The log is damaged: take it from a copy, or run again."
            ) from None
    return events


def _summary_so_far(name: str, start: Start, events: list[Event]) -> Summary:
    epochs = tuple(event for event in events if isinstance(event, Epoch))
    gathers = [event for event in events if isinstance(event, Gather)]
    evaluated = [record.test_bpd for record in epochs if record.test_bpd is not None]
    exits = [record.exit_bpd for record in epochs if record.exit_bpd]
    links: Counter[int] = Counter()
    back: Counter[int] = Counter()
    for record in epochs:
        links.update({source: count for source, _, count in record.bytes.latents})
        back.update({target: count for _, target, count in record.bytes.backward})
    gathered: Counter[GatherKind] = Counter({"parameters": 0, "optimizer": 0})
    for gather in gathers:
        gathered.update(gather.bytes)
    evaluation = sum(record.bytes.eval for record in epochs)
    finetune = sum(record.bytes.gradients + record.bytes.images for record in epochs if not record.is_local)
    control = sum(record.bytes.control for record in epochs)
    return Summary(
        name=name,
        test_bpd=evaluated[-1] if evaluated else start.initial_bpd,
        initial_bpd=start.initial_bpd,
        exit_bpd=exits[-1] if exits else None,
        num_epochs=len(epochs),
        train_macs=sum(record.macs for record in epochs),
        epochs=epochs,
        parts=start.parts,
        seconds=RunSeconds(gather=sum(gather.seconds for gather in gathers)),
        bytes=RunBytes(
            forward=tuple(links[link] for link in sorted(links)),
            backward=tuple(back[link] for link in sorted(links)),
            eval=evaluation,
            gather=gathered,
            finetune=finetune,
            control=control,
            total=links.total() + back.total() + gathered.total() + evaluation + finetune + control,
        ),
        wire=None if start.world_size is None else start.world_size > 1,
        values=start.values,
        given_label=start.given_label,
    )
