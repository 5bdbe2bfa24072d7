"""A recommendation: which way to take, by which measure, and whether it is pipeflow's at all.

The measure is seconds of an epoch in which every batch updates every part, among the ways that fit the memory. It says
nothing of bits/dim: isolated parts optimise another objective, and need end-to-end epochs behind them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeflow.plan.predict.prediction import Prediction
from pipeflow.plan.predict.predictor import Predictor
from pipeflow.units import bytes_text, seconds_text

CLOSE = 0.05
"""Ways that differ by less than this share count as equally fast: then the simpler one is named."""

BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Recommendation:
    """The way to take, and what to know about it."""

    verdict: str
    """pipeflow, one worker, data parallelism, pipeline, nothing, or unknown."""
    best: Prediction | None
    """None: nothing fits, or there is no telling."""
    best_of_ours: Prediction | None
    batch_size: int | None
    """The smallest at which `best` makes 95 % of the images a second that it makes at any that fits."""
    sentences: list[str]


def recommend(predictor: Predictor, predictions: Sequence[Prediction]) -> Recommendation:
    """The fastest way that trains everything; the plainer one where that is as fast."""
    best = fastest(predictions)
    if best is None:
        least = min(predictions, key=lambda each: each.memory)
        text = f"Nothing fits: the least is {bytes_text(least.memory)} a worker ({least.describe()})."
        text += " Lower optim.batch_size, or use more workers."
        return Recommendation(verdict(best), None, None, None, [text])
    fitting = [each for each in predictions if each.fits]
    if predictor.machines.workers > 1 and predictor.machines.bandwidth is None:
        return Recommendation("unknown", None, None, None, [_without_links(fitting)])
    best_of_ours = _quickest(each for each in fitting if each.is_ours and each.trains_all)
    sentences = [
        f"By seconds of an epoch that trains everything, at batch {predictor.batch_size}: {best.describe()}, "
        f"{seconds_text(best.seconds)}.",
        *_compare(best, best_of_ours, fitting),
        _whole_run(fitting),
    ]
    batch_size = _batch_size(predictor, best)
    if batch_size is not None:
        sentences.append(
            f"Batch size: {batch_size} is the smallest at which {best.describe()} is within 5 % of its most images a "
            f"second; smaller ones make more updates an epoch, larger ones may need another learning rate."
        )
    return Recommendation(verdict(best), best, best_of_ours, batch_size, sentences)


def _without_links(fitting: Sequence[Prediction]) -> str:
    least, most = (bytes_text(bound(each.bytes for each in fitting)) for bound in (min, max))
    return (
        f"No recommendation: these ways send from {least} to {most} an epoch, and the speed of the links is not given. "
        f"Give it, and the workers' (--link '1 Gbit/s' --flops 50e12), or measure this machine (--probe)."
    )


def fastest(predictions: Sequence[Prediction]) -> Prediction | None:
    """The fastest that fits and trains everything at the same batch; None where nothing fits.

    One worker goes before data parallelism, pipelines and isolated parts, in this order, where they are as fast.
    """
    fitting = [each for each in predictions if each.fits]
    comparable = [each for each in fitting if each.is_comparable] or fitting
    least = min((each.seconds for each in comparable), default=0.0)
    order = {"end_to_end": 0, "ddp": 1, "gpipe": 2, "1f1b": 2}
    close = [each for each in comparable if each.seconds <= least * (1 + CLOSE)]
    return min(close, key=lambda each: (order.get(each.system, 3), each.seconds), default=None)


def verdict(best: Prediction | None) -> str:
    """The kind of the best way: pipeflow, one worker, data parallelism, pipeline, or nothing."""
    if best is None:
        return "nothing"
    kinds = {"end_to_end": "one worker", "ddp": "data parallelism", "gpipe": "pipeline", "1f1b": "pipeline"}
    return kinds.get(best.system, "pipeflow")


def _quickest(predictions: Iterable[Prediction]) -> Prediction | None:
    return min(predictions, key=lambda each: each.seconds, default=None)


def _compare(best: Prediction, ours: Prediction | None, fitting: Sequence[Prediction]) -> list[str]:
    """Sentences that compare the best way with its rivals, or with pipeflow's parts where it is a rival itself."""
    if best.is_ours:
        nearest = "Nothing that trains end to end fits in a worker's memory."
        rival = _quickest(each for each in fitting if each.is_comparable and not each.is_ours)
        if rival is not None:
            times = f"{rival.seconds / best.seconds:.2f} times as long"
            nearest = (
                f"The nearest that trains end to end: {rival.describe()}, {seconds_text(rival.seconds)} ({times})."
            )
        objective = "Isolated parts optimise another objective: compare bits/dim in a short run before a long one."
        sentences = [nearest, objective]
    else:
        against = f" Its best here is {ours.describe()}: {seconds_text(ours.seconds)}." if ours is not None else ""
        sentences = [
            f"pipeflow's parts are NOT the faster way here: {best.describe()} is at least as fast and trains the exact "
            f"objective.{against}"
        ]
    wide = next((each for each in fitting if each.system == "ddp, batch a worker"), None)
    if wide is not None and wide.seconds < best.seconds * (1 - CLOSE):
        sentences.append(
            f"If a batch of {wide.batch_size} trains as well, data parallelism with {wide.batch_size // wide.workers} "
            f"images a worker is faster still: {seconds_text(wide.seconds)} an epoch."
        )
    return sentences


def _whole_run(fitting: Sequence[Prediction]) -> str:
    """The quickest way through all configured epochs: taking turns and fine-tuning change the order."""
    # Part after part takes as long as taking turns, and was found unstable.
    quickest = min((each for each in fitting if each.system != "sequential"), key=lambda each: each.run_seconds)
    text = f"All configured epochs with fine-tuning: {quickest.describe()} is quickest, "
    text += seconds_text(quickest.run_seconds)
    alone = next((each for each in fitting if each.system == "end_to_end"), None)
    if alone is not None and quickest is not alone:
        text += f", {quickest.run_seconds / alone.run_seconds:.2f} of end to end on one worker"
    turns = "" if quickest.trains_all else " (its epochs train one part at a time: fewer updates of each)"
    return f"{text}{turns}."


def _batch_size(predictor: Predictor, best: Prediction) -> int | None:
    """The smallest batch that is about as fast as any; None where no measurement tells batch sizes apart."""
    speeds = {}
    for size in sorted({*BATCH_SIZES, predictor.batch_size}):
        sharing = best.workers if best.system == "ddp" else best.replicas
        if not sharing <= size <= predictor.plan.num_train:
            continue
        other = Predictor(predictor.plan, predictor.machines, size, shared=predictor)
        same = _same_way(other, best)
        if same.fits:
            speeds[size] = other.steps * size / same.seconds
    if not speeds or (predictor.machines.step_seconds is None and max(speeds.values()) < 1.02 * min(speeds.values())):
        return None
    return next(size for size, speed in speeds.items() if speed >= 0.95 * max(speeds.values()))


def _same_way(predictor: Predictor, like: Prediction) -> Prediction:
    """The same way at another predictor's batch size."""
    if like.system == "end_to_end":
        return predictor.end_to_end()
    if like.system.startswith("ddp"):
        return next(each for each in predictor.data_parallel() if each.system == like.system)
    name = like.cut.removesuffix(f" x {like.replicas}")
    cuts = predictor.cuts() if like.is_ours else predictor.pipeline_cuts()
    cut = next(cut for cut in cuts if cut.name == name)
    if like.is_ours:
        return predictor.local(like.system, cut, like.replicas)
    return predictor.pipeline(like.system, cut)
