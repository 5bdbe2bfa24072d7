"""The end of a run whose parts are on several workers: nothing brings the whole flow onto one device, or into memory.

The model file is put together on the disk, tensor by tensor, from the files of the last checkpoint. Samples are drawn on
rank 0, which loads one layer after the other.
"""

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeflow.config import Config
from pipeflow.errors import CheckpointError
from pipeflow.flow import Flow
from pipeflow.rundir.checkpoint import Checkpoints
from pipeflow.rundir.model import MODEL_FILE, model_metadata
from pipeflow.rundir.tensor_file import lay_out


def assemble_model(flow: Flow, run_dir: Path, config: Config, checkpoints: Checkpoints) -> None:
    """Writes the model file of a run that has trained all its epochs, with averaged weights where there are any.

    flow: is read for names and shapes only.

    Raises CheckpointError where the last epoch's checkpoint is not there, or not whole.
    """
    manifest, complaints = checkpoints.newest()
    if manifest is None or (manifest.epoch, manifest.step) != (config.num_epochs, 0):
        raise CheckpointError(
            f"run.dir: {run_dir}: {MODEL_FILE} is put together from the checkpoint after {config.num_epochs} epochs, which "
            f"is not there or damaged: {' '.join(complaints) or checkpoints.last_good()}. Start the same command again."
        )
    expected = {name: (value.dtype, value.shape) for name, value in flow.state_dict().items()}
    header, offsets = lay_out(expected, model_metadata(flow, config))
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


@torch.no_grad()
def sample_by_layers(
    flow: Flow,
    held: Collection[str],
    model: Path,
    device: torch.device,
    num: int,
    noise: torch.Generator,
    temperature: float,
) -> Tensor:
    """What `Flow.sample` draws, with one layer at a time on the device beside those that are there.

    Args:
        held: names of the layers, and of the prior, that are trained here; the others are loaded from the model file, and
            go back to the host.
    """
    with safe_open(model, framework="pt") as file:

        def load(name: str, module: torch.nn.Module) -> None:
            if name not in held:
                module.load_state_dict({key: file.get_tensor(f"{name}.{key}") for key in module.state_dict()})
                module.to(device)

        load("prior", flow.prior)
        latent = flow.prior.sample(num, noise, temperature).to(device)
        for name, layer in reversed(list(flow.named_layers())):
            load(name, layer)
            latent = layer.sample_inverse(latent, noise, temperature)
            if name not in held:
                layer.to("cpu")
    return latent
