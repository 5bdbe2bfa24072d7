"""The command `pipeflow`: train, and look at what training left or will do.

Each command imports what it needs when it is called: `pipeflow --help` waits for neither torch nor matplotlib.
"""

import argparse
import sys
from collections.abc import Callable

from pipeflow.config import describe_options, load, parse_arguments
from pipeflow.errors import PipeflowError


def main(argv: list[str] | None = None) -> int:
    """Runs one command; its exit code: 0, 1 for an error the user can act on, 2 for a command line that cannot be."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["train"]:
        from pipeflow.launch import main as train

        return train(arguments[1:])
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "plan":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        options.run(options, rest)
    except PipeflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a disk that is full, a folder that may not be written to
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pipeflow", description="Trains normalizing flows in gradient-isolated parts.", allow_abbrev=False
    )
    parser.epilog = "pipeflow COMMAND --help says more."
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, run: Callable, help: str, description: str = "", **details) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=help, description=description or f"{help[0].upper()}{help[1:]}.", allow_abbrev=False, **details
        )
        added.set_defaults(run=run)
        return added

    # Only for the list: `main` hands its arguments to the launcher.
    command("train", _no_command, "train a flow on one worker or, under torchrun, on several", add_help=False)

    plan = command(
        "plan",
        _plan,
        "show what a configuration will do and cost",
        usage="pipeflow plan [--phases] [--machines FILE] [--workers N ...] [--config FILE] [--section.option VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=describe_options(),
    )
    plan.add_argument("--phases", action="store_true", help="one line for each epoch")
    _add_machines(plan.add_argument_group("machines, to predict seconds, bytes and memory of every schedule and rival"))

    sample = command("sample", _sample, "draw samples of a run's flow into a PNG")
    sample.add_argument("run_dir", metavar="RUN", help="folder of a run that has ended")
    sample.add_argument("--num", type=_at_least_1, default=64, help="images (default 64)")
    sample.add_argument("--temperature", type=_at_least_0, default=0.7, help="scale of the noise (default 0.7)")
    sample.add_argument("--seed", type=_seed, default=0, help="of the noise (default 0)")
    sample.add_argument("--out", type=_png, metavar="FILE.png", help="default RUN/samples_t0.7_seed0.png")

    evaluate = command(
        "evaluate", _evaluate, "compute a run's test bits/dim again, from its saved model on all test images"
    )
    evaluate.add_argument("run_dir", metavar="RUN", help="folder of a run that has ended")
    evaluate.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto")

    report = command("report", _report, "compare runs in a table, and draw figures of them")
    report.add_argument("run_dirs", metavar="RUN", nargs="+", help="folder of a run, ended or not")
    report.add_argument(
        "--out", metavar="DIR", help="folder for the figures (default: the run's own, for several the current one)"
    )
    return parser


def _add_machines(group: argparse._ArgumentGroup) -> None:
    """Options that describe machines, read where they are used: all may stand in a file too."""
    group.add_argument(
        "--machines", metavar="FILE.yaml", help="workers, flops or step_seconds, bandwidth, latency, memory"
    )
    group.add_argument("--workers", metavar="N", help="how many")
    group.add_argument("--link", metavar="SPEED", help="of each link: '100 Mbit/s', '450 GB/s'")
    group.add_argument("--latency", metavar="TIME", help="of each link: '0.1 ms' (default 0)")
    group.add_argument("--flops", metavar="NUMBER", help="a worker's sustained FLOP/s: 50e12, '50 TFLOP/s'")
    group.add_argument("--memory", metavar="SIZE", help="a worker's: '80 GB' (default: no limit)")
    group.add_argument(
        "--probe",
        metavar="FILE.yaml",
        nargs="?",
        const="machines.yaml",
        help="measure this machine with --workers processes, and write the file (default machines.yaml)",
    )
    group.add_argument("--json", metavar="FILE", help="predictions for programs ('-': standard output)")
    group.add_argument("--plot", type=_png, metavar="FILE.png", help="seconds an epoch against the speed of the links")


def _no_command(options: argparse.Namespace, rest: list[str]) -> None:
    raise AssertionError("main hands train to the launcher")


def _plan(options: argparse.Namespace, rest: list[str]) -> None:
    config = load(*parse_arguments(rest))
    from pipeflow.plan.command import run

    run(options, config)


def _sample(options: argparse.Namespace, rest: list[str]) -> None:
    from pipeflow.use.sample import sample

    path = sample(options.run_dir, options.num, options.temperature, options.seed, options.out)
    print(f"{options.num} samples, temperature {options.temperature:g}, seed {options.seed}: {path}")


def _evaluate(options: argparse.Namespace, rest: list[str]) -> None:
    from pipeflow.use.evaluate import describe, evaluate

    print(describe(evaluate(options.run_dir, options.device)))


def _report(options: argparse.Namespace, rest: list[str]) -> None:
    from pipeflow.report.table import report

    report(options.run_dirs, options.out)


def _at_least_1(text: str) -> int:
    return _number(text, int, 1, "a whole number, 1 or more")


def _at_least_0(text: str) -> float:
    return _number(text, float, 0, "a number, 0 or more")


def _seed(text: str) -> int:
    return _number(text, int, 0, "a whole number, 0 or more")


def _number(text: str, kind: type, least: int, wanted: str) -> int | float:
    try:
        number = kind(text)
    except ValueError:
        number = None
    if number is None or not least <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
    return number


def _png(text: str) -> str:
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"expected a file name that ends in .png, got {text!r}")
    return text


if __name__ == "__main__":
    sys.exit(main())
