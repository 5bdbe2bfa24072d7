"""The results of a run: its model file and its samples.

Where the parts are on several workers, nothing brings the whole flow onto one device. The model file is put together on the
disk, tensor by tensor, from the files of the last checkpoint; samples are drawn by all workers together (`sampling`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pipeflow.config import Config
from pipeflow.errors import CheckpointError, NoInverse
from pipeflow.flow import Flow
from pipeflow.rundir.checkpoint import Checkpoints
from pipeflow.rundir.folder import RunFolder
from pipeflow.rundir.model import MODEL_FILE, model_metadata, save_flow
from pipeflow.rundir.records import GivenLabel
from pipeflow.rundir.tensor_file import lay_out
from pipeflow.training.sampling import draw_together
from pipeflow.training.stages import Stages
from pipeflow.use.sample import file_suffix, labels_in_turn, save_samples, to_data

_NUM_SAMPLES = 64


def leave_results(
    stages: Stages, folder: RunFolder, given_label: GivenLabel | None, say: Callable[[str], None]
) -> None:
    """Writes the model file and samples: none for a flow that has no inverse. All workers that take part call this."""
    flow, config = stages.flow, stages.config
    classes = () if given_label is None else given_label.classes
    with stages.averaged():
        if stages.is_pipelined and stages.is_main:
            assemble_model(flow, folder.path, config, folder.checkpoints, classes)
        elif stages.is_main:
            save_flow(flow, folder.path, config, classes)
        try:
            samples = draw_together(stages, _NUM_SAMPLES)
        except NoInverse as error:
            say(f"no samples: {error}")
            return
    if samples is not None:
        path = folder.path / f"samples{file_suffix(flow.values)}"
        save_samples(to_data(samples, flow.values), path, labels_in_turn(_NUM_SAMPLES, flow.num_classes), classes)


def assemble_model(flow: Flow, run_dir: Path, config: Config, checkpoints: Checkpoints, classes: Sequence[str]) -> None:
    """Writes the model file of a run that has trained all its epochs, with averaged weights where there are any.

    flow: is read for names and shapes only. classes: names of the classes, if its density is given the label.

    Raises CheckpointError where the last epoch's checkpoint is not there, or not whole.
    """
    manifest, complaints = checkpoints.newest()
    if manifest is None or (manifest.epoch, manifest.step) != (config.num_epochs, 0):
        raise CheckpointError(
            f"run.dir: {run_dir}: {MODEL_FILE} is put together from the checkpoint after {config.num_epochs} epochs, which "
            f"is not there or damaged: {' '.join(complaints) or checkpoints.last_good()}. Start the same command again."
        )
    expected = {name: (value.dtype, value.shape) for name, value in flow.state_dict().items()}
    header, offsets = lay_out(expected, model_metadata(flow, config, classes))
    files = [checkpoints.folder / manifest.folder / each.file for each in manifest.files]
    try:
        where = {key: path for path in files for key in _keys_of(path)}
        partial = run_dir / f"{MODEL_FILE}.partial"
        with open(partial, "wb") as file:
            file.write(header)
            for name in offsets:
                key = f"ema/{name}" if f"ema/{name}" in where else f"model/{name}"
                with safe_open(where[key], framework="pt") as source:
                    file.write(source.get_tensor(key).contiguous().view(-1).view(torch.uint8).numpy().data)
        partial.replace(run_dir / MODEL_FILE)
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(f"checkpoint {manifest.folder}: cannot be read ({error}).") from None


def _keys_of(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())
