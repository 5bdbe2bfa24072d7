"""The configurations that come along, in `configs/`."""

import re
from pathlib import Path

import pytest
import yaml

from pipeflow.config import Config, load
from pipeflow.config.loading import EXAMPLES

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
PUBLISHED = {
    "glow_lr1e-4": ("end_to_end", 1e-4, 2),
    "glow_lr1e-5": ("end_to_end", 1e-5, 3),
    "across2_lr1e-4": ("alternate", 1e-4, 2),
    "across3_lr1e-5": ("alternate", 1e-5, 3),
}


def test_quickstart_is_the_default_and_lies_where_messages_say():
    assert load(str(EXAMPLES / "quickstart.yaml")) == Config() == load(None)
    assert EXAMPLES.resolve() == CONFIGS


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
