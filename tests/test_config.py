"""The configuration: what YAML and command lines become, and what is said where they cannot be."""

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeflow.config import Config, ScheduleConfig, load, option_names, parse_arguments
from pipeflow.errors import ConfigError, PipeflowError

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
PUBLISHED = {
    "glow_lr1e-4": ("end_to_end", 1e-4, 2),
    "glow_lr1e-5": ("end_to_end", 1e-5, 3),
    "across2_lr1e-4": ("alternate", 1e-4, 2),
    "across3_lr1e-5": ("alternate", 1e-5, 3),
}


@pytest.fixture
def load_text(tmp_path):
    """`load` of a YAML text, with overrides."""

    def load_it(text: str, **overrides: str) -> Config:
        (tmp_path / "run.yaml").write_text(text)
        return load(str(tmp_path / "run.yaml"), overrides)

    return load_it


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """A folder in which torch and numpy cannot be imported; it comes first on the path of `python -m`."""
    folder = tmp_path_factory.mktemp("without_torch")
    for name in ("torch", "numpy"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    return folder


def said(function, *arguments) -> str:
    """The one line of the ConfigError that a call raises."""
    with pytest.raises(ConfigError) as error:
        function(*arguments)
    message = str(error.value)
    assert isinstance(error.value, PipeflowError) and isinstance(error.value, ValueError)
    assert "\n" not in message
    return message


def from_options(*arguments: str) -> Config:
    """A configuration from a command line."""
    return load(*parse_arguments(list(arguments)))


class TestFilesThatComeAlong:
    def test_quickstart_is_the_default(self):
        assert load(str(CONFIGS / "quickstart.yaml")) == Config()
        assert load(None) == Config()

    @pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
    def test_loads_says_what_it_is_and_has_a_folder_of_its_own(self, file):
        assert Path(load(str(file)).run.dir).name == file.stem
        assert re.match(r"# \S", file.read_text())

    def test_run_folders_differ(self):
        folders = [load(str(file)).run.dir for file in FILES]
        assert len(set(folders)) == len(folders) >= 2

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_published_runs(self, name):
        config = load(str(CONFIGS / "cifar10" / f"{name}.yaml"))
        mode, lr, num_parts = PUBLISHED[name]
        assert (config.schedule.mode, config.optim.lr, config.num_parts) == (mode, lr, num_parts)
        assert (config.schedule.local_epochs, config.schedule.finetune_epochs) == (60, 30)
        assert (config.num_epochs, config.num_local_epochs) == (90, 0 if mode == "end_to_end" else 60)
        assert (config.model.num_blocks, config.model.num_steps, config.model.width) == (3, 32, 512)
        assert (config.model.coupling, config.model.invconv) == ("affine", "lu")
        assert (config.data.name, config.data.num_train, config.data.num_test) == ("cifar10", None, None)
        assert (config.optim.name, config.optim.decay, config.optim.part_lr) == ("adam", "none", None)
        assert (config.parts.split, config.finetune.lr) == ("across", None)
        assert config.schedule.turn == (1, "epochs")

    @pytest.mark.parametrize("file", [file for file in FILES if file.stem.startswith("small_")], ids=lambda f: f.stem)
    def test_small_runs_are_the_prototype_s_size(self, file):
        config = load(str(file))
        assert (config.data.name, config.data.num_train) == ("cifar10", 4992)
        assert (config.model.num_steps, config.model.width, config.optim.decay) == (4, 64, "cosine")
        assert (config.schedule.local_epochs, config.schedule.finetune_epochs) == (12, 6)
        published = re.search(r"_lr(1e-\d)$", file.stem)
        assert config.optim.lr == (float(published[1]) if published else 1e-3)


class TestYaml:
    def test_numbers_that_yaml_reads_as_text(self, load_text):
        assert yaml.safe_load("1e-4") == "1e-4", "the trap this test is about"
        config = load_text("optim: {lr: 1e-4, clip_norm: 1E+2, part_lr: [1e-3, 5e-4, 0.5]}\nfinetune: {lr: 3e-5}")
        assert (config.optim.lr, config.optim.clip_norm, config.finetune.lr) == (1e-4, 100.0, 3e-5)
        assert config.optim.part_lr == (1e-3, 5e-4, 0.5)

    @pytest.mark.parametrize("text", ["1.10", "2020", "yes", "2020-01-01", "-1"])
    def test_text_that_yaml_reads_as_something_else_is_to_be_quoted(self, load_text, text):
        message = said(load_text, f"data: {{path: {text}}}")
        assert message.startswith("data.path: expected text, got ") and "quote it as you mean it" in message
        assert load_text(f"data: {{path: '{text}'}}").data.path == text

    def test_no_wrong_quotes_are_advised(self, load_text):
        """What YAML has made of 1.10 is no longer what was written: to quote '1.1' would be another folder."""
        assert "'1.1'" not in said(load_text, "run: {dir: 1.10}")

    @pytest.mark.parametrize(
        "text, parts",
        [
            ("optim: {lr: 1, lr: 2}", ["'lr' is written twice"]),
            ("optim: {lr: 1}\ndata: {flip: true}\noptim: {ema: 0}", ["'optim' is written twice", "line 1"]),
            ("optim:\n\tlr: 1", ["is not YAML", "'\\t'", "line 2"]),
            ("optim: {lr", ["is not YAML", "line 1"]),
            ("run: {seed: 1}\n---\nrun: {seed: 2}", ["is not YAML", "single document"]),
            ("optim: {? [a] : 2}", ["is not YAML", "unhashable"]),
            ("run: !!python/object/apply:os.getcwd []", ["is not YAML", "python/object"]),
            ("- run\n- data", ["expected sections of options such as 'optim:'", "['run', 'data']"]),
            ("optim", ["expected sections of options", "'optim'"]),
            ("optim: 3", ["optim: has 3 where its options should be"]),
            ("optim:", ["optim: has None where its options should be"]),
            ("optim: [lr, 1]", ["optim: has ['lr', 1] where its options should be"]),
        ],
    )
    def test_what_is_no_configuration(self, load_text, text, parts):
        message = said(load_text, text)
        for part in parts:
            assert part in message

    def test_section_that_is_no_mapping_under_an_override(self, load_text):
        with pytest.raises(ConfigError, match="optim: has 3 where its options should be"):
            load_text("optim: 3", **{"optim.lr": "1"})

    def test_not_utf8(self, tmp_path):
        (tmp_path / "latin.yaml").write_bytes("run: {dir: Übung}".encode("latin-1"))
        assert "is not YAML" in said(load, str(tmp_path / "latin.yaml"))

    def test_missing_file_and_folder(self, tmp_path):
        message = said(load, str(tmp_path / "missing.yaml"))
        assert "missing.yaml: No such file" in message and "configs/" in message
        assert "Is a directory" in said(load, str(tmp_path))

    def test_empty_file_is_the_default(self, load_text):
        assert load_text("# nothing yet\n") == Config()

    def test_overrides_go_over_the_file(self, load_text):
        config = load_text("optim: {lr: 1, ema: 0.5}", **{"optim.lr": "2e-5", "run.seed": "7"})
        assert (config.optim.lr, config.optim.ema, config.run.seed) == (2e-5, 0.5, 7)


class TestNames:
    @pytest.mark.parametrize(
        "settings, parts",
        [
            ({"optims": {}}, ["unknown section 'optims'", "did you mean 'optim'?"]),
            ({"zzz": {}}, ["unknown section 'zzz'", "there are run, data, model"]),
            ({1: {}}, ["unknown section 1", "there are run"]),
            ({"optim": {"lrr": 1}}, ["unknown option 'optim.lrr'", "did you mean 'optim.lr'?"]),
            ({"optim": {1: 2}}, ["unknown option 'optim.1'"]),
            ({"run": {"zzzzzz": 1}}, ["unknown option 'run.zzzzzz'", "there are run.dir, run.seed"]),
            ({"optim": {"local_epochs": 1}}, ["did you mean 'schedule.local_epochs'?"]),
        ],
    )
    def test_unknown(self, settings, parts):
        message = said(Config.from_dict, settings)
        for part in parts:
            assert part in message

    @pytest.mark.parametrize("settings", [[], "optim", None])
    def test_no_sections_at_all(self, settings):
        assert "sections of options" in said(Config.from_dict, settings)


class TestTypes:
    @pytest.mark.parametrize(
        "name, value, wanted",
        [
            ("run.seed", 1.0, "a whole number"),
            ("run.seed", "1.5", "a whole number"),
            ("run.seed", "1e3", "a whole number"),
            ("run.seed", True, "a whole number"),
            ("run.seed", None, "a whole number"),
            ("run.seed", [1], "a whole number"),
            ("data.num_train", "many", "a whole number"),
            ("optim.lr", "fast", "a number"),
            ("optim.lr", False, "a number"),
            ("optim.lr", None, "a number"),
            ("optim.lr", {"a": 1}, "a number"),
            ("finetune.lr", "fast", "a number"),
            ("data.flip", 1, "true or false"),
            ("data.flip", "yes", "true or false"),
            ("data.flip", None, "true or false"),
            ("run.dir", "", "text"),
            ("run.dir", None, "text"),
            ("run.dir", ["a"], "text"),
            ("run.resume", "no", "one of auto, never, must"),
            ("run.resume", False, "one of auto, never, must"),
            ("optim.decay", None, "one of none, cosine"),
            ("optim.part_lr", ["a", 1, 1], "a list of numbers"),
            ("optim.part_lr", [], "a list of numbers"),
            ("optim.part_lr", [1, None, 1], "a list of numbers"),
            ("parts.split", 3, "text or a list of names"),
            ("parts.split", [], "text or a list of names"),
            ("parts.split", ["a.b", 3], "text or a list of names"),
        ],
    )
    def test_wrong_types_are_named(self, name, value, wanted):
        section, _, key = name.partition(".")
        message = said(Config.from_dict, {section: {key: value}})
        assert message.startswith(f"{name}: expected {wanted}, got {value!r}")

    def test_what_is_taken(self):
        config = Config.from_dict(
            {
                "run": {"seed": "3", "dir": "runs/a,b"},
                "data": {"flip": "True", "num_train": "null", "num_test": None, "path": "/data, mine"},
                "optim": {"lr": 1, "ema": "0.5", "part_lr": "1,2e-1,3"},
                "finetune": {"lr": "none"},
                "precision": {"compile": False},
            }
        )
        assert (config.run.seed, config.data.flip, config.data.num_train, config.data.num_test) == (3, True, None, None)
        assert (config.run.dir, config.data.path) == ("runs/a,b", "/data, mine")
        assert config.optim.lr == 1.0 and isinstance(config.optim.lr, float)
        assert (config.optim.ema, config.optim.part_lr, config.finetune.lr) == (0.5, (1.0, 0.2, 3.0), None)

    @pytest.mark.parametrize("split", ["a.b,c.d", "a.b, c.d", "[a.b, c.d]", ["a.b", "c.d"], ("a.b", "c.d")])
    def test_forms_of_a_list(self, split):
        assert Config.from_dict({"parts": {"split": split}}).parts.split == ("a.b", "c.d")

    @pytest.mark.parametrize("split", ["a.b", "[a.b]", ["a.b"]])
    def test_forms_of_a_list_of_one(self, split):
        assert Config.from_dict({"parts": {"split": split, "num": 2}}).parts.split == ("a.b",)


class TestRanges:
    @pytest.mark.parametrize(
        "name, bad, good",
        [
            ("run.seed", -1, 0),
            ("run.seed", 2**63, 2**63 - 1),
            ("data.num_train", 0, 1),
            ("data.num_test", 0, 1),
            ("model.num_blocks", 0, 2),
            ("model.num_steps", 0, 1),
            ("model.width", 0, 1),
            ("parts.num", 0, 1),
            ("schedule.local_epochs", -1, 0),
            ("schedule.finetune_epochs", -1, 0),
            ("optim.lr", 0, 1e-9),
            ("optim.lr", -1e-3, 1e3),
            ("optim.lr", math.nan, 1),
            ("optim.lr", math.inf, 1),
            ("optim.part_lr", [1, 0, 1], [1, 2, 3]),
            ("optim.part_lr", [1, math.nan, 1], [1, 2, 3]),
            ("optim.batch_size", 0, 1),
            ("optim.warmup_steps", -1, 0),
            ("optim.clip_norm", -0.1, 0),
            ("optim.clip_norm", math.nan, 1e9),
            ("optim.ema", -0.1, 0),
            ("optim.ema", 1, 0.9999),
            ("optim.ema", math.nan, 0.5),
            ("link.depth", 0, 1),
            ("run.heartbeat_timeout_s", 0, 0.1),
            ("link.timeout_s", 0, 0.1),
            ("link.timeout_s", math.inf, 1),
            ("finetune.lr", 0, 1),
            ("eval.every_epochs", 0, 1),
            ("eval.num_images", 0, 1),
            ("checkpoint.every_epochs", 0, 1),
            ("checkpoint.keep", 0, 1),
            ("data.name", "cifar100", "module:function"),
            ("data.name", "a:b:c", "cifar10"),
            ("data.name", ":", "cifar10"),
            ("model.name", "realnvp", "package.module:function"),
            ("model.name", "module:", "glow"),
        ],
    )
    def test_bounds(self, name, bad, good):
        section, _, key = name.partition(".")
        message = said(Config.from_dict, {section: {key: bad}})
        assert message.startswith(f"{name}: ") and str(bad[1] if isinstance(bad, list) else bad) in message
        Config.from_dict({section: {key: good}})

    def test_every_number_has_a_lower_bound(self):
        """A new option must not come without one."""
        for section, values in Config().to_dict().items():
            for name, value in values.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    with pytest.raises(ConfigError, match=rf"{section}\.{name}: "):
                        Config.from_dict({section: {name: -1}})

    def test_nothing_to_train(self):
        message = said(Config.from_dict, {"schedule": {"local_epochs": 0, "finetune_epochs": 0}})
        assert "schedule.local_epochs" in message and "schedule.finetune_epochs" in message

    def test_images_need_a_path(self):
        assert said(Config.from_dict, {"data": {"name": "images"}}).startswith("data.path: ")
        Config.from_dict({"data": {"name": "images", "path": "photos.zip"}})


class TestParts:
    @pytest.mark.parametrize(
        "parts, num_parts",
        [
            ({"split": "across", "num": 1}, 1),
            ({"split": "across", "num": 4}, 4),
            ({"split": "balanced", "num": 7}, 7),
            ({"split": "blocks", "num": 3}, 3),
            ({"split": "blocks", "num": None}, 3),
            ({"split": ["a.b", "c.d"], "num": None}, 3),
            ({"split": ["a.b", "c.d"], "num": 3}, 3),
        ],
    )
    def test_number_of_parts(self, parts, num_parts):
        assert Config.from_dict({"parts": parts}).num_parts == num_parts

    def test_a_flow_of_one_s_own_split_by_blocks_tells_later(self):
        config = Config.from_dict({"model": {"name": "mine:flow"}, "parts": {"split": "blocks", "num": None}})
        assert config.num_parts is None
        config.check_world_size(100)

    @pytest.mark.parametrize(
        "sections, parts",
        [
            ({"parts": {"split": "blocks", "num": 2}}, ["parts.num: 2", "gives 3 parts", "set parts.num to 3 or null"]),
            ({"parts": {"split": ["a.b"], "num": 3}}, ["parts.num: 3", "a.b", "gives 2 parts"]),
            ({"parts": {"num": 5}}, ["parts.num: 5 parts across blocks need 4 blocks", "model.num_blocks is 3"]),
            ({"model": {"num_blocks": 1}}, ["parts.num: 3 parts across", "at most 2 parts", "balanced"]),
            ({"parts": {"num": None}}, ["parts.num: a split 'across' needs"]),
            ({"parts": {"split": "balanced", "num": None}}, ["parts.num: a split 'balanced' needs"]),
            ({"parts": {"split": "halves"}}, ["parts.split: expected blocks, across, balanced", "'halves'"]),
            ({"optim": {"part_lr": [1, 2]}}, ["optim.part_lr: 2 rates", "for 3 parts"]),
            ({"optim": {"part_lr": "1e-3"}}, ["optim.part_lr: 1 rates (0.001)"]),
        ],
    )
    def test_options_that_do_not_agree(self, sections, parts):
        message = said(Config.from_dict, sections)
        for part in parts:
            assert part in message

    def test_more_workers_than_parts(self):
        Config().check_world_size(1)
        Config().check_world_size(3)
        message = said(Config().check_world_size, 4)
        assert "4 workers for 3 parts" in message and "--nproc_per_node=3" in message
        message = said(Config.from_dict({"parts": {"split": ["a.b"], "num": None}}).check_world_size, 3)
        assert "parts.split a.b, parts.num null" in message

    @pytest.mark.parametrize("schedule", [{"mode": "end_to_end"}, {"local_epochs": 0}])
    def test_data_parallel_end_to_end_takes_any_number_of_workers(self, schedule):
        Config.from_dict({"schedule": schedule, "finetune": {"parallel": "ddp"}}).check_world_size(8)
        for sections in ({"schedule": schedule}, {"finetune": {"parallel": "ddp"}}):
            assert "8 workers for 3 parts" in said(Config.from_dict(sections).check_world_size, 8)

    def test_more_data_parallel_workers_than_images_in_a_batch_are_told_before_the_local_epochs(self):
        sections = {"parts": {"num": 3, "replicas": 2}, "optim": {"batch_size": 5}, "finetune": {"parallel": "ddp"}}
        message = said(Config.from_dict(sections).check_world_size, 6)
        assert "finetune.parallel: ddp" in message and "5 images" in message and "6 workers" in message
        Config.from_dict({**sections, "schedule": {"finetune_epochs": 0}}).check_world_size(6)


class TestTurns:
    @pytest.mark.parametrize(
        "text, turn",
        [
            ("1 epoch", (1, "epochs")),
            ("3 epochs", (3, "epochs")),
            ("1 step", (1, "steps")),
            (" 200  steps ", (200, "steps")),
        ],
    )
    def test_forms(self, text, turn):
        assert ScheduleConfig(alternate_every=text).turn == turn
        assert Config.from_dict({"schedule": {"alternate_every": text}}).schedule.alternate_every == text

    @pytest.mark.parametrize("text", ["epoch", "1", "0 steps", "-1 steps", "1.5 epochs", "1epoch", "2 days", "² steps"])
    def test_other_forms(self, text):
        message = said(Config.from_dict, {"schedule": {"alternate_every": text}})
        assert message == f"schedule.alternate_every: expected '1 epoch' or '200 steps', got {text!r}."


class TestRoundTrip:
    def test_a_configuration_with_everything_changed(self):
        config = Config.from_dict(
            {
                "run": {"dir": "runs/'quoted', \"twice\"", "seed": 2**63 - 1, "resume": "must", "device": "cpu"},
                "data": {"name": "mine:images", "path": "1.10", "num_train": 7, "num_test": 8, "flip": True},
                "model": {"name": "mine:flow", "coupling": "additive", "invconv": "plain"},
                "parts": {"split": ["a.b", "c.d"], "num": 3, "head": "standard"},
                "schedule": {
                    "mode": "alternate",
                    "local_epochs": 1,
                    "finetune_epochs": 0,
                    "alternate_every": "9 steps",
                },
                "optim": {
                    "name": "adamax",
                    "lr": 1e-5,
                    "part_lr": [1e-5, 1e-300, 0.1 + 0.2],
                    "decay": "none",
                    "ema": 0.9,
                },
                "precision": {"coupling": "bfloat16", "compile": True},
                "link": {"backend": "gloo", "dtype": "bfloat16", "depth": 1, "timeout_s": 1e9},
                "finetune": {"parallel": "ddp", "lr": 1e-5},
                "eval": {"every_epochs": 2, "num_images": None},
                "checkpoint": {"every_epochs": 3, "keep": 4},
            }
        )
        assert Config.from_dict(config.to_dict()) == config
        text = yaml.safe_dump(config.to_dict(), sort_keys=False)
        assert Config.from_dict(yaml.safe_load(text)) == config
        assert isinstance(config.parts.split, tuple) and isinstance(config.to_dict()["parts"]["split"], list)

    @pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
    def test_files(self, file, load_text):
        config = load(str(file))
        assert load_text(yaml.safe_dump(config.to_dict())) == config

    def test_to_dict_has_every_option(self):
        names = [f"{section}.{name}" for section, values in Config().to_dict().items() for name in values]
        assert names == option_names()

    def test_a_configuration_does_not_change(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            Config().optim.lr = 1.0


class TestCommandLine:
    def test_both_forms(self):
        arguments = ["--config", "a.yaml", "--optim.lr", "1e-4", "--run.seed=1", "--run.dir=a=b", "--data.path="]
        overrides = {"optim.lr": "1e-4", "run.seed": "1", "run.dir": "a=b", "data.path": ""}
        assert parse_arguments(arguments) == ("a.yaml", overrides)
        assert parse_arguments(["--config=a.yaml"]) == ("a.yaml", {})
        assert parse_arguments([]) == (None, {})

    def test_the_list_is_left_as_it_is(self):
        arguments = ["--run.seed", "1"]
        parse_arguments(arguments)
        assert arguments == ["--run.seed", "1"]

    @pytest.mark.parametrize(
        "arguments, parts",
        [
            (["--optim.lr"], ["--optim.lr has no value", "write --optim.lr VALUE"]),
            (["--config"], ["--config has no value"]),
            (["--optim.lr", "--run.seed", "1"], ["--optim.lr has no value"]),
            (["--optim.lr", "1", "--optim.lr=2"], ["--optim.lr is given twice ('1' and '2')"]),
            (["--config", "a", "--config", "b"], ["--config is given twice"]),
            (["1e-4"], ["'1e-4' is not an option", "--section.name value"]),
            (["-lr", "1"], ["'-lr' is not an option"]),
            (["--optim.lrr", "1"], ["unknown option 'optim.lrr'", "did you mean 'optim.lr'?"]),
            (["--lr", "1"], ["unknown option 'lr'", "did you mean 'optim.lr'?"]),
            (["--optim.lrr"], ["unknown option 'optim.lrr'"]),
            (["--zzz", "1"], ["unknown option 'zzz'", "there are run, data"]),
            (["--"], ["unknown option ''"]),
        ],
    )
    def test_what_is_no_option(self, arguments, parts):
        message = said(parse_arguments, arguments)
        for part in parts:
            assert part in message

    def test_values_that_begin_with_a_minus(self):
        """A single one is a value: a negative number is refused for what it is. Two need the form with '='."""
        for arguments in (["--optim.lr", "-1e-3"], ["--optim.lr=-1e-3"]):
            assert said(from_options, *arguments) == "optim.lr: must be a number above 0, got -0.001."
        assert from_options("--run.dir", "-x").run.dir == "-x"
        assert from_options("--run.dir=--x").run.dir == "--x"
        assert "--run.dir has no value" in said(from_options, "--run.dir", "--x")

    def test_values_become_their_types(self):
        config = from_options("--optim.part_lr", "1e-3,5e-4,1", "--data.flip=true", "--eval.num_images", "null")
        assert config.optim.part_lr == (1e-3, 5e-4, 1.0)
        assert config.data.flip is True and config.eval.num_images is None

    def test_empty_values(self):
        assert said(from_options, "--run.dir=").startswith("run.dir: expected text, got ''")
        assert said(from_options, "--optim.lr", "").startswith("optim.lr: expected a number, got ''")


class TestEntry:
    @pytest.fixture
    def launch(self, without_torch):
        def launch_it(*arguments: str) -> subprocess.CompletedProcess:
            command = [sys.executable, "-m", "pipeflow.launch", *arguments]
            return subprocess.run(command, cwd=without_torch, capture_output=True, text=True, timeout=60)

        return launch_it

    def test_a_mistyped_option_is_one_line_before_anything_slow(self, launch):
        result = launch("--optim.lrr", "1")
        assert result.returncode == 1
        assert result.stderr == "error: unknown option 'optim.lrr': did you mean 'optim.lr'?\n"
        assert result.stdout == ""

    def test_help_lists_every_option_with_its_default(self, launch):
        result = launch("--help")
        assert result.returncode == 0 and result.stderr == ""
        for section, values in Config().to_dict().items():
            for name, value in values.items():
                (line,) = re.findall(rf"^  --{section}\.{name} .*$", result.stdout, re.MULTILINE)
                shown = "null" if value is None else str(value)
                assert line.endswith(f"[{shown}]") and len(line.split()) > 2

    def test_config_imports_neither_torch_nor_numpy(self, without_torch):
        program = (
            "import sys, pipeflow.config\npipeflow.config.load(None)\n"
            "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'numpy')])"
        )
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert result.stdout == "[]\n", result.stderr

    def test_other_workers_leave_the_word_to_rank_0(self, monkeypatch, capsys):
        from pipeflow import launch

        monkeypatch.setattr(launch.threading.Event, "wait", lambda self, timeout=None: True)
        for rank, expected in [("0", "error: --optim.lr has no value: write --optim.lr VALUE.\n"), ("1", "")]:
            monkeypatch.setenv("RANK", rank)
            assert launch.main(["--optim.lr"]) == 1
            assert capsys.readouterr().err == expected
