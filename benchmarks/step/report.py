"""results.md from what was measured: tables, shares of the limits, and which goals are met."""

from collections.abc import Iterator
from statistics import median

from benchmarks.by_device import TITLES
from benchmarks.machine import in_words
from benchmarks.step.systems import NORMFLOWS

NO_BFLOAT16 = "no bfloat16 arithmetic"
RIVAL, REFERENCE = "normflows", "reference"
EPOCH_IMAGES = 781 * 64
"""Images of CIFAR-10's 50,000 in whole batches of 64."""
GOALS = {
    "cpu": [
        ("published, batch 16", "float32", "ratio", 1.15, "float32, at least 1.15 x normflows"),
        ("published, batch 16", "bfloat16", "ratio", 2.0, "bfloat16 coupling net, at least 2 x normflows"),
    ],
    "cuda": [
        ("published, batch 64", None, "ratio", 8.0, "at least 8 x normflows at batch 64"),
        ("published, batch 512", None, "share", 0.25, "at least 25 % of the matrix limit at batch 512"),
        ("published, batch 64", None, "epoch", 12.0, "an end-to-end epoch of CIFAR-10 in at most 12 s at batch 64"),
    ],
}
"""Case, type of the coupling net (None: any), what is looked at, the number, and the goal in words."""


def report(document: dict) -> str:
    """results.md; document: what `run.py` measured, by device."""
    lines = [
        "# A training step",
        "",
        "Images a second: median of the rounds (lowest to highest). Ratios are taken in each round, then their median. "
        "Share of the matrix limit: the seconds that the step's multiply-adds need at the device's measured matrix rate "
        "(forward, and twice that backward; coupling nets at the rate of the type they run in, all else float32), over "
        "the step's seconds. Share of the roofline: the least seconds of all kinds of layers, by their products or by the "
        "bytes they must move, over the step's. Memory, 1e6 bytes: on the CPU what the process held at most above what it "
        "held before it had a flow, the compiler included; on a GPU tensors at most. First step: with compilation, and "
        "nothing compiled before.",
    ]
    for device in TITLES:
        lines += ["", f"## {TITLES[device]}", ""]
        lines += list(_device(document[device], device)) if device in document else list(_not_measured(device))
    return "\n".join(lines) + "\n"


def _not_measured(device: str) -> Iterator[str]:
    yield f"Not measured: `python -m benchmarks.step.run --device {device}`."
    yield ""
    for *_, words in GOALS[device]:
        yield f"- Goal, {words}: not measured."


def _device(measured: dict, device: str) -> Iterator[str]:
    yield (f"`{measured['command']}` on {in_words(measured['machine'])}; {measured['threads']} CPU threads.")
    yield ""
    if not measured.get("bfloat16", True):
        yield "- This processor has no bfloat16 arithmetic: nothing is measured in bfloat16."
    results = {name_of(result["case"]): result for result in measured["cases"]}
    for goal in GOALS[device]:
        yield f"- Goal, {judge(goal, results)}."
    for name, result in results.items():
        yield from ["", f"### {name}", "", *_systems(result)]
        for dtype, rows in result.get("roofline", {}).items():
            yield from ["", f"Kinds of layers, coupling nets in {dtype}:", "", *roofline(rows, result, dtype)]


def name_of(case: dict) -> str:
    """The name that `Case.name` gives."""
    return f"{case['size']}, batch {case['batch_size']}"


def coupling_type(system: dict) -> str:
    """Type of a system's coupling nets."""
    return system["options"].get("precision", {}).get("coupling", "float32")


def rates(result: dict, system: str) -> list[float]:
    """Images a second of a system, a number a round."""
    return [each[system] for each in result["rounds"] if system in each]


def ratio(result: dict, system: str, other: str) -> float | None:
    """Median ratio of their speeds over the rounds that have both; None where no round has."""
    ratios = [each[system] / each[other] for each in result["rounds"] if system in each and other in each]
    return median(ratios) if ratios else None


def limit_seconds(result: dict, dtype: str) -> float | None:
    """Seconds of a step at the measured matrix rate; dtype: of the coupling nets. None where nobody measured it."""
    counts = [each["multiply_adds"] for each in result["systems"].values() if each.get("multiply_adds")]
    if not counts:
        return None
    flops, operations = result["limits"]["flops"], 2 * 3 * result["case"]["batch_size"]
    if dtype not in flops:
        return None
    return operations * (counts[0]["coupling"] / flops[dtype] + counts[0]["other"] / flops["float32"])


def share(result: dict, system: str) -> float | None:
    """Share of the matrix limit that a system reaches."""
    limit, found = limit_seconds(result, coupling_type(result["systems"][system])), rates(result, system)
    if limit is None or not found:
        return None
    return limit * median(found) / result["case"]["batch_size"]


def roofline_share(result: dict, system: str) -> float | None:
    """Share of the least seconds of all kinds, by products or bytes, in a step's; None where kinds were not timed."""
    rows, found = result.get("roofline", {}).get(coupling_type(result["systems"][system])), rates(result, system)
    if rows is None or not found:
        return None
    return sum(row["least_s"] for row in rows) * median(found) / result["case"]["batch_size"]


def judge(goal: tuple, results: dict) -> str:
    """A goal in words, with the best system's number and whether that is enough."""
    case, dtype, quantity, number, words = goal
    if case not in results:
        return f"{words}: not measured"
    result = results[case]
    ours = [
        name
        for name, each in result["systems"].items()
        if name not in NORMFLOWS and rates(result, name) and dtype in (None, coupling_type(each))
    ]
    values = {
        "ratio": lambda name: ratio(result, name, RIVAL),
        "share": lambda name: share(result, name),
        "epoch": lambda name: EPOCH_IMAGES / median(rates(result, name)),
    }
    found = {name: value for name in ours if (value := values[quantity](name)) is not None}
    if not found:
        return f"{words}: not measured"
    if quantity == "epoch":
        name = min(found, key=found.get)
        return f"{words}: {found[name]:.1f} s ({name}, from its images a second), {_met(found[name] <= number)}"
    name = max(found, key=found.get)
    shown = f"{found[name]:.0%}" if quantity == "share" else f"{found[name]:.2f}"
    shares = {"the matrix limit": share(result, name), "the roofline": roofline_share(result, name)}
    beside = "".join(f", {reached:.0%} of {limit}" for limit, reached in shares.items() if reached is not None)
    return f"{words}: {shown} ({name}{beside}), {_met(found[name] >= number)}"


def _met(is_met: bool) -> str:
    return "met" if is_met else "missed"


def _systems(result: dict) -> Iterator[str]:
    limits = result["limits"]
    flops = [
        f"{value / 1e12:.3g}{' Tflop/s' * (dtype == 'float32')} in {dtype} ({limits['ways'][dtype]})"
        for dtype, value in limits["flops"].items()
    ]
    if "bfloat16" not in limits["flops"]:
        flops.append("bfloat16 not measured")
    yield f"The device at best: {', '.join(flops)}, {limits['bytes'] / 1e9:.3g} GB/s ({limits['ways']['bytes']})."
    yield ""
    yield (
        "| system | images/s | normflows = 1 | normflows-plain = 1 | reference = 1 | share of the matrix limit "
        "| share of the roofline | memory, MB | first step, s | steps behind it till it is warm, s | parameters |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for name, system in result["systems"].items():
        found = rates(result, name)
        if "out_of_memory" in system or "not_measured" in system:
            reason = "out of memory" if "out_of_memory" in system else f"not measured: {system['not_measured']}"
            yield f"| {name} | {reason} | - | - | - | - | - | - | - | - | - |"
            continue
        against = [ratio(result, name, other) for other in (RIVAL, "normflows-plain", REFERENCE)]
        shares = [share(result, name), roofline_share(result, name)]
        yield (
            f"| {name} | {_number(median(found))} ({_number(min(found))} to {_number(max(found))}) | "
            + " | ".join("-" if each is None else f"{each:.2f}" for each in against)
            + " | "
            + " | ".join("-" if each is None else f"{each:.0%}" for each in shares)
            + f" | {system['bytes'] / 1e6:,.0f} "
            f"| {system['first_step_s']:.2f} | {system['warm_up_s']:.2f} | {system['num_parameters']:,} |"
        )
    for dtype in ("float32", "bfloat16"):
        limit = limit_seconds(result, dtype)
        if limit is not None:
            yield (
                f"| limit, coupling nets in {dtype} | {_number(result['case']['batch_size'] / limit)} "
                f"| - | - | - | 100% | - | - | - | - | - |"
            )


def roofline(rows: list[dict], result: dict, dtype: str) -> Iterator[str]:
    """The table of one type of the coupling nets."""
    batch_size = result["case"]["batch_size"]
    steps = {
        name: batch_size / median(found)
        for name, system in result["systems"].items()
        if name not in NORMFLOWS and coupling_type(system) == dtype and (found := rates(result, name))
    }
    yield "| kind | in a step | bound by | least ms | alone, as reference, ms | alone, as fast, ms | share | of a step |"
    yield "|---|---|---|---|---|---|---|---|"
    total = sum(row["fast_s"] for row in rows)
    for row in rows:
        yield (
            f"| {row['kind']} | {row['count']} | {row['bound']} | {1e3 * row['least_s']:.2f} "
            f"| {1e3 * row['reference_s']:.2f} | {1e3 * row['fast_s']:.2f} | {row['least_s'] / row['fast_s']:.0%} "
            f"| {row['fast_s'] / total:.1%} |"
        )
    least, reference = (sum(row[key] for row in rows) for key in ("least_s", "reference_s"))
    yield (
        f"| all kinds | | | {1e3 * least:.1f} | {1e3 * reference:.1f} | {1e3 * total:.1f} | {least / total:.0%} | 100% |"
    )
    for name, seconds in steps.items():
        yield f"| a step of {name} | | | {1e3 * least:.1f} | | {1e3 * seconds:.1f} | {least / seconds:.0%} | |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
