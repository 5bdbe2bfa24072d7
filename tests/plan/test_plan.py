import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pipeflow.config import Config
from pipeflow.errors import ConfigError, DataError
from pipeflow.plan import Images, make_plan, print_phases, print_plan
from pipeflow.plan.traffic import eval_link_bytes, training_share
from pipeflow.rundir.reading import read_config
from pipeflow.training.schedule import training_macs


def plan_of(**sections):
    return make_plan(Config.from_dict({"data": {"num_train": 640, "num_test": 100}, **sections}))


def printed(show, plan, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(plan, console)
    return console.file.getvalue()


def test_a_plan_is_what_the_run_then_did(finished_run):
    summary = json.loads((finished_run / "summary.json").read_text())
    config = read_config(finished_run)
    plan = make_plan(config)
    assert [part.describe() for part in plan.parts] == summary["parts"]
    assert plan.forward_bytes == summary["bytes"]["forward"]
    assert plan.evaluation_bytes == summary["bytes"]["eval"]
    batch_size = config.optim.batch_size
    assert [training_macs(phase, plan.parts, batch_size) for phase in plan.phases] == [
        record["macs"] for record in summary["epochs"]
    ]
    assert [phase.trained for phase in plan.phases] == [record["trained"] for record in summary["epochs"]]


@pytest.mark.parametrize("finetune_epochs, ema", [(0, 0.9), (1, 0.0)])
def test_before_the_gather_all_test_images_are_evaluated_once(finetune_epochs, ema):
    """Beside the 40 images at the start and after each of 3 epochs."""
    schedule = {"local_epochs": 3, "finetune_epochs": finetune_epochs}
    plan = plan_of(schedule=schedule, optim={"ema": ema}, eval={"num_images": 40})
    assert plan.evaluation_bytes == sum(eval_link_bytes(plan.parts, 4 * 40 + 100)) * (2 if ema else 1)


def test_a_plan_loads_no_images_which_may_be_described_instead(monkeypatch):
    def fail(*arguments):
        raise AssertionError("images were loaded")

    monkeypatch.setattr("pipeflow.plan.plan.load_data", fail)
    monkeypatch.setattr("pipeflow.data.sources.load_images", fail)
    assert plan_of(data={"name": "cifar10", "path": "nowhere"}).phases[0].steps == 781
    assert plan_of(data={"name": "cifar10", "num_train": 1000}).phases[0].steps == 15
    assert plan_of(data={"name": "dead_leaves", "num_train": 9000}).phases[0].steps == 140
    config = Config.from_dict({"data": {"name": "images", "path": "nowhere"}})
    plan = make_plan(config, Images((3, 64, 64), 6400, 10))
    assert (plan.parts[0].input_shape, plan.phases[0].steps, plan.num_test) == ((3, 64, 64), 100, 10)


def test_of_a_folder_the_files_are_counted_and_the_first_is_measured(tmp_path):
    for part, num in (("train", 5), ("test", 2)):
        (tmp_path / part).mkdir()
        for index in range(num):
            pixels = np.zeros((16, 24, 3) if index == 0 else (1, 1, 3), np.uint8)  # only the first is looked at
            Image.fromarray(pixels).save(tmp_path / part / f"{index}.png")
    data = {"name": "images", "path": str(tmp_path)}
    plan = plan_of(data=data, optim={"batch_size": 2})
    assert (plan.phases[0].steps, plan.num_test, plan.parts[0].input_shape) == (2, 2, (3, 16, 24))
    with pytest.raises(DataError, match=r"data\.num_train is 6, but there are only 5"):
        plan_of(data={**data, "num_train": 6})
    with pytest.raises(ConfigError, match=r"batch_size is 64, but there are 5"):
        plan_of(data=data)


@pytest.mark.parametrize("num, low, high", [(2, 0.70, 0.72), (3, 0.63, 0.65)])
def test_the_published_runs_cost_what_was_published(num, low, high):
    """60 alternate and 30 end-to-end epochs took 720 of 1026 minutes with 2 parts, 647 of 1020 with 3.

    The shares of the blocks are those of the published 32 steps already with 4.
    """
    plan = plan_of(
        data={"name": "cifar10"},
        model={"num_blocks": 3, "num_steps": 4, "width": 512},
        parts={"split": "across", "num": num},
        schedule={"mode": "alternate", "local_epochs": 60, "finetune_epochs": 30},
    )
    assert [phase.steps for phase in plan.phases] == [781] * 90
    assert low <= training_share(plan.phases, plan.parts) <= high


@pytest.mark.parametrize("mode", ["concurrent", "end_to_end"])
def test_concurrent_and_end_to_end_cost_the_same(mode):
    plan = plan_of(schedule={"mode": mode})
    assert training_share(plan.phases, plan.parts) == 1


@pytest.mark.parametrize("section", ["data", "model"])
def test_what_is_given_from_python_cannot_be_planned(section):
    with pytest.raises((ConfigError, DataError), match="from Python"):
        plan_of(**{section: {"name": "python"}})


def test_a_plan_fits_a_terminal_and_says_it_all():
    plan = plan_of(
        data={"name": "cifar10"},
        model={"num_steps": 4, "width": 512},
        schedule={"mode": "alternate", "local_epochs": 4, "finetune_epochs": 1},
    )
    text = printed(print_plan, plan)
    assert max(map(len, text.splitlines())) <= 80
    for words in (
        "blocks.0.squeeze", "to blocks.0.steps.1", "12x16x16", "786 kB", "614 MB",
        "4 alternate + 1 finetune, 781 batches of 64 images",
        "781, 781, 1,562 of the parts + 781 of the whole flow",
        "of 5 epochs end to end", "by link), nothing backward", "with 3 workers, one for each part",
    ):  # fmt: skip
        assert words in text


def test_cuts_by_time_are_not_known_before_the_run():
    said = "by multiply-adds here; the run times the layers itself and may cut elsewhere"
    timed = plan_of(parts={"split": "balanced", "num": 2, "balance": "time"})
    text = printed(print_plan, timed, width=100)
    assert said in text and max(map(len, printed(print_plan, timed).splitlines())) <= 80
    assert said not in printed(print_plan, plan_of(parts={"split": "balanced", "num": 2}), width=100)


TURNS = {
    "epochs": [
        "0 alternate 2 0 1 - 10 yes yes 7.9, 3.9",
        "1 alternate 0 - 1 2 10 yes yes -",
        "2 alternate 1 0 2 10 yes yes 7.9, 0",
        "3 alternate 2 0 1 - 10 yes yes 7.9, 3.9",
        "4 finetune whole flow - - 10 yes yes -",
    ],
    "1 steps": ["0 alternate turns of 1 batch: - - 10 yes yes 5.5, 1.6", "2 0 1 ..."],
    "7 steps": [
        "0 alternate 0 for 7, 1 for 3 - 2 10 yes yes 2.4, 0",
        "1 alternate 1 for 4, 2 for 6 0 - 10 yes yes 7.9, 2.4",
    ],
}


@pytest.mark.parametrize("every", TURNS)
def test_phases_with_turns_of_an_epoch_or_some_batches(every):
    schedule = {"mode": "alternate", "local_epochs": 4, "finetune_epochs": 1}
    plan = plan_of(schedule={**schedule, **({} if every == "epochs" else {"alternate_every": every})})
    lines = printed(print_phases, plan).splitlines()
    assert max(map(len, lines)) <= 80
    assert [" ".join(line.split()) for line in lines[2 : 2 + len(TURNS[every])]] == TURNS[every]
    assert ("'2 for 50' is part 2 for 50 batches" in lines[-1]) == (every == "7 steps")
