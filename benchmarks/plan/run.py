"""Predictions for machines that are not here, and how far predictions are from measurements on this one.

    python -m benchmarks.plan.run            # the tables of many workers, from multiply-adds and assumed machines: no GPU
    python -m benchmarks.plan.run --check --measure 3    # three times in turn: probes this machine, measures each system
                                             # as benchmarks.pipelines.run does, and compares; without --measure: with
                                             # what was measured before (--results FILE, benchmarks/pipelines/results.json)

The first writes results.md, results.json and seconds_by_link.png; the second check.md and check.json. Every number in them
is computed by `pipeflow.plan` from the configurations and the constants below.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from benchmarks.machine import command_line, describe_machine
from benchmarks.plan.check import BATCH_SIZE, PROBES, check, check_table, measure, median_of, take_probes
from pipeflow.config import Config
from pipeflow.plan import Images, make_plan
from pipeflow.plan.plan import Plan
from pipeflow.plan.predict.figure import plot_by_speed
from pipeflow.plan.predict.machines import Machines, read_machines
from pipeflow.plan.predict.prediction import Prediction
from pipeflow.plan.predict.predictor import Predictor
from pipeflow.plan.predict.recommend import fastest, verdict
from pipeflow.units import bytes_text, rate_text, seconds_text

HERE = Path(__file__).parent
MEASURED = HERE.parent / "pipelines" / "results.json"

FLOPS = 10e12
"""Assumed: what a data-centre GPU sustains on float32 convolutions without TF32. Nobody measured it for this table."""
MEMORY = 80e9
"""Assumed: bytes of such a GPU."""
LINKS = {
    "NVLink, 450 GB/s": {"bandwidth": 450e9 * 8, "latency": 5e-6},
    "100 GbE": {"bandwidth": 100e9, "latency": 20e-6},
    "1 GbE": {"bandwidth": 1e9, "latency": 100e-6},
    "WAN, 100 Mbit/s": {"bandwidth": 100e6, "latency": 20e-3},
}
"""Nominal speeds of the standards (NVLink: of one direction of a fourth-generation GPU); latencies are assumed."""
WORKERS = (3, 8, 32, 256)
FLOWS = {
    "published: 3 x 32 steps, 32x32": {"num_blocks": 3, "num_steps": 32, "size": 32},
    "3 x 48 steps, 32x32": {"num_blocks": 3, "num_steps": 48, "size": 32},
    "4 x 48 steps, 64x64": {"num_blocks": 4, "num_steps": 48, "size": 64},
    "6 x 48 steps, 256x256": {"num_blocks": 6, "num_steps": 48, "size": 256},
}
NUM_IMAGES = 50_000


# ------------------------------------------------------------------------------------------------------ many workers


def sized_plan(num_blocks: int, num_steps: int, size: int) -> Plan:
    """A flow of width 512 on so many images of this size, without images."""
    config = Config.from_dict(
        {
            "data": {"name": "cifar10"},
            "model": {"num_blocks": num_blocks, "num_steps": num_steps, "width": 512},
            "parts": {"split": "balanced", "num": 2},
            "schedule": {"mode": "concurrent", "local_epochs": 60, "finetune_epochs": 30},
            "optim": {"batch_size": BATCH_SIZE},
        }
    )
    return make_plan(config, Images((3, size, size), NUM_IMAGES, 10_000))


def best(predictions: list[Prediction], *systems: str) -> Prediction | None:
    """The fastest of these systems, whether or not it fits."""
    return min((each for each in predictions if each.system in systems), key=lambda each: each.seconds, default=None)


def across_machines(first: Predictor) -> list[dict]:
    """Every number of workers on every link, for one flow."""
    rows = []
    for workers in WORKERS:
        for link, values in LINKS.items():
            machines = Machines(workers=workers, flops=FLOPS, memory=MEMORY, **values)
            predictor = Predictor(first.plan, machines, shared=first)
            predictions = predictor.all(modes=("concurrent",))
            chosen = {
                "parts": best(predictions, "concurrent"),
                "pipeline": best(predictions, "gpipe", "1f1b"),
                "ddp": best(predictions, "ddp"),
                "ddp_wide": best(predictions, "ddp, batch a worker"),
                "one": best(predictions, "end_to_end"),
            }
            rows.append({"workers": workers, "link": link, "verdict": verdict(fastest(predictions)), **chosen})
    return rows


def amdahl(plan: Plan) -> dict:
    """60 balanced local epochs on three workers and 30 end to end, over 90 end to end on one; links are free."""
    free = Machines(workers=3, flops=FLOPS, bandwidth=1e18)
    predictor = Predictor(plan, free)
    cut = next(cut for cut in predictor.cuts() if len(cut.parts) == 3 and cut.name.startswith("balanced"))
    one = predictor.end_to_end().seconds
    parts, shared = predictor.local("concurrent", cut).seconds, predictor.data_parallel()[-1].seconds
    return {
        "parts_then_one": (60 * parts + 30 * one) / (90 * one),
        "parts_then_data_parallel": (60 * parts + 30 * shared) / (90 * one),
        "data_parallel": shared / one,
    }


def tables(results: dict) -> str:
    """results.md."""
    line = results["amdahl"]
    lines = [
        "# Where isolated parts win, by prediction",
        "",
        f"`python -m benchmarks.plan.run`; nothing here was measured. Width 512, {NUM_IMAGES:,} images, "
        f"batch {BATCH_SIZE}, float32 latents. Assumed of each worker: {rate_text(FLOPS, 'FLOP/s')} sustained, "
        f"{bytes_text(MEMORY)}. "
        "Links: nominal speeds, latencies "
        + ", ".join(f"{link} {seconds_text(values['latency'])}" for link, values in LINKS.items())
        + ". Work: two FLOPs a multiply-add, backward twice the forward, no fixed cost of a step or a micro-batch, a ring "
        "all-reduce in buckets of 25 MB. Times are of an epoch that trains everything; `!` does not fit in memory.",
        "",
        f"The published flow, three workers, free links: 60 balanced concurrent epochs and 30 end to end on one worker "
        f"cost {line['parts_then_one']:.2f} of 90 end to end on one, with data-parallel fine-tuning "
        f"{line['parts_then_data_parallel']:.2f}; data parallelism alone {line['data_parallel']:.2f}.",
    ]
    for flow in results["flows"]:
        lines += [
            "",
            f"## {flow['name']}",
            "",
            f"{flow['parameters'] / 1e6:.1f} million parameters, {flow['macs'] / 1e9:.2f} G multiply-adds an image; one "
            f"worker: {seconds_text(flow['one']['seconds'])} an epoch, {bytes_text(flow['one']['memory'])}"
            f"{'' if flow['one']['fits'] else ' (!)'}. It can be cut into {flow['most_parts']} parts at most. "
            "Largest part's share of the work in a balanced cut: "
            + ", ".join(f"{num} parts {share:.3f} (1/{num} = {1 / num:.3f})" for num, share in flow["balance"])
            + ".",
            "",
            f"| workers | link | concurrent parts | GB | end-to-end pipeline | data parallel, batch {BATCH_SIZE} in all "
            f"| GB | data parallel, batch {BATCH_SIZE} a worker | fastest at batch {BATCH_SIZE} in all |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in flow["rows"]:
            parts, pipeline = row["parts"], row["pipeline"]
            ddp = row["ddp"]
            lines.append(
                f"| {row['workers']} | {row['link']} | {_seconds(parts)}, {parts['cut']} | {parts['bytes'] / 1e9:.2f} "
                f"| {_seconds(pipeline)}, {pipeline['parts']} parts x{pipeline['micro_batches']} | {_on(ddp)} "
                f"| {'-' if ddp is None else format(ddp['bytes'] / 1e9, ',.0f')} | {_seconds(row['ddp_wide'])} "
                f"| {row['verdict']} |"
            )
    return "\n".join(lines) + "\n"


def _on(prediction: dict | None) -> str:
    return "-" if prediction is None else f"{_seconds(prediction)}, {prediction['workers']} workers"


def _seconds(prediction: dict | None) -> str:
    return "-" if prediction is None else f"{seconds_text(prediction['seconds'])}{'' if prediction['fits'] else ' !'}"


def predict_all() -> dict:
    """Every flow on all machines."""
    flows = []
    for label, about in FLOWS.items():
        plan = sized_plan(**about)
        one = Predictor(plan, Machines(flops=FLOPS, memory=MEMORY))
        rows = across_machines(one)
        one_cut = {
            len(cut.parts): max(part.multiply_adds() for part in cut.parts) / plan.flow.multiply_adds()
            for workers in WORKERS
            for cut in one.cuts_for(workers)
            if cut.name.startswith("balanced")
        }
        flows.append(
            {
                "name": label,
                "parameters": sum(parameter.numel() for parameter in plan.flow.parameters()),
                "macs": plan.flow.multiply_adds(),
                "one": dataclasses.asdict(one.end_to_end()),
                "most_parts": one.most_parts,
                "balance": [[num, share] for num, share in sorted(one_cut.items())],
                "rows": [
                    {
                        key: dataclasses.asdict(value) if isinstance(value, Prediction) else value
                        for key, value in row.items()
                    }
                    for row in rows
                ],
            }
        )
        print(f"{label}: done", flush=True)
    return {"amdahl": amdahl(sized_plan(**next(iter(FLOWS.values())))), "flops": FLOPS, "links": LINKS, "flows": flows}


def main(arguments: list[str] | None = None) -> None:
    """The tables, or with --check the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with what was measured here")
    parser.add_argument("--results", type=Path, default=MEASURED, help="with --check: of benchmarks.pipelines.run")
    parser.add_argument("--measure", type=int, metavar="ROUNDS", help="with --check: probe and measure so many times")
    parser.add_argument(
        "--keep-probe", action="store_true", help="with --check: take the probes that were written before"
    )
    options = parser.parse_args(arguments)
    machine = describe_machine()
    if options.check:
        if not options.measure and not options.results.exists():
            parser.error(f"{options.results} is not there: `python -m benchmarks.pipelines.run` writes it")
        rounds = []
        for _ in range(options.measure or 1):
            measured = measure() if options.measure else json.loads(options.results.read_text())
            if options.keep_probe:
                probes = {is_single: read_machines(HERE / name) for is_single, name in PROBES.items()}
            else:
                probes = take_probes(measured["settings"])
            rounds.append(check(measured, probes))
        rows = median_of(rounds)
        command = command_line("benchmarks.plan.run", arguments)
        table = check_table(rows, machine, measured["settings"]["workers"], command)
        (HERE / "check.json").write_text(
            json.dumps({"machine": machine, "command": command, "rows": rows}, indent=1) + "\n"
        )
        (HERE / "check.md").write_text(table)
        print(table)
        return
    results = predict_all()
    document = {"machine": machine, "command": command_line("benchmarks.plan.run", arguments), **results}
    (HERE / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (HERE / "results.md").write_text(tables(results))
    published = sized_plan(**next(iter(FLOWS.values())))
    plot_by_speed(
        Predictor(published, Machines(workers=8, flops=FLOPS, bandwidth=1e9, latency=1e-4)),
        HERE / "seconds_by_link.png",
    )
    print(tables(results))


if __name__ == "__main__":
    main()
