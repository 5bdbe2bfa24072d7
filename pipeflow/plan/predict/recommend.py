"""Which way to take, by which measure, and whether it is pipeflow's at all.

The measure is seconds of an epoch in which every batch updates every part, among the ways that fit the memory. It says
nothing of bits/dim: isolated parts optimise another objective, and need end-to-end epochs behind them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeflow.plan.predict.predictor import Prediction, Predictor
from pipeflow.units import bytes_text, seconds_text

CLOSE = 0.05
"""Ways that differ by less than this share count as equally fast: then the simpler one is named."""

BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Recommendation:
    """What to take, and what to know about it."""

    best: Prediction | None
    """None: nothing fits."""
    best_of_ours: Prediction | None
    batch_size: int | None
    """The smallest at which `best` makes 95 % of the images a second that it makes at any that fits."""
    verdict: str
    """pipeflow, one worker, data parallelism, pipeline, or nothing."""
    sentences: list[str]


def recommend(predictor: Predictor, predictions: Sequence[Prediction]) -> Recommendation:
    """The fastest way that trains everything; the plainer one where that is as fast."""
    fitting = [each for each in predictions if each.fits]
    ours = [each for each in fitting if each.is_ours]
    if not fitting:
        least = min(predictions, key=lambda each: each.memory)
        text = f"Nothing fits: the least is {bytes_text(least.memory)} a worker ({name(least)})."
        return Recommendation(None, None, None, "nothing", [f"{text} Lower optim.batch_size, or use more workers."])
    best = fastest(predictions)
    best_of_ours = min((each for each in ours if each.trains_all), key=lambda each: each.seconds, default=None)
    sentences = [
        f"By seconds of an epoch that trains everything, at batch {predictor.batch_size}: {name(best)}, "
        f"{seconds_text(best.seconds)}."
    ]
    sentences += _compare(best, best_of_ours, predictions)
    sentences += _runs(fitting)
    batch_size = _batch_size(predictor, best)
    if batch_size is not None:
        sentences.append(
            f"Batch size: {batch_size} is the smallest at which {name(best)} is within 5 % of its most images a second; "
            f"smaller ones make more updates an epoch, larger ones may need another learning rate."
        )
    return Recommendation(best, best_of_ours, batch_size, verdict(best), sentences)


def name(prediction: Prediction) -> str:
    """`concurrent, balanced 3`."""
    micro = f", {prediction.micro_batches} micro-batches" if prediction.micro_batches else ""
    if prediction.system == "end_to_end":
        return "end to end on one worker"
    return f"{prediction.system}{', ' * bool(prediction.cut)}{prediction.cut}{micro}"


def fastest(predictions: Sequence[Prediction]) -> Prediction | None:
    """Of those that fit and train everything at the same batch; None where nothing fits.

    One worker before data parallelism before pipelines before isolated parts, where they are as fast as each other.
    """
    fitting = [each for each in predictions if each.fits]
    comparable = [each for each in fitting if each.trains_all and each.system != "ddp, batch a worker"] or fitting
    if not comparable:
        return None
    order = {"end_to_end": 0, "ddp": 1, "gpipe": 2, "1f1b": 2}
    least = min(each.seconds for each in comparable)
    close = [each for each in comparable if each.seconds <= least * (1 + CLOSE)]
    return min(close, key=lambda each: (order.get(each.system, 3), each.seconds))


def verdict(best: Prediction | None) -> str:
    """pipeflow, one worker, data parallelism, pipeline, or nothing."""
    if best is None:
        return "nothing"
    kinds = {"end_to_end": "one worker", "ddp": "data parallelism", "gpipe": "pipeline", "1f1b": "pipeline"}
    return kinds.get(best.system, "pipeflow")


def _compare(best: Prediction, ours: Prediction | None, predictions: Sequence[Prediction]) -> list[str]:
    sentences = []
    if not best.is_ours:
        against = f" Its best here is {name(ours)}: {seconds_text(ours.seconds)}." if ours is not None else ""
        also = " and trains the exact objective"
        sentences.append(
            f"pipeflow's parts are NOT the faster way here: {name(best)} is at least as fast{also}.{against}"
        )
    else:
        rivals = [each for each in predictions if each.trains_all and not each.is_ours and each.fits]
        rivals = [each for each in rivals if each.system != "ddp, batch a worker"]
        closest = min(rivals, key=lambda each: each.seconds, default=None)
        if closest is None:
            sentences.append("Nothing that trains end to end fits in a worker's memory.")
        else:
            sentences.append(
                f"The nearest that trains end to end: {name(closest)}, {seconds_text(closest.seconds)} "
                f"({closest.seconds / best.seconds:.2f} times as long)."
            )
        sentences.append(
            "Isolated parts optimise another objective: compare bits/dim in a short run before a long one."
        )
    wide = next((each for each in predictions if each.system == "ddp, batch a worker" and each.fits), None)
    if wide is not None and wide.seconds < best.seconds * (1 - CLOSE):
        sentences.append(
            f"If a batch of {wide.batch_size} trains as well, data parallelism with {wide.batch_size // wide.workers} "
            f"images a worker is faster still: {seconds_text(wide.seconds)} an epoch."
        )
    return sentences


def _runs(fitting: Sequence[Prediction]) -> list[str]:
    """The whole run as configured, where taking turns or fine-tuning changes the order."""
    # Part after part takes as long as taking turns, and was found unstable.
    quickest = min((each for each in fitting if each.system != "sequential"), key=lambda each: each.run_seconds)
    text = f"All configured epochs with fine-tuning: {name(quickest)} is quickest, {seconds_text(quickest.run_seconds)}"
    alone = next((each for each in fitting if each.system == "end_to_end"), None)
    if alone is not None and quickest is not alone:
        text += f", {quickest.run_seconds / alone.run_seconds:.2f} of end to end on one worker"
    turns = "" if quickest.trains_all else " (its epochs train one part at a time: fewer updates of each)"
    return [f"{text}{turns}."]


def _batch_size(predictor: Predictor, best: Prediction) -> int | None:
    """None where nothing measured tells batch sizes apart."""
    speeds = {}
    for size in sorted({*BATCH_SIZES, predictor.batch_size}):
        if size > predictor.plan.num_train or (best.system == "ddp" and size < best.workers):
            continue
        other = Predictor(predictor.plan, predictor.machines, size, shared=predictor)
        same = _again(other, best)
        if same.fits:
            speeds[size] = other.steps * size / same.seconds
    if not speeds or (predictor.machines.step_seconds is None and max(speeds.values()) < 1.02 * min(speeds.values())):
        return None
    return next(size for size, speed in speeds.items() if speed >= 0.95 * max(speeds.values()))


def _again(predictor: Predictor, like: Prediction) -> Prediction:
    """The same way at another batch size."""
    if like.system == "end_to_end":
        return predictor.end_to_end()
    if like.system.startswith("ddp"):
        return next(each for each in predictor.data_parallel() if each.system == like.system)
    cut = next(cut for cut in predictor.cuts() if cut.name == like.cut)
    return predictor.local(like.system, cut) if like.is_ours else predictor.pipeline(like.system, cut)
