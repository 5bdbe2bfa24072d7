"""The results of a run: its model file and its samples.

Where the parts are on several workers, nothing brings the whole flow onto one device. The model file is put together on the
disk, tensor by tensor, from the files of the last checkpoint; samples are drawn on rank 0, one layer after the other.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeflow.config import Config
from pipeflow.data.random import generator
from pipeflow.errors import CheckpointError, NoInverse
from pipeflow.flow import Flow
from pipeflow.flow.flow import PRIOR
from pipeflow.flow.labels import labels_for
from pipeflow.rundir.checkpoint import Checkpoints
from pipeflow.rundir.folder import RunFolder
from pipeflow.rundir.model import MODEL_FILE, model_metadata, save_flow
from pipeflow.rundir.records import GivenLabel
from pipeflow.rundir.tensor_file import lay_out
from pipeflow.training.stages import Stages
from pipeflow.use.sample import SAMPLE_TEMPERATURE, file_suffix, labels_in_turn, save_samples, to_data

_NUM_SAMPLES = 64


@torch.no_grad()
def leave_results(
    stages: Stages, folder: RunFolder, given_label: GivenLabel | None, say: Callable[[str], None]
) -> None:
    """Writes the model file and samples: none for a flow that has no inverse."""
    flow, config, model = stages.flow, stages.config, folder.path / MODEL_FILE
    classes = () if given_label is None else given_label.classes
    with stages.averaged():
        if stages.is_pipelined:
            assemble_model(flow, folder.path, config, folder.checkpoints, classes)
        else:
            save_flow(flow, folder.path, config, classes)
        noise, labels = generator(config.run.seed, "samples"), labels_in_turn(_NUM_SAMPLES, flow.num_classes)
        try:
            if stages.is_pipelined:
                held = [owner for trainer in stages.worker.trainers for owner in trainer.part.owners()]
                samples = sample_by_layers(flow, held, model, stages.world.device, noise, labels)
            else:
                samples = flow.sample(_NUM_SAMPLES, noise, SAMPLE_TEMPERATURE, labels)
        except NoInverse as error:
            say(f"no samples: {error}")
            return
    path = folder.path / f"samples{file_suffix(flow.values)}"
    save_samples(to_data(samples, flow.values), path, labels, classes)


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


def sample_by_layers(
    flow: Flow,
    held: Collection[str],
    model: Path,
    device: torch.device,
    noise: torch.Generator,
    labels: Tensor | None,
) -> Tensor:
    """Draws the samples of `Flow.sample`, with one layer at a time on the device beside those that are there.

    Args:
        held: names of the layers, and of the prior, that are trained here; the others are loaded from the model file, and
            go back to the host.
    """
    with safe_open(model, framework="pt") as file:

        def load(name: str, module: torch.nn.Module) -> None:
            if name not in held:
                module.load_state_dict({key: file.get_tensor(f"{name}.{key}") for key in module.state_dict()})
                module.to(device)

        load(PRIOR, flow.prior)
        labels = None if labels is None else labels.to(device)
        given = labels_for(flow.prior, labels)
        latent = flow.prior.sample(_NUM_SAMPLES, noise, SAMPLE_TEMPERATURE, **given).to(device)
        for name, layer in reversed(list(flow.named_layers())):
            load(name, layer)
            latent = layer.sample_inverse(latent, noise, SAMPLE_TEMPERATURE, **labels_for(layer, labels))
            if name not in held:
                layer.to("cpu")
    return latent
