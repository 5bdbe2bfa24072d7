"""The configurations that come along, in `configs/`."""

import re
from pathlib import Path

import pytest
import yaml

from pipeflow.config import Config, load
from tests.config.errors import message_of

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
PUBLISHED = {
    "glow_lr1e-4": ("end_to_end", 1e-4, 2),
    "glow_lr1e-5": ("end_to_end", 1e-5, 3),
    "across2_lr1e-4": ("alternate", 1e-4, 2),
    "across3_lr1e-5": ("alternate", 1e-5, 3),
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder, the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_quickstart_is_the_default():
    assert load(str(CONFIGS / "quickstart.yaml")) == Config() == load(None)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_is_known_by_its_name_in_any_folder(file, folder):
    assert load(file.relative_to(CONFIGS).with_suffix("").as_posix()) == load(str(file))


def test_a_file_goes_before_a_name_and_a_line_says_so(folder, caplog):
    (folder / "weather").mkdir()
    assert load("weather").run.dir == "runs/weather" and caplog.text == "", "a folder is no configuration"
    (folder / "two_moons").write_text("run: {dir: mine}")
    assert load("two_moons").run.dir == "mine"
    assert f"--config two_moons: reads the file {folder}/two_moons" in caplog.text
    caplog.clear()
    assert load("./two_moons").run.dir == "mine" and caplog.text == ""


@pytest.mark.parametrize(
    "name, meant",
    [
        ("cifar10/across3_lr1-5", "did you mean 'cifar10/across3_lr1e-5' or "),
        ("small_glow", "did you mean 'cifar10/small_glow'?"),
        ("configs/two_moons.yaml", "did you mean 'two_moons'?"),
        ("zzz.yaml", "`pipeflow configs` lists them."),
    ],
)
def test_a_name_that_none_has_is_an_error_with_those_near_it(name, meant, folder):
    message = message_of(load, name)
    assert message.startswith(f"--config: {folder}/{name} ({name}, relative to the current folder): No such file")
    assert f"nor is it the name of a configuration: {meant}" in message


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_has_a_title_names_its_run_after_itself_and_comes_back_from_a_run_folder(file, tmp_path):
    config = load(str(file))
    assert Path(config.run.dir).name == file.stem
    assert re.match(r"# \S", file.read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    assert load(str(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs(name):
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
