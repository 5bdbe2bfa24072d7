"""Configurations and descriptions of machines made to do harm: each gets one error that names it."""

import pytest

import pipeflow
from pipeflow.config import Config, load
from pipeflow.errors import ConfigError
from pipeflow.plan.predict.machines import read_machines
from tests.hostile.harmful import NO_FILES, YAMLS
from tests.hostile.refusals import files_under, refusal

MACHINES = {
    "so many workers": ("workers: 1000000000000", "1,000,000 or fewer"),
    "a number beyond floats": (f"flops: 0x{'f' * 1000}", "flops"),
    "a long text": (f"flops: {'9' * 200_000} x", "flops"),
    "a number of many digits": (f"latency: '1e{'9' * 100_000}'", "latency"),
}
CASES = [*((load, *case) for case in YAMLS.values()), *((read_machines, *case) for case in MACHINES.values())]


@pytest.mark.parametrize("read, text, words", CASES, ids=[*YAMLS, *MACHINES])
def test_yaml(read, text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.yaml").write_text(text)
    assert words in refusal(ConfigError, read, "some.yaml")
    assert files_under(tmp_path) == {"some.yaml"}


@pytest.mark.parametrize("case", NO_FILES)
def test_yaml_that_is_no_file(case, tmp_path):
    NO_FILES[case](tmp_path / "some.yaml")
    for read in (load, read_machines):
        assert "some.yaml" in refusal(ConfigError, read, str(tmp_path / "some.yaml"))


@pytest.mark.parametrize("name", ["../evil:f", "/tmp/evil:f", ".evil:f", "http://x/evil:f", "evil :f"])
@pytest.mark.parametrize("option", ["data.name", "model.name"])
def test_a_function_is_named_by_module_and_not_by_path(option, name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place in (tmp_path, tmp_path / "here"):
        (place / "evil.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")

    section, _, key = option.partition(".")
    given = {"run": {"dir": str(tmp_path / "run")}, "data": {"num_train": 64, "num_test": 64}}
    given[section] = {**given.get(section, {}), key: name}
    assert option in refusal(ConfigError, lambda: pipeflow.train(Config.from_dict(given)))
    assert not (tmp_path / "was_run").exists()
