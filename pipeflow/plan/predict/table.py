"""Predictions as a table on a terminal, and as plain values for programs."""

import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeflow.plan.predict.prediction import Prediction
from pipeflow.plan.predict.predictor import Predictor
from pipeflow.plan.predict.recommend import Recommendation
from pipeflow.units import bytes_text, seconds_text

_NOTES = (
    "idle: share of the workers' time; largest: largest part's share of the work, which bounds the speed-up. "
    "An epoch of alternate or sequential trains one part (mean over the parts). run: all configured epochs, the gather "
    "and fine-tuning, as configured; with '+' it follows on the row above in a way that is quicker. memory: in the local "
    "epochs and in those of a pipeline, lower bound; fine-tuning on one worker needs that of end_to_end. "
    "With run.device cpu it includes the copy that checkpoints are written from, which is otherwise in the host's memory."
)


def print_predictions(
    predictor: Predictor, predictions: Sequence[Prediction], advice: Recommendation, console: Console
) -> None:
    """A table with a row for each prediction, and the recommendation below it."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("system", no_wrap=True)
    table.add_column("cut", no_wrap=True)
    for heading in ("epoch", "sent", "memory", "idle", "largest", "run"):
        table.add_column(heading, justify="right", no_wrap=True)
    for before, each in zip([None, *predictions], predictions):
        micro = f" x{each.micro_batches}" if each.micro_batches else ""
        system = "ddp, all" if each.system == "ddp, batch a worker" else each.system + micro
        if before is not None and each.is_ours and (each.system, each.cut) == (before.system, before.cut):
            system = f"+ {each.finetune}"
        table.add_row(
            Text(system, style="bold" if each == advice.best else ""),
            each.cut or f"batch {each.batch_size}",
            seconds_text(each.seconds),
            bytes_text(each.bytes) if each.bytes else "-",
            Text(bytes_text(each.memory), style="" if each.fits else "red") + Text("" if each.fits else "!"),
            f"{each.idle:.2f}",
            f"{each.largest_part:.2f}",
            seconds_text(each.run_seconds),
        )
    machines = predictor.machines
    console.print(f"Predicted, batch {predictor.batch_size}, {machines.describe()}", "", table, "", sep="\n")
    if any(not each.fits for each in predictions):
        console.print("! does not fit in a worker's memory.")
    console.print(_NOTES, "", sep="\n")
    for sentence in advice.sentences:
        console.print(Text(sentence))


def as_json(predictor: Predictor, predictions: Sequence[Prediction], advice: Recommendation) -> dict[str, object]:
    """Machines, predictions and the recommendation as plain values."""
    return {
        "machines": predictor.machines.to_dict(),
        "in_seconds": predictor.machines.in_seconds,
        "batch_size": predictor.batch_size,
        "num_train": predictor.plan.num_train,
        "predictions": [dataclasses.asdict(each) for each in predictions],
        "recommendation": dataclasses.asdict(advice),
    }
