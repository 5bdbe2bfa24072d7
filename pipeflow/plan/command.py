"""Runs `pipeflow plan` with its options."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from pipeflow.config import Config
from pipeflow.errors import ConfigError
from pipeflow.plan.plan import Plan, make_plan
from pipeflow.plan.predict.machines import KINDS, Machines, read_machines, write_machines
from pipeflow.plan.predict.predictor import Predictor
from pipeflow.plan.predict.recommend import recommend
from pipeflow.plan.predict.table import as_json, print_predictions
from pipeflow.plan.show import print_phases, print_plan
from pipeflow.units import read_quantity


def run(options: argparse.Namespace, config: Config) -> None:
    """Prints the plan, and predictions where machines are described or measured.

    Raises ConfigError for machines that cannot be, or options that need machines where there are none.
    """
    console = Console(highlight=False, stderr=options.json == "-")
    # Errors in the description are reported before anything is built or measured.
    machines = _described_machines(options)
    if machines is None and (options.json or options.plot):
        raise ConfigError(
            "--json and --plot show predictions: describe machines too (--machines, --workers or --probe)."
        )
    if machines is not None and options.plot and (machines.workers < 2 or not machines.in_seconds):
        raise ConfigError(
            "--plot draws seconds against the speed of links: it needs 2 workers or more, and --flops or --probe."
        )
    plan = make_plan(config)
    if options.probe is not None:
        machines = _measured_machines(options, plan, console)
    (print_phases if options.phases else print_plan)(plan, console)
    if machines is not None:
        console.print()
        _predict(options, plan, machines, console)


def _described_machines(options: argparse.Namespace) -> Machines | None:
    """The machines of a file or of options; for a probe, those that its other options alone would describe."""
    given = _given(options)
    if options.probe is None:
        return read_machines(options.machines, given) if given or options.machines is not None else None
    if options.machines is not None or options.flops is not None:
        raise ConfigError("--probe measures the machines: give neither --machines nor --flops with it.")
    return read_machines(None, {"workers": 2, "bandwidth": 1, **given, "flops": 1})


def _given(options: argparse.Namespace) -> dict[str, str | float]:
    """The fields of `Machines` that stand on the command line. Raises ConfigError, which names the option."""
    fields = {"workers": "workers", "bandwidth": "link", "latency": "latency", "flops": "flops", "memory": "memory"}
    given = {name: value for name, option in fields.items() if (value := getattr(options, option)) is not None}
    return {
        name: read_quantity(f"--{fields[name]}", KINDS[name], value) if name in KINDS else value
        for name, value in given.items()
    }


def _measured_machines(options: argparse.Namespace, plan: Plan, console: Console) -> Machines:
    from pipeflow.plan.predict.probe import probe

    workers = int(options.workers) if options.workers is not None else max(2, len(plan.parts))
    Path(options.probe).parent.mkdir(parents=True, exist_ok=True)
    console.print(f"Measuring with {workers} processes at once, about half a minute ...")
    machines = probe(plan.config, plan.flow.shape, workers)
    write_machines(machines, options.probe)
    if machines.faster_than_measured:
        console.print(
            f"Quicker than could be measured, so taken as bounds: {', '.join(machines.faster_than_measured)}."
        )
    console.print(f"Written to {options.probe}: --machines {options.probe} reads it back.", "", sep="\n")
    return read_machines(options.probe, _given(options))


def _predict(options: argparse.Namespace, plan: Plan, machines: Machines, console: Console) -> None:
    predictor = Predictor(plan, machines)
    predictions = predictor.all()
    advice = recommend(predictor, predictions)
    print_predictions(predictor, predictions, advice, console)
    if options.json:
        text = json.dumps(as_json(predictor, predictions, advice), indent=1) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            Path(options.json).write_text(text)
    if options.plot:
        from pipeflow.plan.predict.figure import plot_by_speed

        plot_by_speed(predictor, options.plot)
        console.print(f"\nSeconds an epoch against the speed of the links: {options.plot}")
