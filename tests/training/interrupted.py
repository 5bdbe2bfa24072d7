"""Runs as they are when they were interrupted."""

import shutil

SCHEDULE = {"mode": "alternate", "local_epochs": 3, "finetune_epochs": 2, "alternate_every": "2 steps"}
"""Of the run that the tests interrupt."""


def as_if_interrupted_after(epoch: int, run, folder):
    """A copy of a run as it was when its checkpoint of that epoch was the newest; some of the next one is written."""
    shutil.copytree(run, folder)
    for checkpoint in folder.glob("checkpoints/epoch-*"):
        if int(checkpoint.name[-6:]) > epoch:
            shutil.rmtree(checkpoint)
    (folder / "summary.json").unlink()
    (folder / "model.safetensors").unlink()
    (folder / f"checkpoints/epoch-{epoch + 1:06d}.partial").mkdir()
    return folder
