"""The command `pipeflow`: train, and look at what training left or will do.

Each command imports what it needs when it is called: `pipeflow --help` waits for neither torch nor matplotlib.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from pipeflow.arguments import at_least, png, png_or_npy
from pipeflow.config import describe_options, load, parse_arguments
from pipeflow.errors import ConfigError, PipeflowError
from pipeflow.launch import version
from pipeflow.output import open_standard_descriptors, say, stdout_may_break
from pipeflow.shipped_files import configurations, list_of, recipes, text_of
from pipeflow.sweep.runs import __doc__ as sweep_file


def main(argv: list[str] | None = None) -> int:
    """Runs one command; its exit code: 0, 1 for an error the user can act on, 2 for a command line that cannot be."""
    open_standard_descriptors()
    broken: list[OSError] = []
    with stdout_may_break(broken.append):
        parser = _parser()
        options, rest = parser.parse_known_args(argv)
        if rest and options.command not in ("train", "plan", "sweep"):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        code = 0 if options.command == "train" else _run(options, rest)
    if options.command == "train":  # which has words of its own for an output that breaks
        return _run(options, rest)
    if broken and not isinstance(broken[0], BrokenPipeError):  # `... | head` has seen enough
        say(f"error: standard output: {broken[0].strerror}")
        return 1
    return code


def _run(options: argparse.Namespace, rest: list[str]) -> int:
    try:
        code: int | None = options.call(options, rest)
    except PipeflowError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 128 + signal.SIGINT
    except OSError as error:  # a disk that is full, a folder that may not be written to
        if error.strerror is None:
            raise
        say(f"error: {error.filename or options.command}: {error.strerror}")
        return 1
    return code or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pipeflow", description="Trains normalizing flows in gradient-isolated parts.", allow_abbrev=False
    )
    parser.epilog = "pipeflow COMMAND --help says more."
    parser.add_argument("--version", action="version", version=version(), help="print the versions, and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, help: str, run: Callable[..., int | None], **details: Any) -> Callable[..., Any]:
        about = f"{help[0].upper()}{help[1:]}."
        added = commands.add_parser(name, help=help, description=about, allow_abbrev=False, **details)
        added.set_defaults(call=run)
        return added.add_argument

    command("train", "train a flow on one worker or, under torchrun, on several", _train, add_help=False)

    add = command(
        "plan",
        "show what a configuration will do and cost",
        _plan,
        usage="pipeflow plan [--phases] [--machines FILE] [--workers N ...] [--config FILE] [--section.option VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"""All values of the machines may also be written in FILE.

Options of a run, with their defaults in brackets:

{describe_options()}""",
    )
    add("--phases", action="store_true", help="one line for each epoch")
    add(
        "--machines",
        type=os.path.expanduser,
        metavar="FILE",
        help="predict seconds, bytes and memory of every schedule and rival on these machines",
    )
    add("--workers", metavar="N", help="number of workers")
    add("--link", metavar="SPEED", help="speed of each link: '100 Mbit/s', '450 GB/s'")
    add("--latency", metavar="TIME", help="latency of each link: '0.1 ms' (default 0)")
    add("--flops", metavar="NUMBER", help="FLOP/s that a worker sustains: 50e12, '50 TFLOP/s'")
    add("--memory", metavar="SIZE", help="memory of a worker: '80 GB' (default: no limit)")
    probe = "measure this machine with --workers processes, and write FILE (default machines.yaml)"
    add("--probe", type=os.path.expanduser, metavar="FILE", nargs="?", const="machines.yaml", help=probe)
    add(
        "--json",
        type=os.path.expanduser,
        metavar="FILE",
        help="write the predictions as JSON ('-': to standard output)",
    )
    add("--plot", type=png, metavar="FILE.png", help="draw seconds an epoch against the speed of the links")

    add = command(
        "sweep",
        "train many runs from one file, as many at once as cores or GPUs allow, and compare them",
        _sweep,
        usage="pipeflow sweep FILE.yaml [--jobs N] [--out DIR] [--section.option VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"FILE.yaml: {sweep_file}",
    )
    add("file", type=os.path.expanduser, metavar="FILE.yaml", help="the file that describes the runs, see below")
    add("--jobs", type=at_least(1, int), help="number of runs at a time (default: as many as cores or GPUs allow)")
    add(
        "--out", type=os.path.expanduser, metavar="DIR", help="folder for the run folders (default: what the file says)"
    )

    run = "folder of a run, ended or not, a checkpoint in it, or a model.safetensors"
    flow = "function that builds the flow, if it was given from Python"
    devices = {"choices": ("auto", "cpu", "cuda"), "default": "auto", "help": "auto (default): a GPU if there is one"}

    add = command(
        "sample", "draw samples of a trained flow into a PNG, or into a .npy file if they are no images", _sample
    )
    add("run", type=os.path.expanduser, metavar="RUN", help=run)
    add("--num", type=at_least(1, int), default=64, help="number of samples (default 64)")
    add("--temperature", type=at_least(0, float), default=0.7, help="scale of the noise (default 0.7)")
    add("--seed", type=at_least(0, int), default=0, help="seed of the noise (default 0)")
    add(
        "--label",
        action="append",
        metavar="CLASS",
        help="class of the samples, by name or number; repeat it for several (default: all classes in turn)",
    )
    add(
        "--out",
        type=png_or_npy,
        metavar="FILE.png",
        help="file to write (default: samples_t0.7_seed0.png, in RUN, or here if RUN is no folder); FILE.npy for floats",
    )
    add("--flow", metavar="MODULE:FUNCTION", help=flow)
    add("--device", **devices)

    add = command("evaluate", "compute the test bits/dim of a trained flow, on all test images of its run", _evaluate)
    add("run", type=os.path.expanduser, metavar="RUN", help=run)
    add(
        "--data",
        type=os.path.expanduser,
        metavar="PATH",
        help="folder, zip or file where the run's images are now (default: where they were)",
    )
    add("--flow", metavar="MODULE:FUNCTION", help=flow)
    add("--device", **devices)

    add = command("encode", "write the latents of images, also those factored out", _encode)
    add("run", type=os.path.expanduser, metavar="RUN", help=run)
    add("images", type=os.path.expanduser, metavar="IMAGE", nargs="+", help="file of an image: PNG, JPEG, BMP or WebP")
    add(
        "--out",
        type=os.path.expanduser,
        metavar="FILE.safetensors",
        required=True,
        help="file to write; pipeflow.Latents.load reads it",
    )
    add("--flow", metavar="MODULE:FUNCTION", help=flow)
    add("--device", **devices)

    add = command(
        "interpolate", "draw images from one image to another, along the line between their latents", _interpolate
    )
    add("run", type=os.path.expanduser, metavar="RUN", help=run)
    add("a", type=os.path.expanduser, metavar="A.png", help="file of the first image")
    add("b", type=os.path.expanduser, metavar="B.png", help="file of the last image")
    add("--num", type=at_least(2, int), default=8, help="number of images, with the first and the last (default 8)")
    add("--out", type=png, metavar="FILE.png", required=True, help="file to write, with the images side by side")
    add("--flow", metavar="MODULE:FUNCTION", help=flow)
    add("--device", **devices)

    add = command("import", "make a flow of a Glow that y0ast/Glow-PyTorch trained, with equal likelihood", _import)
    add("file", type=os.path.expanduser, metavar="FILE", help="its state dict, as torch.save wrote it, or a checkpoint")
    add(
        "--out",
        type=os.path.expanduser,
        metavar="DIR",
        help="folder for model.safetensors (default: named after FILE, in the current folder)",
    )

    add = command("report", "compare runs in a table, and write a page about them", _report)
    runs = "folder of a run, ended or not (default: all below runs/, newest first)"
    add("run_dirs", type=os.path.expanduser, metavar="RUN", nargs="*", help=runs)
    add(
        "--out",
        type=os.path.expanduser,
        metavar="DIR",
        help="folder for report.html (default: the run's own, for several the one that holds them)",
    )
    add("--png", action="store_true", help="draw all figures as PNG files, not only bits/dim by epoch")
    add(
        "--csv",
        type=os.path.expanduser,
        metavar="FILE",
        help="write a row for each epoch of each run ('-': to standard output)",
    )
    add(
        "--json",
        type=os.path.expanduser,
        metavar="FILE",
        help="write all that is known of the runs ('-': to standard output)",
    )
    add("--live", action="store_true", help="serve the page on 127.0.0.1 while runs go on, and write nothing")

    add = command("configs", "list the configurations that --config takes by name, or print one of them", _configs)
    add("name", metavar="NAME", nargs="?", help="print this one, to change it: pipeflow configs NAME > mine.yaml")

    add = command("recipe", "print a script that starts pipeflow on a cluster, or list all of them", _recipe)
    add("name", metavar="NAME", nargs="?", help="print this one: pipeflow recipe slurm > slurm.sh")
    return parser


def _train(options: argparse.Namespace, rest: list[str]) -> int:
    from pipeflow.launch import main as train

    return train(rest)


def _plan(options: argparse.Namespace, rest: list[str]) -> None:
    config = load(*parse_arguments(rest))
    from pipeflow.plan.command import run

    run(options, config)


def _sweep(options: argparse.Namespace, rest: list[str]) -> int:
    path, overrides = parse_arguments(rest)
    if path is not None:
        raise ConfigError(f"--config {path}: a sweep's file names its configuration, as config: {path}.")
    from pipeflow.sweep.command import sweep

    return 1 if sweep(options.file, options.jobs, overrides, options.out) else 0


def _sample(options: argparse.Namespace, rest: list[str]) -> None:
    from pipeflow.use.commands import sample

    path, out, labels = options.run, options.out, options.label
    print(sample(path, options.num, options.temperature, options.seed, out, options.flow, options.device, labels))


def _encode(options: argparse.Namespace, rest: list[str]) -> None:
    from pipeflow.use.commands import encode

    print(encode(options.run, options.images, options.out, options.flow, options.device))


def _interpolate(options: argparse.Namespace, rest: list[str]) -> None:
    from pipeflow.use.commands import interpolate

    print(interpolate(options.run, options.a, options.b, options.num, options.out, options.flow, options.device))


def _evaluate(options: argparse.Namespace, rest: list[str]) -> None:
    from pipeflow.use.evaluate import describe, evaluate

    print(describe(evaluate(options.run, options.device, options.data, options.flow)))


def _import(options: argparse.Namespace, rest: list[str]) -> None:
    from pipeflow.use.importing import describe, import_glow

    print(describe(import_glow(options.file, options.out)))


def _report(options: argparse.Namespace, rest: list[str]) -> None:
    if options.live:
        from pipeflow.report.live import serve

        serve(options.run_dirs)
        return
    from pipeflow.report.command import report

    report(options.run_dirs, options.out, png=options.png, csv=options.csv, json=options.json)


def _configs(options: argparse.Namespace, rest: list[str]) -> None:
    files, name = configurations(), options.name
    print(list_of(files) if name is None else text_of(name, files, "a configuration", "pipeflow configs").rstrip())


def _recipe(options: argparse.Namespace, rest: list[str]) -> None:
    files, name = recipes(), options.name
    print(list_of(files) if name is None else text_of(name, files, "a recipe", "pipeflow recipe").rstrip())


if __name__ == "__main__":
    sys.exit(main())
