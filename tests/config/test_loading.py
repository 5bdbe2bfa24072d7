"""YAML and values of options: how they are read, and the messages about those that cannot be read."""

import re

import pytest
import yaml

from pipeflow.config import Config, load
from tests.config.errors import message_of, refused


@pytest.fixture
def load_text(tmp_path):
    """`load` of a YAML text, with overrides."""

    def load_it(text: str, **overrides: str) -> Config:
        (tmp_path / "run.yaml").write_text(text)
        return load(str(tmp_path / "run.yaml"), overrides)

    return load_it


class TestYaml:
    def test_numbers_that_yaml_reads_as_text(self, load_text):
        assert yaml.safe_load("1e-4") == "1e-4", "the trap this test is about"
        config = load_text("optim: {lr: 1e-4, clip_norm: 1E+2, part_lr: [1e-3, 5e-4, 0.5]}\nfinetune: {lr: 3e-5}")
        assert (config.optim.lr, config.optim.clip_norm, config.finetune.lr) == (1e-4, 100.0, 3e-5)
        assert config.optim.part_lr == (1e-3, 5e-4, 0.5)

    @pytest.mark.parametrize("text", ["1.10", "2020", "yes", "2020-01-01", "-1"])
    def test_text_that_yaml_reads_as_something_else_must_be_quoted(self, load_text, text):
        """YAML makes 1.1 of 1.10, so the message must not advise to quote '1.1', which is another folder."""
        message = message_of(load_text, f"data: {{path: {text}}}")
        assert re.match(r"data.path: expected text, got .*quote it as you mean it, '...'\.$", message)
        assert load_text(f"data: {{path: '{text}'}}").data.path == text

    @pytest.mark.parametrize(
        "text, parts",
        [
            ("optim: {lr: 1, lr: 2}", ["'lr' is written twice"]),
            ("optim: {lr: 1}\ndata: {flip: true}\noptim: {ema: 0}", ["'optim' is written twice", "line 1"]),
            ("optim:\n\tlr: 1", ["is not YAML", "'\\t'", "line 2"]),
            ("optim: {lr", ["is not YAML", "line 1"]),
            ("- run\n- data", ["expected sections of options such as 'optim:'", "['run', 'data']"]),
            ("optim: 3", ["optim: has 3 where its options should be"]),
            ("optim:", ["optim: has None where its options should be"]),
        ],
    )
    def test_texts_that_are_no_configuration(self, load_text, text, parts):
        message = message_of(load_text, text)
        assert all(part in message for part in parts), message

    def test_files_that_cannot_be_read(self, tmp_path):
        (tmp_path / "latin.yaml").write_bytes("run: {dir: Übung}".encode("latin-1"))
        assert "is not YAML" in message_of(load, str(tmp_path / "latin.yaml"))
        message = message_of(load, str(tmp_path / "missing.yaml"))
        assert "missing.yaml: No such file" in message and "`pipeflow configs` lists them" in message
        assert "Is a directory" in message_of(load, str(tmp_path))

    def test_overrides_go_over_the_file(self, load_text):
        assert load_text("# nothing yet\n") == Config()
        with pytest.raises(ValueError, match="optim: has 3 where its options should be"):
            load_text("optim: 3", **{"optim.lr": "1"})
        config = load_text("optim: {lr: 1, ema: 0.5}", **{"optim.lr": "2e-5", "run.seed": "7"})
        assert (config.optim.lr, config.optim.ema, config.run.seed) == (2e-5, 0.5, 7)


@pytest.mark.parametrize(
    "settings, parts",
    [
        ({"optims": {}}, ["unknown section 'optims'", "did you mean 'optim'?"]),
        ({"zzz": {}}, ["unknown section 'zzz'", "there are run, data, model"]),
        ({1: {}}, ["unknown section 1", "there are run"]),
        ({"optim": {"lrr": 1}}, ["unknown option 'optim.lrr'", "did you mean 'optim.lr'?"]),
        ({"run": {"zzzzzz": 1}}, ["unknown option 'run.zzzzzz'", "there are run.dir, run.seed"]),
        ({"optim": {"local_epochs": 1}}, ["did you mean 'schedule.local_epochs'?"]),
        (None, ["sections of options"]),
    ],
)
def test_unknown_names(settings, parts):
    message = message_of(Config.from_dict, settings)
    assert all(part in message for part in parts)


@pytest.mark.parametrize(
    "name, value, wanted",
    [
        ("run.seed", 1.0, "a whole number"),
        ("run.seed", True, "a whole number"),
        ("run.seed", None, "a whole number"),
        ("data.num_train", "many", "a whole number"),
        ("optim.lr", "fast", "a number"),
        ("optim.lr", "", "a number"),
        ("optim.lr", False, "a number"),
        ("data.flip", 1, "true or false"),
        ("data.channels", 2, "one of 1, 3"),
        ("data.channels", True, "one of 1, 3"),
        ("run.dir", "", "text"),
        ("run.dir", ["a"], "text"),
        ("run.resume", "no", "one of auto, never, must"),
        ("optim.decay", None, "one of none, cosine"),
        ("optim.part_lr", ["a", 1, 1], "a list of numbers"),
        ("optim.part_lr", [1, None, 1], "a list of numbers"),
        ("parts.split", ["a.b", 3], "text or a list of names"),
    ],
)
def test_wrong_types_are_named(name, value, wanted):
    assert refused(name, value).startswith(f"{name}: expected {wanted}, got {value!r}")


def test_forms_of_values():
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
    channels = [
        Config.from_dict({"data": {"name": "a:b", "channels": form}}).data.channels for form in (1, "3", "null")
    ]
    assert channels == [1, 3, None]
    assert config.optim.lr == 1.0 and isinstance(config.optim.lr, float)
    assert (config.optim.ema, config.optim.part_lr, config.finetune.lr) == (0.5, (1.0, 0.2, 3.0), None)


@pytest.mark.parametrize(
    "forms, names",
    [
        (["a.b,c.d", "a.b, c.d", "[a.b, c.d]", ["a.b", "c.d"], ("a.b", "c.d")], ("a.b", "c.d")),
        (["a.b", "[a.b]", ["a.b"]], ("a.b",)),
    ],
)
def test_forms_of_a_list(forms, names):
    for split in forms:
        assert Config.from_dict({"parts": {"split": split, "num": None}}).parts.split == names
