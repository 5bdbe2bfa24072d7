"""Does a run survive? Small real trainings under torchrun, disturbed at random moments until enough faults were injected.

    python -m benchmarks.faults.run --faults 200 --seed 7     # results.md and results.json, and a line for each failure
    python -m benchmarks.faults.run --trial 7-12              # one trial of it again
    python -m benchmarks.faults.run --replicas --faults 40    # with two workers on each part, into replicas/
    python -m benchmarks.faults.run --pipeline --faults 60    # in end-to-end epochs that are a pipeline, into pipeline/

A trial is one run folder: it is disturbed a few times, resumed by torchrun or by repeating the command, and must end with
the bits of a run that nobody disturbed. Faults and moments come from the trial's name alone; how far the training is at a
moment depends on the machine. Links and small disks need root, and are left out without it.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.faults.fault import Fault
from benchmarks.faults.kinds import KINDS, ON_HOSTS, ON_RAY, ON_SMALL_DISK, inject, mounted
from benchmarks.faults.ray_head import RayHead, ray_head
from benchmarks.faults.trainings import HANG_SECONDS, LINK_TIMEOUT, Training, differences
from benchmarks.links.hosts import make_hosts
from benchmarks.machine import command_line, describe_machine, in_words

HERE = Path(__file__).parent
LOST = Path(tempfile.gettempdir()) / "pipeflow-faults-lost"
"""Folder for the output of trials in which something was wanting."""
WEIGHTS = {
    "SIGKILL of a rank": 30,
    "SIGKILL of the launcher": 12,
    "SIGSTOP beyond the time-out": 8,
    "SIGSTOP, short": 8,
    "two runs, one folder": 8,
    "SIGTERM": 18,
    "damaged checkpoint": 12,
    "full disk": 8,
    "link cut and healed": 8,
    "link cut for good": 5,
    "SIGKILL of a rank (Ray)": 8,
    "SIGSTOP beyond the time-out (Ray)": 2,
    "SIGTERM of a rank (Ray)": 4,
}
FAULTS_A_TRIAL = 4
running: list[Training] = []
"""Trainings of all trials that have begun."""
_HOSTS = threading.Lock()
"""Namespaces are made one at a time."""


@dataclass
class Trial:
    """One run folder, all that was done to it, and what came of it."""

    name: str
    mode: str
    workers: int
    place: str
    restarts: int
    begun_anew: bool
    """Whether the first sitting is one of `run.resume never`."""
    replicas: int
    """Workers on each part."""
    faults: list[Fault] = field(default_factory=list)
    sittings: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    """All that was found wanting: messages, processes that were left, and what was lost."""
    is_same: bool = False
    """Whether it ended with the bits of a run that nobody disturbed."""


def plan(name: str, kinds: list[str], replicas: int, pipeline: bool) -> tuple[Trial, list[str], random.Random]:
    """The faults of a trial, from its name. pipeline: of a run that is one nearly all the time."""
    dice = random.Random(name)
    first = dice.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0]
    places = {
        **dict.fromkeys(ON_HOSTS, "hosts"),
        **dict.fromkeys(ON_SMALL_DISK, "small disk"),
        **dict.fromkeys(ON_RAY, "Ray"),
    }
    place = places.get(first, "torchrun")
    if place == "hosts":
        chosen = [first, *dice.choices([kind for kind in ON_HOSTS if kind in kinds], k=1)]
    elif place == "small disk":
        chosen = [first, *dice.choices(ON_SMALL_DISK, k=1)]
    elif place == "Ray":
        chosen = [first, *dice.choices([kind for kind in ON_RAY if kind in kinds], k=1)]
    else:
        others = [kind for kind in kinds if kind not in places]
        chosen = [first, *dice.choices(others, [WEIGHTS[kind] for kind in others], k=FAULTS_A_TRIAL - 1)]
    mode = "long" if "two runs, one folder" in chosen else dice.choice(["concurrent", "concurrent", "alternate", "ddp"])
    workers = 2 if mode == "ddp" or place == "Ray" else dice.choice([2, 3] if replicas == 1 else [2, 4])
    if pipeline:
        mode = "long pipeline" if "two runs, one folder" in chosen else "pipeline"
        workers = 2 if place == "Ray" else dice.choice([2, 3])
    restarts = 3 if place == "Ray" or (place == "torchrun" and dice.random() < 0.7) else 0
    return Trial(name, mode, workers, place, restarts, dice.random() < 0.3, replicas), chosen, dice


def run_trial(
    trial: Trial, kinds: list[str], dice: random.Random, undisturbed: Path, folder: Path, head: RayHead | None
) -> Trial:
    """Disturbs, resumes, compares."""
    begin = time.monotonic()
    with _place(trial, folder, head) as training:
        running.append(training)
        try:
            for kind in kinds:
                if not training.is_running:
                    if training.sitting_ended_well():
                        break
                    trial.sittings += 1
                    training.start()
                fault = inject(kind, training, dice)
                if fault is None:
                    continue
                trial.faults.append(fault)
                trial.wrong += [f"{fault.kind} ({fault.target}, {fault.moment}): {each}" for each in fault.wrong]
            _bring_to_its_end(trial, training)
            found = differences(training.folder, undisturbed)
            trial.is_same = not found
            if found:
                trial.wrong.append(f"not the same run: {len(found)} differences, first {found[:3]}")
        finally:
            left = training.end()
            if left:
                trial.wrong.append(f"{len(left)} processes were left behind")
            if trial.wrong:
                LOST.mkdir(exist_ok=True)
                (LOST / f"{trial.name}.txt").write_text("\n".join(training.lines) + "\n")
    trial.seconds = time.monotonic() - begin
    return trial


def _bring_to_its_end(trial: Trial, training: Training) -> None:
    """Brings the run to its end undisturbed: a command that goes on, or is repeated once, must do."""
    for _ in range(2):
        if not training.is_running:
            if training.sitting_ended_well():
                return
            trial.sittings += 1
            training.start()
        if not training.wait_for_end(2 * HANG_SECONDS):
            trial.wrong.append("an undisturbed sitting did not come to its end")
            return
    if not training.sitting_ended_well():
        trial.wrong.append(f"an undisturbed sitting failed: {training.output(-15)}")


@contextlib.contextmanager
def _place(trial: Trial, folder: Path, head: RayHead | None) -> Iterator[Training]:
    how = {name: getattr(trial, name) for name in ("mode", "workers", "restarts", "begun_anew", "replicas")}
    if trial.place == "small disk":
        mounted(folder)
        try:
            yield Training(folder / "run", **how)
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
    elif trial.place == "hosts":
        with contextlib.ExitStack() as stack:
            with _HOSTS:
                hosts = stack.enter_context(make_hosts(trial.workers))
            yield Training(folder / "run", **how, hosts=hosts)
    else:
        yield Training(folder / "run", **how, ray=head if trial.place == "Ray" else None)


def undisturbed_runs(folder: Path, replicas: int, pipeline: bool) -> dict[str, Path]:
    """A run of each mode that nobody disturbs. Of data-parallel workers the number matters, else it does not."""
    runs = {}
    modes = {"concurrent": replicas, "long": replicas, "alternate": replicas, "ddp": 2}
    for mode, workers in ({"pipeline": 2, "long pipeline": 2} if pipeline else modes).items():
        training = Training(folder / mode, mode, workers, replicas=replicas)
        training.start()
        if not training.wait_for_end(2 * HANG_SECONDS) or any(training.exit_codes):
            sys.exit("an undisturbed run failed:\n" + "\n".join(training.lines))
        runs[mode] = training.folder
    return runs


def table(trials: Sequence[Trial], kinds: Iterable[str] = KINDS) -> str:
    """Rows by kind: how often, what came of it, how long it took to be noticed."""
    head = "| fault | injected | went on | resumed by itself | by repeating | cause named | longest until ended, s | left |"
    rows = [head, "|---|---|---|---|---|---|---|---|"]
    for kind in kinds:
        faults = [fault for trial in trials for fault in trial.faults if fault.kind == kind]
        if not faults:
            continue
        counts = [sum(fault.resumed == how for fault in faults) for how in ("went on", "by itself", "by repeating")]
        longest = max((fault.noticed_s for fault in faults if fault.noticed_s is not None), default=None)
        rows.append(
            f"| {kind} | {len(faults)} | {' | '.join(map(str, counts))} | {sum(fault.named for fault in faults)} | "
            f"{'-' if longest is None else f'{longest:.1f}'} | {sum(fault.left for fault in faults)} |"
        )
    return "\n".join(rows)


def main() -> int:
    """The trials."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=3, help="trials at once")
    parser.add_argument("--only", nargs="+", choices=list(KINDS), help="kinds of faults")
    parser.add_argument("--replicas", action="store_true", help="two workers on each part, instead of one")
    parser.add_argument("--pipeline", action="store_true", help="end-to-end epochs that are a pipeline")
    parser.add_argument("--trial", help="one trial again, by its name")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    kinds = arguments.only or list(KINDS)
    if arguments.replicas and arguments.pipeline:
        parser.error("--replicas or --pipeline, not both")
    replicas = 2 if arguments.replicas else 1
    if os.geteuid() != 0:
        kinds = [kind for kind in kinds if kind not in (*ON_HOSTS, *ON_SMALL_DISK)]
        print("not root: links are not cut, and disks not filled")
    begin = time.monotonic()
    trials: list[Trial] = []
    with contextlib.ExitStack() as resources:
        temporary = resources.enter_context(tempfile.TemporaryDirectory(prefix="pipeflow-faults-"))
        head = resources.enter_context(ray_head(2 * arguments.jobs)) if set(kinds) & set(ON_RAY) else None
        runs = undisturbed_runs(Path(temporary), replicas, arguments.pipeline)
        names = iter([arguments.trial] if arguments.trial else (f"{arguments.seed}-{index}" for index in range(10**6)))
        lock, stopped = threading.Lock(), threading.Event()

        def work() -> None:
            while not stopped.is_set():
                with lock:
                    name = next(names, None)
                    if name is None or sum(len(trial.faults) for trial in trials) >= arguments.faults:
                        return
                trial, chosen, dice = plan(name, kinds, replicas, arguments.pipeline)
                folder = Path(temporary) / name
                run_trial(trial, chosen, dice, runs[trial.mode], folder, head)
                shutil.rmtree(folder, ignore_errors=True)
                with lock:
                    trials.append(trial)
                    _tell(trial, trials)

        with ThreadPoolExecutor(arguments.jobs) as pool:
            try:
                for each in [pool.submit(work) for _ in range(arguments.jobs)]:
                    each.result()
            except BaseException:  # such as an interrupt: no trial begins, those that run lose their processes
                stopped.set()
                for training in running:
                    training.end()
                raise
    minutes = (time.monotonic() - begin) / 60
    print(table(trials))
    if not arguments.trial and not arguments.only:
        part = "replicas" if arguments.replicas else "pipeline" if arguments.pipeline else ""
        _write(trials, minutes, HERE / part)
    return 1 if any(trial.wrong for trial in trials) else 0


def _tell(trial: Trial, trials: list[Trial]) -> None:
    faults = ", ".join(f"{fault.kind} ({fault.target or fault.moment})" for fault in trial.faults)
    count = sum(len(each.faults) for each in trials)
    print(
        f"{count} faults | trial {trial.name} {trial.mode}, {trial.workers} workers, {trial.place}: {faults}; "
        f"{trial.sittings} sittings, {trial.seconds:.0f} s",
        flush=True,
    )
    options = "--replicas " if trial.replicas > 1 else "--pipeline " if "pipeline" in trial.mode else ""
    for each in trial.wrong:
        print(f"WANTING (again: {options}--trial {trial.name}; {LOST / trial.name}.txt): {each}", flush=True)


def _write(trials: list[Trial], minutes: float, folder: Path) -> None:
    machine = describe_machine()
    faults = [fault for trial in trials for fault in trial.faults]
    lost = [trial for trial in trials if not trial.is_same]
    wanting = [trial for trial in trials if trial.is_same and trial.wrong]
    workers = " or ".join(map(str, sorted({trial.workers for trial in trials})))
    on_a_part = f", {trials[0].replicas} on each part" if trials[0].replicas > 1 else ""
    command = command_line("benchmarks.faults.run")
    lines = [
        "# Faults",
        "",
        f"{len(faults)} faults in {len(trials)} runs of {', '.join(sorted({trial.mode for trial in trials}))} on {workers} "
        f"workers{on_a_part}, {minutes:.0f} minutes. {len(trials) - len(lost)} runs ended with the bits of an undisturbed "
        f"run, {len(lost)} did not; in {len(wanting)} of the former something else was wanting.",
        "",
        table(trials),
        "",
        f"link.timeout_s {LINK_TIMEOUT:g}; heartbeats 25 s. Made by `{command}` on {in_words(machine)}.",
        "",
    ]
    lines += [f"- {trial.name}: {each[:300]}" for trial in trials for each in trial.wrong]
    write_results(folder, lines, machine, command, minutes, trials)


def write_results(
    folder: Path, lines: list[str], machine: dict[str, str], command: str, minutes: float, trials: Sequence[Trial]
) -> None:
    """Writes results.md, of these lines, and results.json."""
    folder.mkdir(exist_ok=True)
    (folder / "results.md").write_text("\n".join(lines))
    content = {
        "machine": machine,
        "command": command,
        "minutes": minutes,
        "trials": [asdict(trial) for trial in trials],
    }
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
