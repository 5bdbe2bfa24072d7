"""Benchmarks that are measured device by device: their common options, and results that keep what the other device gave."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.machine import command_line, describe_machine, in_words

TITLES = {"cpu": "CPU", "cuda": "GPU"}


def make_parser(description: str, out: Path | None = None) -> argparse.ArgumentParser:
    """A command line with the options that these benchmarks share: `--device`, `--threads` and `--out`.

    description: the module's docstring, printed as it is; out: the folder where results go unless `--out` says otherwise,
    None for a benchmark that only prints.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=tuple(TITLES))
    parser.add_argument("--threads", type=int, default=2, help="CPU threads, 2 by default")
    if out is not None:
        parser.add_argument(
            "--out", type=Path, default=out, help="folder of the results, by default the benchmark's own"
        )
    return parser


def save(
    options: argparse.Namespace,
    name: str,
    program: str,
    arguments: Sequence[str] | None,
    measured: dict,
    report: Callable[[dict], str],
) -> None:
    """Writes what was measured on a device into `<name>.json`, and the table of all devices into `<name>.md`.

    options: of a parser of `make_parser`; program, arguments: the module that was called and its words, None: those of the
    process; report: makes the table's text from what was measured by device.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{name}.json"
    document = read(path)
    document[options.device] = {
        "machine": describe_machine(),
        "command": command_line(program, arguments),
        "threads": options.threads,
        **measured,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    path.with_suffix(".md").write_text(report(document))


def read(path: Path) -> dict:
    """The measurements of earlier calls, by device."""
    return json.loads(path.read_text()) if path.exists() else {}


def sections(document: dict, program: str, table: Callable[[dict], Iterator[str]]) -> Iterator[str]:
    """The lines of all devices: a title, the command and the machine, and the table; or that nobody measured it."""
    for device, title in TITLES.items():
        yield from ["", f"## {title}", ""]
        if device not in document:
            yield f"Not measured: `python -m {program} --device {device}`."
            continue
        measured = document[device]
        yield f"`{measured['command']}` on {in_words(measured['machine'])}; {measured['threads']} CPU threads."
        yield ""
        yield from table(measured)
