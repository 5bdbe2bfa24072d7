"""Wrong inputs, most under torchrun: each one error that names the option, the value and the fix, said once."""

import os
import shlex
import subprocess
import sys
import time
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeflow import Config, train

SMALL = ["--model.num_blocks=2", "--model.width=8", "--parts.num=2", "--data.num_train=64", "--data.num_test=64"]


def png(size: int = 8, seed: int = 0) -> bytes:
    content = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def image_zip(path: Path, size: int = 8, truncate: bool = False) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(64):
            content = png(size, index)
            for split in ("train", "test"):
                cut = truncate and split == "train" and index == 7
                archive.writestr(f"{split}/kind/{index:02d}.png", content[:90] if cut else content)
    return path


@pytest.fixture(scope="module")
def other_run(tmp_path_factory) -> Path:
    """The folder of a finished run with a flow of width 4."""
    folder = tmp_path_factory.mktemp("other") / "run"
    config = {"num_blocks": 2, "width": 4}
    schedule = {"local_epochs": 1, "finetune_epochs": 0}
    data = {"num_train": 64, "num_test": 64}
    train(
        Config.from_dict(
            {"run": {"dir": str(folder)}, "model": config, "parts": {"num": 2}, "schedule": schedule, "data": data}
        )
    )
    return folder


def images(path: Path) -> list[str]:
    return ["--data.name=images", f"--data.path={path}"]


CASES = {
    "unknown option": (lambda tmp: ["--optim.lrr=1"], ["optim.lrr", "did you mean 'optim.lr'"]),
    "wrong type": (lambda tmp: ["--optim.batch_size=many"], ["optim.batch_size", "'many'", "whole number"]),
    "no such config": (lambda tmp: [f"--config={tmp}/none.yaml"], ["none.yaml", "No such file"]),
    "more workers than parts": (
        lambda tmp: ["--parts.split=balanced", "--parts.num=1"],
        ["2 workers for 1 parts", "--nproc_per_node=1"],
    ),
    "no such cut": (
        lambda tmp: ["--parts.split=blocks.0.steps.9", "--parts.num=null"],
        ["parts.split", "blocks.0.steps.9", "no such layer"],
    ),
    "image size": (lambda tmp: images(image_zip(tmp / "a.zip", size=6)), ["6x6", "multiples of 4", "fewer blocks"]),
    "no data": (lambda tmp: images(tmp / "none.zip"), ["data.path", "none.zip"]),
    "no GPU": (lambda tmp: ["--run.device=cuda"], ["run.device", "no GPU"]),
    "nccl on the CPU": (lambda tmp: ["--link.backend=nccl", "--run.device=cpu"], ["link.backend", "nccl", "gloo"]),
    "nothing to resume": (lambda tmp: ["--run.resume=must"], ["run.resume", "must", "no checkpoint"]),
    "timeline of batches that are not there": (
        lambda tmp: ["--timeline.steps=4", "--optim.batch_size=8"],
        ["timeline.steps", "4 batches from number 10", "8 batches", "timeline.first_step"],
    ),
    "batch too large": (lambda tmp: ["--optim.batch_size=65"], ["optim.batch_size", "65", "64"]),
}


CASES_ALONE = {
    "not a zip": (lambda tmp: images(not_a_zip(tmp)), ["data.path", "text.zip"]),
    "truncated image": (lambda tmp: images(image_zip(tmp / "b.zip", truncate=True)), ["b.zip", "train/kind/07.png"]),
}
"""For one process: how two say such a thing once, the others show."""


def not_a_zip(tmp: Path) -> Path:
    (tmp / "text.zip").write_text("this is no zip")
    return tmp / "text.zip"


def run_workers(arguments: list[str], run_dir: Path, num_workers: int = 2) -> subprocess.CompletedProcess:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_workers}"]
    return subprocess.run(
        [
            sys.executable,
            *(torchrun if num_workers > 1 else []),
            "-m",
            "pipeflow.launch",
            f"--run.dir={run_dir}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def said(result: subprocess.CompletedProcess) -> str:
    errors = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    return errors[0]


@pytest.mark.parametrize("case", [*CASES, *CASES_ALONE])
def test_it_is_said(case, tmp_path):
    arguments, texts = {**CASES, **CASES_ALONE}[case]
    own = [option for option in SMALL if option.split("=")[0] not in str(arguments(tmp_path))]
    result = run_workers([*own, *arguments(tmp_path)], tmp_path / "run", 2 if case in CASES else 1)
    assert result.returncode != 0
    error = said(result)
    assert all(text in error for text in texts), error
    assert "Traceback" not in result.stderr.split("error: ")[0]
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_workers_of_different_options(tmp_path):
    """As when the line is typed once more for the second machine."""
    line = shlex.join([sys.executable, "-m", "pipeflow.launch", f"--run.dir={tmp_path / 'run'}", *SMALL])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    result = subprocess.run(
        [*command, "bash", "-c", f"exec {line} --optim.lr=1e-$((RANK + 3))"],
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode != 0
    assert "optim.lr: is 0.001 at worker 0 and 0.0001 at worker 1" in said(result)


def test_a_run_folder_of_another_model(other_run):
    result = run_workers(SMALL, other_run)
    error = said(result)
    assert result.returncode != 0 and "model.width: is 8" in error and "has 4" in error and "run.dir" in error


@pytest.mark.parametrize("arguments", [["--optim.lrr", "1"], ["--optim.lr"], ["extra"], ["--parts.num", "9"]])
def test_cheap_ones_come_before_torch_is_imported(arguments):
    begin = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipeflow.launch", *arguments], capture_output=True, text=True
    )
    assert time.monotonic() - begin < 20
    assert result.returncode == 1 and len([line for line in result.stderr.splitlines() if "error: " in line]) == 1
    assert not [line for line in result.stderr.splitlines() if line.startswith("import time") and "| torch" in line]
