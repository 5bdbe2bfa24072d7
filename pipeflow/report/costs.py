"""Seconds and bytes of runs by what they were spent on, with the names and colours that figures and page have in common."""

from collections import Counter
from collections.abc import Iterable

from pipeflow.report.colors import GATHER_COLOR, JOINT_COLOR, WHOLE_COLOR, color_of
from pipeflow.report.curves import AXES, spans
from pipeflow.rundir.records import Epoch, Summary

KIND_COLORS = {
    "gradients": "#aa3377",
    "evaluation": "#bbbbbb",
    "control": "#333333",
    "gather: parameters": "#806d00",
    "gather: optimizer": "#c8b400",
    "gather: ema": "#ece28a",
    "images handed out": "#88ccee",
    "initial latents": "#44bb99",
    "replicas' start": "#bbcc33",
    "labels": "#eedd88",
    "samples": "#ee8866",
}
"""Of kinds of bytes that belong to no link."""
SECONDS_COLORS = {
    "local epochs": color_of(0),
    "gather": GATHER_COLOR,
    "end-to-end epochs": WHOLE_COLOR,
    "evaluation": "#bbbbbb",
    "checkpoints": color_of(3),
    "start and waiting": "#eeeeee",
}
OUTSIDE = "outside epochs"


def band(record: Epoch | None) -> tuple[str, str]:
    """Names the parts that train in an epoch (None: the gather), and gives them a colour."""
    if record is None:
        return "gather", GATHER_COLOR
    if not record.is_local:
        return "fine-tuning" if record.phase == "finetune" else "end to end", WHOLE_COLOR
    if not record.trained:
        return f"{record.phase}: no part", JOINT_COLOR
    first, last = record.trained[0], record.trained[-1]
    if first == last:
        return f"{record.phase}: part {first}", color_of(first)
    is_run = len(record.trained) > 2 and record.trained == tuple(range(first, last + 1))
    parts = f"{first} to {last}" if is_run else ", ".join(map(str, record.trained))
    return f"{record.phase}: parts {parts}", JOINT_COLOR


def bytes_by_phase(run: Summary) -> dict[str, Counter[str]]:
    """Bytes by phase (as `band` names them) and by kind; only what is not zero."""
    result: dict[str, Counter[str]] = {}
    for record, _, _ in spans(run, AXES["epoch"]):
        counts = result.setdefault(band(record)[0], Counter())
        if record is None:
            counts.update({f"gather: {kind}": count for kind, count in run.bytes.gather.items()})
            continue
        moved = record.bytes
        counts.update({f"latents {source} → {target}": count for source, target, count in moved.latents})
        counts.update({f"gradients {source} → {target}": count for source, target, count in moved.backward})
        counts.update({"gradients": moved.gradients, "evaluation": moved.eval, "control": moved.control})
        if record.is_local:
            counts["images handed out"] += moved.images
    whole = [record for record in run.epochs if not record.is_local]
    if whole:
        images = run.bytes.finetune - sum(record.bytes.gradients for record in whole)
        result[band(whole[-1])[0]]["images handed out"] += images
    result[OUTSIDE] = Counter(
        {
            "initial latents": run.bytes.initial,
            "evaluation": run.bytes.eval - sum(record.bytes.eval for record in run.epochs),
            "control": run.bytes.control - sum(record.bytes.control for record in run.epochs),
            "replicas' start": run.bytes.replicas.start,
            "labels": run.bytes.labels,
            "samples": run.bytes.samples,
        }
    )
    return {phase: +counts for phase, counts in result.items() if phase not in ("gather", OUTSIDE) or +counts}


def color_of_kind(kind: str) -> str:
    """The colour of a kind of bytes: of a link, `latents 0 → 1` or back `gradients 1 → 0`, that of the part in front."""
    if kind in KIND_COLORS:
        return KIND_COLORS[kind]
    _, source, _, target = kind.split()
    return color_of(min(int(source), int(target)))


def seconds_by_kind(run: Summary) -> dict[str, float]:
    """Seconds by what they were spent on; of a run that has not ended, as far as its log tells."""
    local = sum(record.seconds for record in run.epochs if record.is_local)
    whole = sum(record.seconds for record in run.epochs if not record.is_local)
    kinds = {
        "local epochs": local,
        "gather": run.seconds.gather,
        "end-to-end epochs": whole,
        "evaluation": run.seconds.eval,
        "checkpoints": run.seconds.checkpoint,
    }
    kinds["start and waiting"] = run.seconds.total - sum(kinds.values())
    return {kind: seconds for kind, seconds in kinds.items() if seconds > 0}


def in_order(kinds: Iterable[str]) -> list[str]:
    """Kinds of bytes as they are stacked: latents first."""
    return sorted(kinds, key=lambda kind: (not kind.startswith("latents"), kind))
