"""Records of runs that were never made, as they stand in run folders."""

from pathlib import Path

from pipeflow.rundir.log import MetricsLog
from pipeflow.rundir.records import to_json

GATHER = {"parameters": 400, "optimizer": 800, "ema": 0}


def epochs(schedule: list[tuple[str, list[int]]], latents: int = 1000) -> list[dict]:
    """Records of epochs of three parts, by phase and trained parts."""
    result = []
    for number, (phase, trained) in enumerate(schedule):
        local = phase != "finetune"
        bpd = 6.0 - 0.1 * number
        result.append({
            "epoch": number, "phase": phase, "trained": trained, "steps": 4,
            "train_loss": {str(part): 1.0 for part in trained},
            "test_bpd": bpd, "exit_bpd": [bpd + 1, bpd + 0.5, bpd] if local else None,
            "seconds": 2.0, "images": 100, "macs": 1e9,
            "bytes": {
                "latents": [[0, 1, 2 * latents], [1, 2, latents]] if local else [],
                "eval": 50, "gradients": 0 if local else 300, "control": 5,
            },
        })  # fmt: skip
    return result


ALTERNATE = epochs([("alternate", [part]) for part in (0, 1, 2)] + [("finetune", [0, 1, 2])] * 2)


def summary(name: str, records: list[dict], gather: dict | None = None) -> dict:
    """What `summary.json` has of such a run."""
    gather = GATHER if gather is None else gather
    forward = [sum(r["bytes"]["latents"][link][2] for r in records if r["bytes"]["latents"]) for link in (0, 1)]
    return {
        "name": name, "test_bpd": 5.55, "initial_bpd": 7.0, "exit_bpd": [6.8, 6.3, 5.8], "epochs": records,
        "num_epochs": len(records), "parts": [{}, {}, {}], "train_macs": 1e9 * len(records),
        "seconds": {"gather": 0.5},
        "bytes": {
            "forward": forward, "backward": [0, 0], "eval": 50 * len(records), "gather": gather, "finetune": 700,
            "control": 5 * len(records), "total": 12_345_678,
        },
    }  # fmt: skip


def write(folder: Path, records: list[dict] = ALTERNATE, **changes) -> Path:
    """A folder with the summary of a run that has ended."""
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(to_json({**summary(folder.name, records), **changes}))
    return folder


def write_log(folder: Path, records: list[dict], *more: tuple[str, dict]) -> Path:
    """A folder with the log of a run that goes on."""
    folder.mkdir()
    log = MetricsLog(folder)
    log.event("start", initial_bpd=7.0, parts=[{}, {}, {}])
    for record in records:
        log.event("epoch", **record)
    for kind, fields in more:
        log.event(kind, **fields)
    log.close()
    return folder
