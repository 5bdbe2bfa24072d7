"""The runs that a sweep's file describes, and what is said of files that describe none."""

import pytest
import yaml

from pipeflow.config import Config
from pipeflow.errors import ConfigError
from pipeflow.sweep.runs import read_sweep


@pytest.fixture
def sweep_of(tmp_path):
    """Reads a sweep from its keys."""

    def read(**keys):
        path = tmp_path / "rates.yaml"
        path.write_text(yaml.safe_dump(keys, sort_keys=False))
        return read_sweep(path)

    return read


def test_every_combination_is_a_run(sweep_of):
    sweep = sweep_of(
        options={"schedule.local_epochs": 3},
        grid={"optim.lr": [1e-3, 2e-3], "parts.head": ["gaussian", "autoregressive"]},
        seeds=[0, 7],
    )
    assert [run.name for run in sweep.runs[:3]] == [
        "lr=0.001-head=gaussian-seed=0",
        "lr=0.001-head=gaussian-seed=7",
        "lr=0.001-head=autoregressive-seed=0",
    ]
    assert len(sweep.runs) == 8 and str(sweep.out) == "runs/rates" and sweep.workers == 1
    last = sweep.runs[-1]
    assert last.options == {"optim.lr": 2e-3, "parts.head": "autoregressive", "run.seed": 7} and last.arm == ""
    assert last.config == Config.from_dict(
        {
            "run": {"dir": f"runs/rates/{last.name}", "seed": 7, "figures": False},
            "optim": {"lr": 2e-3},
            "parts": {"head": "autoregressive"},
            "schedule": {"local_epochs": 3},
        }
    )


def test_an_arm_goes_over_what_is_common(sweep_of):
    sweep = sweep_of(
        out="~/there",
        grid={"optim.lr": [1e-3, 2e-3]},
        seeds=[1],
        arms={
            "whole": {"options": {"schedule.mode": "end_to_end"}, "seeds": [2, 3]},
            "parts": {"grid": {"optim.lr": [4e-3], "parts.num": [2, 3]}},
            "fixed": {"options": {"optim.lr": 5e-3}},
            "plain": None,
        },
    )
    assert "~" not in str(sweep.out)
    found = {run.name: (run.arm, run.config.optim.lr, run.config.run.seed) for run in sweep.runs}
    assert found == {
        "whole-lr=0.001-seed=2": ("whole", 1e-3, 2),
        "whole-lr=0.001-seed=3": ("whole", 1e-3, 3),
        "whole-lr=0.002-seed=2": ("whole", 2e-3, 2),
        "whole-lr=0.002-seed=3": ("whole", 2e-3, 3),
        "parts-lr=0.004-num=2-seed=1": ("parts", 4e-3, 1),
        "parts-lr=0.004-num=3-seed=1": ("parts", 4e-3, 1),
        "fixed-seed=1": ("fixed", 5e-3, 1),
        "plain-lr=0.001-seed=1": ("plain", 1e-3, 1),
        "plain-lr=0.002-seed=1": ("plain", 2e-3, 1),
    }
    assert all(run.config.schedule.mode == "end_to_end" for run in sweep.runs if run.arm == "whole")


def test_the_configuration_is_looked_for_beside_the_file(tmp_path, sweep_of):
    (tmp_path / "base.yaml").write_text("optim: {lr: 0.5}\nrun: {figures: true}\n")
    (run,) = sweep_of(config="base.yaml", options={"optim.batch_size": 8}).runs
    assert (run.config.optim.lr, run.config.optim.batch_size, run.config.run.figures) == (0.5, 8, True)


def test_a_configuration_whose_section_is_none_is_named(tmp_path, sweep_of):
    (tmp_path / "base.yaml").write_text("optim: 3\n")
    with pytest.raises(ConfigError, match="optim: has 3 where its options should be"):
        sweep_of(config="base.yaml", grid={"optim.lr": [1e-3]})


def test_an_option_that_the_configuration_should_not_have_is_not_blamed_on_the_sweep(tmp_path, sweep_of):
    (tmp_path / "base.yaml").write_text("optim: {rate: 3}\n")
    with pytest.raises(ConfigError, match="rates.yaml: arms.a: config base.yaml: unknown option 'optim.rate'"):
        sweep_of(arms={"a": {"config": "base.yaml"}})


def test_names_keep_their_section_where_two_would_be_alike(sweep_of):
    names = {
        run.name for run in sweep_of(grid={"link.dtype": ["int8"], "finetune.lr": [1.0], "optim.lr": [0.1, 0.2]}).runs
    }
    assert names == {f"dtype=int8-finetune.lr=1.0-optim.lr={lr}-seed=0" for lr in (0.1, 0.2)}


def test_a_list_of_names_is_one_value(sweep_of):
    cuts = [["blocks.0.steps.1"], ["blocks.0.steps.1", "blocks.1.steps.1"]]
    sweep = sweep_of(grid={"parts.split": cuts})
    assert [list(run.config.parts.split) for run in sweep.runs] == cuts
    assert sweep.runs[1].name == "split=blocks.0.steps.1,blocks.1.steps.1-seed=0"


def test_values_are_those_of_the_configuration(sweep_of):
    """1e-3 is text to YAML."""
    sweep = sweep_of(grid={"optim.lr": ["1e-3", 2]}, arms={"a": {"options": {"optim.part_lr": "1e-3,2e-3,3e-3"}}})
    assert [run.name for run in sweep.runs] == ["a-lr=0.001-seed=0", "a-lr=2.0-seed=0"]
    assert sweep.runs[0].options == {"optim.part_lr": [1e-3, 2e-3, 3e-3], "optim.lr": 1e-3, "run.seed": 0}


def test_without_seeds_the_configurations_own_stays(tmp_path, sweep_of):
    (tmp_path / "base.yaml").write_text("run: {seed: 7}\n")
    (run,) = sweep_of(config="base.yaml").runs
    assert (run.name, run.options, run.config.run.seed) == ("seed=7", {"run.seed": 7}, 7)


def test_names_keep_the_letters_of_all_scripts(sweep_of):
    assert [run.name for run in sweep_of(arms={"größe": None, "grüße": None, "ηλ/1": None}).runs] == [
        "größe-seed=0",
        "grüße-seed=0",
        "ηλ_1-seed=0",
    ]


def test_a_long_name_is_shortened_to_what_a_disk_takes(sweep_of):
    cuts = [f"blocks.{block}.steps.{step}" for block in range(3) for step in range(1, 32)]
    keys = {"grid": {"parts.split": [cuts, cuts[:-1]]}, "seeds": [0, 1], "arms": {"ä" * 90: None}}
    names = [run.name for run in sweep_of(**keys).runs]
    assert len(set(names)) == 4 and all(len(name.encode()) < 240 for name in names)
    assert names[0].startswith("ä" * 90) and names[0].endswith("-seed=0")
    assert names == [run.name for run in sweep_of(**keys).runs]


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"grids": {}}, "unknown key 'grids', did you mean 'grid'"),
        ({"grid": {"optim.rate": [1]}}, "unknown option 'optim.rate'"),
        ({"grid": {"optim.lr": 1e-3}}, "grid: optim.lr: expected a list of values, got 0.001"),
        ({"grid": {"optim.lr": []}}, "grid: optim.lr: expected a list of values"),
        ({"grid": {"optim.lr": [1e-3, -1]}}, "lr=-1-seed=0: optim.lr"),
        ({"grid": {"optim.lr": ["1e-3", 1e-3]}}, "two runs are called 'lr=0.001-seed=0': a value stands twice"),
        ({"arms": {"a b": {}, "a_b": {}}}, "two runs are called 'a_b-seed=0': names of folders leave out what tells"),
        ({"arms": {}}, "arms: has none: name one, such as arms: {plain: {}}, or leave arms out"),
        ({"options": {"run.dir": "here"}}, "run.dir is the sweep's own: set out instead"),
        ({"options": {"run.seed": 1}}, "run.seed is the sweep's own: set seeds instead"),
        ({"options": ["optim.lr"]}, "options: expected names with values"),
        ({"arms": {"a": {"grd": {}}}}, "arms.a: unknown key 'grd', did you mean 'grid'"),
        ({"arms": {"a": 3}}, "arms.a: expected names with values, got 3"),
        ({"seeds": 3}, "seeds: expected a list of whole numbers, got 3"),
        ({"seeds": ["x"]}, "run.seed"),
        ({"out": 3}, "out: expected the path of a folder"),
        ({"workers": 0}, "workers: expected a whole number, 1 or more, got 0"),
        ({"workers": 9}, "9 workers"),
        ({"config": "nowhere.yaml"}, "rates.yaml: config nowhere.yaml, also looked for beside this file: "),
        ({"arms": {"a": {"config": "nowhere.yaml"}}}, "arms.a: config nowhere.yaml"),
    ],
)
def test_a_file_that_cannot_be_is_named_with_what_is_wrong(sweep_of, keys, message):
    with pytest.raises(ConfigError) as error:
        sweep_of(**keys)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text, message", [("- a", "expected out, config"), ("a: [", "is not YAML"), (None, "No such")])
def test_a_file_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "sweep.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_sweep(path)
