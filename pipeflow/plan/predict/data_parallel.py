"""The whole flow on one worker, or on several that average their gradients in a ring."""

from pipeflow.flow import Part
from pipeflow.plan.predict.cuts import Cut
from pipeflow.plan.predict.prediction import Prediction
from pipeflow.plan.predict.scenario import Scenario

_FIRST_BUCKET, _BUCKET = 2**20, 25 * 2**20
"""Bytes of gradients that torch's DistributedDataParallel reduces together: the first, and each after it."""


def predict_end_to_end(scenario: Scenario) -> Prediction:
    """The whole flow on one worker."""
    batch_size, machines = scenario.batch_size, scenario.machines
    work, num_micro = scenario.work(scenario.counts.whole), scenario.micro_batches(batch_size)
    images = batch_size / num_micro
    step = num_micro * (work.forward(images) + work.backward(images)) + work.update
    step += machines.image_seconds * batch_size
    return _prediction(scenario, "end_to_end", batch_size, 1, scenario.steps() * step * machines.alone, idle=0.0)


def predict_data_parallel(scenario: Scenario) -> list[Prediction]:
    """The configured batch in all, on as many workers as are fastest; and the configured batch on each worker."""
    workers, batch_size = scenario.machines.workers, scenario.batch_size
    powers = [2**exponent for exponent in range(1, workers.bit_length())]
    tried = sorted({num for num in [*powers, workers, batch_size] if 2 <= num <= min(workers, batch_size)})
    found = [_predict(scenario, "ddp", batch_size, num) for num in tried]
    found = [min(found, key=lambda each: (not each.fits, each.seconds))] if found else []
    if batch_size * workers <= scenario.plan.num_train:
        found.append(_predict(scenario, "ddp, batch a worker", batch_size * workers, workers))
    return found


def _predict(scenario: Scenario, system: str, batch_size: int, workers: int) -> Prediction:
    share = -(-batch_size // workers)
    work, num_micro = scenario.work(scenario.counts.whole), scenario.micro_batches(share)
    images = share / num_micro
    drawn = scenario.machines.image_seconds * batch_size
    before = drawn + (num_micro - 1) * (work.forward(images) + work.backward(images))
    compute = before + work.forward(images) + work.backward(images) + work.update
    step = before + seconds_until_reduced(scenario, scenario.counts.whole, images, workers) + work.update
    return _prediction(scenario, system, batch_size, workers, scenario.steps(batch_size) * step, 1 - compute / step)


def _prediction(
    scenario: Scenario, system: str, batch_size: int, workers: int, seconds: float, idle: float
) -> Prediction:
    whole, share = scenario.counts.whole, -(-batch_size // workers)
    num_micro = scenario.micro_batches(share)
    kept = scenario.counts.activations.of(whole).at(-(-share // num_micro))
    return scenario.predict(
        system,
        Cut("", [whole]),
        seconds=seconds,
        sent=scenario.counts.gradient_bytes(workers, scenario.steps(batch_size)),
        memory=scenario.memory([whole], kept, 0),
        idle=idle,
        workers=workers,
        micro_batches=num_micro if num_micro > 1 else None,
        batch_size=batch_size,
    )


def seconds_until_reduced(scenario: Scenario, part: Part, images: float, workers: int) -> float:
    """Seconds from a step's begin until all its gradients are averaged: each bucket when its layers' backward is done.

    images: of the step; with micro-batches those of the last, whose backward sends the gradients.
    """
    machines = scenario.machines
    hops = 2 * (workers - 1)
    time, reduced, limit = scenario.work(part).forward(images), 0.0, _FIRST_BUCKET

    def reduce(num_bytes: int) -> float:
        nonlocal time
        sent = hops / workers * num_bytes
        time += 2 * (hops * machines.message_seconds + sent * machines.byte_seconds)
        return max(time, reduced) + sent / machines.reduce_bytes_per_second + hops * machines.latency

    # Gradients of the prior come first.
    waiting = sum(parameter.nbytes for parameter in part.head.parameters())
    for name, layer in reversed(list(zip(part.names, part.layers))):
        time += scenario.layers[name].backward(images)
        waiting += sum(parameter.nbytes for parameter in layer.parameters())
        if waiting >= limit:
            reduced, waiting, limit = reduce(waiting), 0, _BUCKET
    return max(time, reduce(waiting) if waiting else reduced)
