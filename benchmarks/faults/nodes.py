"""Does a run survive the loss of machines? Small trainings over three network namespaces, disturbed at random moments.

    python -m benchmarks.faults.nodes --faults 40 --seed 16     # machines/results.md and results.json
    python -m benchmarks.faults.nodes --trial 16-3              # one trial of it again

A trial is one run folder that is disturbed a few times. It must go on by itself, but after the loss of the endpoint's
machine, and end with the bits of a run that nobody disturbed. Needs root. Faults come from the trial's name alone.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults import run
from benchmarks.faults.node_faults import KINDS, RETURN_SECONDS, TrainingOnNodes, inject
from benchmarks.faults.trainings import HEARTBEAT_TIMEOUT, LINK_TIMEOUT, Training, differences
from benchmarks.links.hosts import make_hosts
from benchmarks.machine import command_line, describe_machine, in_words

HOSTS = 3
WEIGHTS = {
    "SIGKILL of a worker": 12,
    "SIGKILL of a launcher": 8,
    "a machine lost, and back": 10,
    "link cut beyond the time-outs": 8,
    "the endpoint's machine lost": 3,
}
FAULTS_A_TRIAL = 4


@dataclass
class Trial(run.Trial):
    """A trial over several machines."""

    nodes: str = "3"
    """`--nnodes`: whether the run waits for a lost machine, or goes on without it until it is back."""


def plan(name: str, kinds: list[str]) -> tuple[Trial, list[str], random.Random]:
    """The faults of a trial, from its name."""
    dice = random.Random(name)
    chosen = dice.choices(kinds, [WEIGHTS[kind] for kind in kinds], k=FAULTS_A_TRIAL)
    mode, nodes, begun_anew = (
        dice.choice(["halves", "halves", "turns"]),
        dice.choice(["3", "2:3"]),
        dice.random() < 0.3,
    )
    return Trial(name, mode, HOSTS, "machines", 100, begun_anew, 1, nodes=nodes), chosen, dice


def run_trial(trial: Trial, kinds: list[str], dice: random.Random, undisturbed: Path, folder: Path) -> None:
    """Disturbs, compares."""
    begin = time.monotonic()
    with make_hosts(HOSTS) as hosts:
        about = {"mode": trial.mode, "workers": HOSTS, "begun_anew": trial.begun_anew, "nodes": trial.nodes}
        training = TrainingOnNodes(folder / "run", **about, hosts=hosts)
        try:
            for kind in kinds:
                if not training.is_running:
                    if training.sitting_ended_well():
                        break
                    trial.sittings += 1
                    training.start()
                fault = inject(kind, training, dice)
                if fault is not None:
                    trial.faults.append(fault)
                    trial.wrong += [f"{fault.kind} ({fault.target}): {each}" for each in fault.wrong]
            if not training.is_running and not training.sitting_ended_well():  # after the loss of the endpoint
                trial.sittings += 1
                training.start()
            if not training.wait_for_end(2 * RETURN_SECONDS) or not training.sitting_ended_well():
                trial.wrong.append(f"the run did not come to its end: {training.output(-15)}")
            found = differences(training.folder, undisturbed)
            trial.is_same = not found
            if found:
                trial.wrong.append(f"not the same run: {len(found)} differences, first {found[:3]}")
        finally:
            left = training.end()
            if left:
                trial.wrong.append(f"{len(left)} processes were left behind")
            if trial.wrong:
                run.LOST.mkdir(exist_ok=True)
                (run.LOST / f"nodes-{trial.name}.txt").write_text("\n".join(training.lines) + "\n")
    trial.seconds = time.monotonic() - begin


def main() -> int:
    """The trials, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--seed", type=int, default=16)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), help="kinds of faults")
    parser.add_argument("--trial", help="one trial again, by its name")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    kinds, trials, begin = arguments.only or list(KINDS), [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pipeflow-faults-") as temporary:
        undisturbed = {mode: _undisturbed(Path(temporary) / mode, mode) for mode in ("halves", "turns")}
        while arguments.trial is None or not trials:
            if sum(len(trial.faults) for trial in trials) >= arguments.faults:
                break
            name = arguments.trial or f"{arguments.seed}-{len(trials)}"
            trial, chosen, dice = plan(name, kinds)
            run_trial(trial, chosen, dice, undisturbed[trial.mode], Path(temporary) / name)
            shutil.rmtree(Path(temporary) / name, ignore_errors=True)
            trials.append(trial)
            _tell(trial, trials)
    table = run.table(trials, KINDS)
    print(table)
    if not arguments.trial and not arguments.only:
        _write(trials, table, (time.monotonic() - begin) / 60)
    return 1 if any(trial.wrong for trial in trials) else 0


def _undisturbed(folder: Path, mode: str) -> Path:
    training = Training(folder, mode, 1)
    training.start()
    if not training.wait_for_end(2 * RETURN_SECONDS) or any(training.exit_codes):
        sys.exit("an undisturbed run failed:\n" + "\n".join(training.lines))
    return training.folder


def _tell(trial: Trial, trials: list[Trial]) -> None:
    faults = ", ".join(f"{fault.kind} ({fault.target}, {fault.noticed_s or 0:.0f} s)" for fault in trial.faults)
    count = sum(len(each.faults) for each in trials)
    about = f"{trial.mode}, --nnodes={trial.nodes}"
    print(
        f"{count} faults | trial {trial.name} {about}: {faults}; {trial.sittings} sittings, {trial.seconds:.0f} s",
        flush=True,
    )
    for each in trial.wrong:
        print(f"WANTING (again: --trial {trial.name}; {run.LOST / f'nodes-{trial.name}'}.txt): {each}", flush=True)


def _write(trials: list[Trial], table: str, minutes: float) -> None:
    machine, command = describe_machine(), command_line("benchmarks.faults.nodes")
    faults = [fault for trial in trials for fault in trial.faults]
    lost = [trial for trial in trials if not trial.is_same]
    by_itself = sum(fault.resumed == "by itself" for fault in faults)
    text = [
        "# Faults of machines",
        "",
        f"{len(faults)} faults in {len(trials)} runs on {HOSTS} machines (network namespaces), {minutes:.0f} minutes. "
        f"{len(trials) - len(lost)} runs ended with the bits of an undisturbed run, {len(lost)} did not; after {by_itself} "
        f"faults the run went on by itself.",
        "",
        table,
        "",
        f"link.timeout_s {LINK_TIMEOUT:g}, run.heartbeat_timeout_s {HEARTBEAT_TIMEOUT:g}. Made by `{command}` on "
        f"{in_words(machine)}.",
        "",
        *[f"- {trial.name}: {each[:300]}" for trial in trials for each in trial.wrong],
    ]
    run.write_results(run.HERE / "machines", text, machine, command, minutes, trials)


if __name__ == "__main__":
    sys.exit(main())
