"""Test bits/dim of a run that has ended, computed again from its saved model in one process."""

from dataclasses import dataclass
from pathlib import Path

from pipeflow.data import Batches, load_data
from pipeflow.device import choose_device
from pipeflow.errors import CheckpointError, ConfigError, DataError
from pipeflow.flow import split_flow
from pipeflow.rundir.model import load_flow
from pipeflow.rundir.reading import read_config, read_summary
from pipeflow.use.likelihood import exit_bits_per_dim, sum_over_batches


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Bits/dim of a run's saved model, beside those of its summary."""

    test_bpd: float
    summary_bpd: float
    num_images: int
    device: str


def evaluate(run_dir: str | Path, device: str = "auto") -> Evaluation:
    """Test bits/dim of the saved flow on all test images of the run's data.

    Computed as the run did it: same images, noise, batches and order of the sums. So it is the summary's number to the
    last bit on the CPU with the same number of threads.

    Args:
        device: auto, cpu or cuda.

    Raises:
        CheckpointError: the folder is no run's, the run has not ended, or its flow was given from Python.
        DataError: the images are not there, are others than the run's, or were given from Python.
        ConfigError: there is no such device.
    """
    config = read_config(run_dir)
    summary = read_summary(run_dir)
    if summary is None or not summary.epochs:
        raise CheckpointError(f"{run_dir} has no summary.json: the run has not ended. Start its command again.")
    flow = load_flow(run_dir)
    if config.data.name == "python":
        raise DataError(f"{run_dir}: its images were given from Python, so this command cannot load them.")
    data = load_data(config.data)
    if data.shape != flow.shape:
        raise DataError(
            f"{run_dir}: its flow takes images of shape {list(flow.shape)}, but those of data.name {config.data.name} "
            f"now have {list(data.shape)}: the run had other images."
        )
    batches = Batches(data, config.run.seed, config.optim.batch_size, config.data.flip)
    # Sums that are grouped by other parts than the run's differ in the last bit. New heads do not count: only the flow's
    # own prior enters its bits/dim.
    try:
        cuts = [part.layers[0] for part in summary.parts[1:]] if summary.epochs[-1].is_local else []
        parts = split_flow(flow, cuts, config.parts.head)
    except (ConfigError, IndexError) as error:
        path = Path(run_dir, "summary.json")
        raise CheckpointError(f"{path} is damaged (parts: {error}): take it from a copy, or run again.") from None
    where = choose_device(device)
    for part in parts:
        part.to(where)
    num_images = len(data.test)
    images = batches.test_batches(num_images, config.optim.batch_size)
    sums = sum_over_batches(parts, (batch.to(where) for batch in images))
    exits = exit_bits_per_dim([sums[part.index] for part in parts], num_images, flow.num_dims)
    return Evaluation(test_bpd=exits[-1], summary_bpd=summary.test_bpd, num_images=num_images, device=where.type)


def describe(evaluation: Evaluation) -> str:
    """An evaluation in one line."""
    if evaluation.test_bpd == evaluation.summary_bpd:
        comparison = "the same to the last bit"
    else:
        comparison = f"{evaluation.summary_bpd:.6f} ({evaluation.test_bpd - evaluation.summary_bpd:+.1e} here)"
    images = "image" if evaluation.num_images == 1 else "images"
    return (
        f"test {evaluation.test_bpd:.6f} bits/dim on {evaluation.num_images:,} {images} ({evaluation.device}); "
        f"summary.json: {comparison}"
    )
