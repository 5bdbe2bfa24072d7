"""Prints a plan: the table of its parts, its schedule and costs in a few lines, or a table of its phases."""

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeflow.plan.plan import Plan
from pipeflow.plan.traffic import latent_bytes, latent_messages, training_share
from pipeflow.training.schedule import Phase, training_macs
from pipeflow.units import bytes_text, count_text, macs_text, megabytes_text

NO_BREAK = "\u00a0"


def print_plan(plan: Plan, console: Console) -> None:
    """Prints a table of the parts, and the schedule and its costs in a few lines."""
    lines = Table.grid(padding=(0, 2, 0, 0))
    for heading, text in _summary(plan):
        lines.add_row(heading, text)
    console.print(_parts_table(plan), "", lines, sep="\n")


def print_phases(plan: Plan, console: Console) -> None:
    """Prints a table with one row a phase."""
    table = _table(
        1, "epoch", "mode", "trains", "forward\nonly", "idle", "batches", "eval", "check-\npoint", "MB sent\nby link"
    )
    for phase in plan.phases:
        table.add_row(*map(Text, _phase_row(plan, phase)))
    turns = any(f"{NO_BREAK}for{NO_BREAK}" in _turns(phase) for phase in plan.phases)
    console.print(table, "")
    notes = [" '2 for 50' is part 2 for 50 batches."] * turns + [" '7.9+3.9' go forward and back."] * plan.is_pipelined
    console.print("Epochs and parts count from 0." + "".join(notes))


def _table(gap: int, *headings: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, gap, 0, 0))
    for heading in headings:
        words = heading in ("mode", "trains", "layers")
        table.add_column(heading, justify="left" if words else "right", overflow="fold")
    return table


def _parts_table(plan: Plan) -> Table:
    batch_size, dtype, steps = plan.config.optim.batch_size, plan.config.link.dtype, plan.phases[0].steps
    costs = [part.multiply_adds() for part in plan.parts]
    table = _table(
        2, "part", "layers", "parameters", "multiply-adds\nan image", "latent\nout", "bytes a batch,\nan epoch"
    )
    for part, cost in zip(plan.parts, costs):
        latent = latent_bytes(part, batch_size, dtype, latent_messages(plan.config))
        table.add_row(
            str(part.index),
            Text("\nto ".join(dict.fromkeys([part.names[0], part.names[-1]]))),
            f"{sum(parameter.numel() for parameter in part.layers.parameters()):,}",
            f"{cost / 1e6:,.1f} M\n{cost / max(1, sum(costs)):.1%}",
            "x".join(map(str, part.output_shape)),
            "-" if part is plan.parts[-1] else f"{bytes_text(latent)}\n{bytes_text(steps * latent)}",
        )
    return table


def _summary(plan: Plan) -> Iterator[tuple[str, str]]:
    """The lines below the table, each with its heading."""
    config, parts, phases = plan.config, plan.parts, plan.phases
    batch_size, steps = config.optim.batch_size, phases[0].steps
    if config.parts.split == "balanced" and config.parts.balance == "time":
        yield "cuts", "by multiply-adds here; the run times the layers itself and may cut elsewhere"
    modes = [f"{len(list(group))} {mode}" for mode, group in groupby(phase.mode for phase in phases)]
    yield "epochs", f"{' + '.join(modes)}, {count_text(steps, 'batch', 'es')} of {count_text(batch_size, 'image')}"
    updates = [f"{sum(phase.count_training(part.index) for phase in plan.local_phases):,}" for part in parts]
    of_parts = f"{updates[0]} of each part" if len(set(updates)) == 1 else f"{', '.join(updates)} of the parts"
    num_of_flow = len(phases) - len(plan.local_phases)
    of_flow = f"{num_of_flow * steps:,} of the whole flow"
    yield "updates", " + ".join([of_parts] * bool(plan.local_phases) + [of_flow] * bool(num_of_flow))
    macs = macs_text(sum(training_macs(phase, parts, batch_size) for phase in phases))
    share = f"{training_share(phases, parts):.3f} of {count_text(len(phases), 'epoch')} end to end"
    yield "training", f"{macs} multiply-adds, {share}"
    if not any([*plan.forward_bytes, *plan.gather_bytes.values(), plan.gradient_bytes, plan.replica_bytes]):
        yield "sent", "nothing"
        return
    by_link = list(map(bytes_text, plan.forward_bytes)) if len(parts) > 2 else []
    nothing = "" if any(plan.backward_bytes) else ", nothing backward"
    yield "forward", f"{_sum(sum(plan.forward_bytes), by_link, ' by link')}{nothing}"
    if any(plan.backward_bytes):
        by_link = list(map(bytes_text, plan.backward_bytes)) if len(parts) > 2 else []
        yield "backward", f"{_sum(sum(plan.backward_bytes), by_link, ' by link')}, in the epochs of the whole flow"
    by_kind = [f"{bytes_text(count)} {kind}" for kind, count in plan.gather_bytes.items() if count]
    nothing = "nothing: the parts stay where they are, and the epochs of the whole flow are a pipeline"
    yield "gather", nothing if plan.is_pipelined else _sum(sum(plan.gather_bytes.values()), by_kind)
    if plan.replica_bytes:
        yield "replicas", f"{bytes_text(plan.replica_bytes)} to average gradients, each part's in a ring of its own"
    if plan.gradient_bytes:
        whose = "the replicas of each part" if plan.is_pipelined else "all workers"
        yield "gradients", f"{bytes_text(plan.gradient_bytes)} to average them, {whose} together"
    yield "evaluation", f"{bytes_text(plan.evaluation_bytes)}{'' if plan.is_pipelined else ' before the gather'}"
    if plan.label_bytes:
        yield "labels", f"{bytes_text(plan.label_bytes)}, once, to the workers whose parts take them"
    each = "part" if config.parts.replicas == 1 else f"of {config.parts.replicas} replicas of each part"
    yield "", f"with {plan.num_workers} workers, one for each {each}"


def _sum(total: int, terms: Sequence[str], of_terms: str = "") -> str:
    """A number of bytes, and what it is the sum of."""
    return bytes_text(total) + (f" ({' + '.join(terms)}{of_terms})" if total and terms else "")


def _phase_row(plan: Plan, phase: Phase) -> list[str]:
    parts = [part.index for part in plan.parts]
    running = [part for part in parts if not phase.is_local or phase.count_running(part) > 0]
    links = plan.link_bytes(phase)
    sent = [f"{megabytes_text(forward)}{f'+{megabytes_text(back)}' if back else ''}" for forward, back in links]
    return [
        str(phase.epoch),
        phase.mode,
        _fill(_turns(phase), 19) if phase.is_local else "whole flow",
        _fill(_numbers([part for part in running if phase.is_local and part not in phase.trained]), 7),
        _fill(_numbers([part for part in parts if part not in running]), 7),
        str(phase.steps),
        "yes" if phase.evaluate else "-",
        "yes" if phase.checkpoint else "-",
        _fill(", ".join(sent), 13) if any(map(sum, links)) else "-",
    ]


def _turns(phase: Phase) -> str:
    """The parts that train, and in which turns where there are several; `_fill` keeps what belongs together on a line."""
    turns = [(turn, len(list(group))) for turn, group in groupby(range(phase.steps), key=phase.training)]
    if len(turns) == 1:
        return _numbers(turns[0][0])
    if len(turns) > len(phase.turns) + 1:
        order = f"{' '.join(_numbers(turn) for turn, _ in turns[: len(phase.turns)])} ..."
        return f"turns of {_keep(count_text(phase.turn_steps, 'batch', 'es'))}: {_keep(order)}"
    return ", ".join(_keep(f"{_numbers(turn)} for {length:,}") for turn, length in turns)


def _keep(text: str) -> str:
    return text.replace(" ", NO_BREAK)


def _fill(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_long_words=False).replace(NO_BREAK, " ")


def _numbers(parts: Sequence[int]) -> str:
    return " ".join(map(str, parts)) or "-"
