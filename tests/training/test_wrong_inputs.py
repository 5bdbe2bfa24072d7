"""Wrong inputs: each one error that names the option, the value and the fix, said once however many workers there are."""

import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeflow import train
from pipeflow.errors import ConfigError, PipeflowError
from pipeflow.launch import load_config
from tests.small_runs import errors_in, finish

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


def images(path: Path) -> list[str]:
    return ["--data.name=images", f"--data.path={path}"]


def not_a_zip(tmp: Path) -> Path:
    (tmp / "text.zip").write_text("this is no zip")
    return tmp / "text.zip"


NCCL = ["--link.backend=nccl", "--run.device=cpu"]
CASES = {
    "unknown option": (lambda tmp: ["--optim.lrr=1"], ["optim.lrr", "did you mean 'optim.lr'"]),
    "wrong type": (lambda tmp: ["--optim.batch_size=many"], ["optim.batch_size", "'many'", "whole number"]),
    "no such config": (lambda tmp: [f"--config={tmp}/none.yaml"], ["none.yaml", "No such file"]),
    "more workers than parts": (
        lambda tmp: ["--parts.split=balanced", "--parts.num=1"],
        ["2 workers for 1 part ", "--nproc_per_node=1"],
    ),
    "no such cut": (
        lambda tmp: ["--parts.split=blocks.0.steps.9", "--parts.num=null"],
        ["parts.split", "blocks.0.steps.9", "no such layer"],
    ),
    "image size": (lambda tmp: images(image_zip(tmp / "a.zip", size=6)), ["6x6", "multiples of 4", "fewer blocks"]),
    "no data": (lambda tmp: images(tmp / "none.zip"), ["data.path", "none.zip"]),
    "not a zip": (lambda tmp: images(not_a_zip(tmp)), ["data.path", "text.zip"]),
    "truncated image": (lambda tmp: images(image_zip(tmp / "b.zip", truncate=True)), ["b.zip", "train/kind/07.png"]),
    "no GPU": (lambda tmp: ["--run.device=cuda"], ["run.device", "no GPU"]),
    "nccl on the CPU": (lambda tmp: NCCL, ["link.backend", "nccl", "gloo"]),
    "nothing to resume": (lambda tmp: ["--run.resume=must"], ["run.resume", "must", "no checkpoint"]),
    "timeline of batches that are not there": (
        lambda tmp: ["--timeline.steps=4", "--optim.batch_size=8"],
        ["timeline.steps", "4 batches from number 10", "8 batches", "timeline.first_step"],
    ),
    "batch too large": (lambda tmp: ["--optim.batch_size=65"], ["optim.batch_size", "65", "64"]),
}


def arguments_of(case: str, tmp_path: Path) -> list[str]:
    given = CASES[case][0](tmp_path)
    own = [option for option in SMALL if option.split("=")[0] not in str(given)]
    return [f"--run.dir={tmp_path / 'run'}", *own, *given]


def assert_told(error: str, case: str, tmp_path: Path) -> None:
    assert all(text in error for text in CASES[case][1]), error
    assert not list(tmp_path.glob("run/checkpoints/*"))


@pytest.mark.parametrize("case", CASES)
def test_the_error_names_option_value_and_fix(case, tmp_path, monkeypatch):
    """What the launcher prints of it, in this process."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(PipeflowError) as error:
        train(load_config(arguments_of(case, tmp_path), world_size=2))
    assert_told(str(error.value), case, tmp_path)


ONCE = ["unknown option", "no such cut", "no data", "nccl on the CPU"]
"""An error of each moment: before torch is imported, of the flow, of the images that one worker loads, of the workers."""


@pytest.mark.parametrize("case", ONCE)
def test_two_workers_say_it_once(case, tmp_path, launch):
    process = launch(2, *arguments_of(case, tmp_path))
    output = finish(process)
    assert process.returncode == 1 and 1 in process.exit_codes()
    (error,) = errors_in(output)
    assert_told(error, case, tmp_path)
    assert "Traceback" not in output


def test_what_only_the_flow_tells_is_checked_before_anything_is_trained(tmp_path, launch):
    """How many parts a flow of one's own has where it is split by blocks, and so how long the pipeline is."""
    of_their_own = ["--model.name=tests.training.own_flows:with_their_actnorm", "--parts.split=blocks"]
    pipeline = ["--finetune.parallel=pipeline", "--finetune.micro_batches=1"]
    process = launch(2, f"--run.dir={tmp_path / 'run'}", *of_their_own, *pipeline, "--data.num_train=64")
    (error,) = errors_in(finish(process))
    assert process.returncode == 1 and "finetune.micro_batches: 1 for a pipeline of 2 workers" in error


def test_workers_of_different_options(tmp_path, launch):
    """As when the line is typed once more for the second machine."""
    arguments = [f"--run.dir={tmp_path / 'run'}", *SMALL]
    output = finish(launch(2, *arguments, entry="tests.training.programs.other_rates:main"))
    (error,) = errors_in(output)
    assert "optim.lr: is 0.001 at worker 0 and 0.0001 at worker 1" in error


def test_end_to_end_fails_neither_for_cuts_nor_for_workers_that_it_does_not_need(tmp_path, launch):
    epochs = ["--schedule.mode=end_to_end", "--schedule.local_epochs=1", "--schedule.finetune_epochs=0"]
    process = launch(2, f"--run.dir={tmp_path / 'run'}", "--run.figures=false", *SMALL, *epochs, "--model.num_steps=1")
    output = finish(process)
    assert process.returncode == 0 and "1 epoch, 1 part\n" in output, output
    assert "the other workers wait (finetune.parallel ddp or pipeline uses them)" in output


@pytest.mark.parametrize("arguments", [["--optim.lrr", "1"], ["--parts.num", "9"]])
def test_cheap_ones_come_before_torch_is_imported(arguments):
    command = [sys.executable, "-X", "importtime", "-m", "pipeflow.launch", *arguments]
    lines = subprocess.run(command, capture_output=True, text=True).stderr.splitlines()
    assert len([line for line in lines if "error: " in line]) == 1
    assert not [line for line in lines if line.startswith("import time") and "| torch" in line]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"flow": []}, r"flow: train\(config, flow=...\) takes a pipeflow.Flow\(layers, shape\), not a list"),
        (
            {"data": ((), ())},
            r"data: train\(.*a tuple of tuple and tuple does not .*give an ImageData, or a pair",
        ),
    ],
)
def test_what_is_given_from_python_is_a_flow_and_images(tmp_path, given, message):
    with pytest.raises(ConfigError, match=message):
        train(load_config([f"--run.dir={tmp_path}/run"], 1), **given)
    assert not (tmp_path / "run").exists()
