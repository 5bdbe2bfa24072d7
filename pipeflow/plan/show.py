"""How a plan prints: the table of its parts, its schedule and costs in a few lines, or one row a phase."""

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeflow.plan.plan import Plan
from pipeflow.plan.traffic import latent_bytes, phase_link_bytes, training_share
from pipeflow.training.schedule import Phase, training_macs
from pipeflow.units import bytes_text, megabytes_text

NO_BREAK = "\u00a0"


def print_plan(plan: Plan, console: Console) -> None:
    """A table of the parts, and the schedule and its costs in a few lines."""
    lines = Table.grid(padding=(0, 2, 0, 0))
    for heading, text in _schedule(plan):
        lines.add_row(heading, text)
    console.print(_parts_table(plan), "", lines, sep="\n")


def print_phases(plan: Plan, console: Console) -> None:
    """A table with one row a phase."""
    table = _table(
        1, "epoch", "mode", "trains", "forward\nonly", "idle", "batches", "eval", "check-\npoint", "MB sent\nby link"
    )
    for phase in plan.phases:
        table.add_row(*map(Text, _phase_row(plan, phase)))
    turns = any(" for " in _trains(phase).replace(NO_BREAK, " ") for phase in plan.phases)
    console.print(table, "")
    console.print("Epochs and parts count from 0." + " '2 for 50' is part 2 for 50 batches." * turns)


def _table(gap: int, *headings: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, gap, 0, 0))
    for heading in headings:
        words = heading in ("mode", "trains", "layers")
        table.add_column(heading, justify="left" if words else "right", overflow="fold")
    return table


def _parts_table(plan: Plan) -> Table:
    batch_size, dtype, steps = plan.config.optim.batch_size, plan.config.link.dtype, plan.phases[0].steps
    whole = sum(part.multiply_adds() for part in plan.parts)
    table = _table(
        2, "part", "layers", "parameters", "multiply-adds\nan image", "latent\nout", "bytes a batch,\nan epoch"
    )
    for part in plan.parts:
        about = part.describe()
        layers = f"{part.names[0]}\nto {part.names[-1]}" if len(part.names) > 1 else part.names[0]
        latent = latent_bytes(part, batch_size, dtype)
        table.add_row(
            str(part.index),
            Text(layers),
            f"{about['parameters']:,}",
            f"{part.multiply_adds() / 1e6:,.1f} M\n{part.multiply_adds() / max(1, whole):.1%}",
            "x".join(map(str, part.output_shape)),
            "-" if part is plan.parts[-1] else "\n".join(bytes_text(num * latent) for num in (1, steps)),
        )
    return table


def _schedule(plan: Plan) -> Iterator[tuple[str, str]]:
    config, parts, steps = plan.config, plan.parts, plan.phases[0].steps
    batch_size = config.optim.batch_size
    if config.parts.split == "balanced" and config.parts.balance == "time":
        yield "cuts", "by multiply-adds here; the run times the layers itself and may cut elsewhere"
    modes = [(mode, len(list(group))) for mode, group in groupby(phase.mode for phase in plan.phases)]
    epochs = " + ".join(f"{num} {mode}" for mode, num in modes)
    yield "epochs", f"{epochs}, {_count(steps, 'batch', 'es')} of {_count(batch_size, 'image')}"
    local = [phase for phase in plan.phases if phase.is_local]
    updates = [f"{sum(phase.count_training(part.index) for phase in local):,}" for part in parts]
    of_parts = f"{updates[0]} of each part" if len(set(updates)) == 1 else f"{', '.join(updates)} of the parts"
    of_flow = f"{(len(plan.phases) - len(local)) * steps:,} of the whole flow"
    yield "updates", " + ".join([of_parts] * bool(local) + [of_flow] * (len(local) < len(plan.phases)))
    macs = f"{sum(training_macs(phase, parts, batch_size) for phase in plan.phases):.2e}".replace("e+", "e")
    share = training_share(plan.phases, parts)
    yield "training", f"{macs} multiply-adds, {share:.3f} of {_count(len(plan.phases), 'epoch')} end to end"
    gather = sum(plan.gather.values())
    if not any([*plan.forward, gather, plan.gradients, plan.replicas]):
        yield "sent", "nothing"
        return
    links = " + ".join(map(bytes_text, plan.forward))
    yield "forward", _sum(sum(plan.forward), f"{links} by link" if len(parts) > 2 else "") + ", nothing backward"
    by_kind = " + ".join(f"{bytes_text(count)} {kind}" for kind, count in plan.gather.items() if count)
    yield "gather", _sum(gather, by_kind)
    if plan.replicas:
        yield "replicas", f"{bytes_text(plan.replicas)} to average gradients, each part's in a ring of its own"
    if plan.gradients:
        yield "gradients", f"{bytes_text(plan.gradients)} to average them, all workers together"
    yield "evaluation", f"{bytes_text(plan.evaluation)} before the gather"
    each = "part" if config.parts.replicas == 1 else f"of {config.parts.replicas} replicas of each part"
    yield "", f"with {plan.num_workers} workers, one for each {each}"


def _sum(total: int, terms: str) -> str:
    return f"{bytes_text(total)} ({terms})" if total and terms else bytes_text(total)


def _phase_row(plan: Plan, phase: Phase) -> list[str]:
    parts = [part.index for part in plan.parts]
    running = [part for part in parts if not phase.is_local or phase.count_running(part) > 0]
    link_bytes = phase_link_bytes(phase, plan.parts, plan.config.optim.batch_size, plan.config.link.dtype)
    return [
        str(phase.epoch),
        phase.mode,
        _fill(_trains(phase), 19) if phase.is_local else "whole flow",
        _fill(_numbers([part for part in running if phase.is_local and part not in phase.trained]), 7),
        _fill(_numbers([part for part in parts if part not in running]), 7),
        str(phase.steps),
        "yes" if phase.evaluate else "-",
        "yes" if phase.checkpoint else "-",
        _fill(", ".join(megabytes_text(count) for count in link_bytes), 13) if any(link_bytes) else "-",
    ]


def _trains(phase: Phase) -> str:
    """The parts that train, and in which turns where there are several in the phase."""
    turns = [(turn, len(list(group))) for turn, group in groupby(range(phase.steps), key=phase.training)]
    if len(turns) == 1:
        return _numbers(turns[0][0])
    if len(turns) > len(phase.turns) + 1:
        order = f"{' '.join(_numbers(turn) for turn, _ in turns[: len(phase.turns)])} ..."
        return f"turns of {_keep(_count(phase.turn_steps, 'batch', 'es'))}: {_keep(order)}"
    return ", ".join(_keep(f"{_numbers(turn)} for {length:,}") for turn, length in turns)


def _keep(text: str) -> str:
    """The text, not to be broken by `_fill`."""
    return text.replace(" ", NO_BREAK)


def _fill(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_long_words=False).replace(NO_BREAK, " ")


def _numbers(parts: Sequence[int]) -> str:
    return " ".join(map(str, parts)) or "-"


def _count(number: int, thing: str, plural: str = "s") -> str:
    return f"{number:,} {thing}{plural if number != 1 else ''}"
