"""A run read back from its folder: `summary.json`, or of a run that has not ended what `metrics.jsonl` tells."""

from collections import Counter
from pathlib import Path

from pipeflow.config import FINETUNE
from pipeflow.errors import CheckpointError
from pipeflow.rundir.records import EPOCH, GATHERED, START, SUMMARY, text, training_bytes, wrong
from pipeflow.safe_files import MAX_JSON_BYTES, parse_json, read_bytes

# ---------------------------------------------------------------------------------------------------- reading runs


def read_run(run_dir: str | Path) -> dict:
    """A run's `summary.json`; of a run that has not ended the same, as far as `metrics.jsonl` tells it.

    `"ended"` is added: where it is false, `test_bpd` and `exit_bpd` are those of the last evaluated epoch.

    Raises:
        CheckpointError: the folder is not a run's, or what is in it cannot be read.
    """
    run_dir = Path(run_dir)
    summary, log = run_dir / "summary.json", run_dir / "metrics.jsonl"
    if summary.is_file():
        return {**_parse(_read(summary), SUMMARY, summary), "ended": True}
    if not log.is_file():
        raise CheckpointError(
            f"{run_dir} is not the folder of a run: it has neither summary.json nor metrics.jsonl. "
            f"Give the folder that run.dir named when the run was started."
        )
    # The last line may be half written while the run goes on.
    lines = [line for line in _read(log).splitlines(keepends=True) if line.endswith(b"\n")]
    events = [_parse(line, {"event": text}, f"{log}, line {number}") for number, line in enumerate(lines, start=1)]
    for number, event in enumerate(events, start=1):
        _check(event, _EVENTS.get(event["event"], {}), f"{log}, line {number}")
    if not any(event["event"] == "start" for event in events):
        raise CheckpointError(f"{log} has no start of a run yet: try again when the first epoch has begun.")
    return _summary_so_far(run_dir.resolve().name, events)


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, MAX_JSON_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None


def _parse(content: bytes, kind: dict, where: str | Path) -> dict:
    try:
        value = parse_json(content)
    except ValueError as error:
        raise CheckpointError(
            f"{where}: this is no JSON ({error}). The file is damaged: take it from a copy, or run again."
        ) from error
    return _check(value, kind, where)


def _check(value: dict, kind: dict, where: str | Path) -> dict:
    found = wrong(value, kind)
    if found is not None:
        raise CheckpointError(
            f"{where}: {found}, which no run writes. The file is damaged: take it from a copy, or run again."
        )
    return value


_EVENTS = {"start": START, "epoch": EPOCH, "gather": GATHERED}


def _summary_so_far(name: str, events: list[dict]) -> dict:
    by_kind = {kind: [event for event in events if event["event"] == kind] for kind in ("start", "epoch", "gather")}
    start, gathers = by_kind["start"][0], by_kind["gather"]
    epochs = [{key: value for key, value in event.items() if key != "event"} for event in by_kind["epoch"]]
    evaluated = [record for record in epochs if record["test_bpd"] is not None]
    exits = [record["exit_bpd"] for record in evaluated if record["exit_bpd"]]
    links: Counter = Counter()
    for record in epochs:
        links.update({(source, target): count for source, target, count in record["bytes"]["latents"]})
    gathered: Counter = Counter()
    for gather in gathers:
        gathered.update(gather["bytes"])
    counts = {
        "eval": sum(record["bytes"]["eval"] for record in epochs),
        "finetune": sum(training_bytes(record) for record in epochs if record["phase"] in FINETUNE),
        "control": sum(record["bytes"]["control"] for record in epochs),
    }
    return {
        "ended": False,
        "name": name,
        "test_bpd": evaluated[-1]["test_bpd"] if evaluated else start["initial_bpd"],
        "exit_bpd": exits[-1] if exits else None,
        "initial_bpd": start["initial_bpd"],
        "epochs": epochs,
        "num_epochs": len(epochs),
        "parts": start["parts"],
        "train_macs": sum(record["macs"] for record in epochs),
        "seconds": {"gather": sum(gather["seconds"] for gather in gathers)},
        "bytes": {
            "forward": [links[link] for link in sorted(links)],
            "backward": [0 for _ in links],
            "gather": {"parameters": 0, "optimizer": 0, **gathered},
            **counts,
            "total": links.total() + gathered.total() + sum(counts.values()),
        },
    }
