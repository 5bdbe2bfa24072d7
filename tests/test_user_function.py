"""A user's function, named `module:function`: what is found, and what is said where it is not."""

import sys

import pytest

from pipeflow.errors import ConfigError
from pipeflow.user_function import load_function


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """The module `mine` in the current folder, which is not on the path."""
    (tmp_path / "mine.py").write_text("number = 1\ndef double(value):\n    return 2 * value\n")
    (tmp_path / "mine_broken.py").write_text("import a_package_that_is_not_there")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    yield
    sys.modules.pop("mine", None)


def test_a_module_of_the_current_folder_is_found():
    assert load_function("data.name", "mine:double")(4) == 8


@pytest.mark.parametrize("missing", ["not_there", "not.there", "mine.there"])
def test_a_module_that_is_not_there(missing):
    with pytest.raises(ConfigError, match=f"^data.name: {missing}:f: there is no module '{missing}'"):
        load_function("data.name", f"{missing}:f")


@pytest.mark.parametrize("name", ["missing", "number"])
def test_a_module_without_the_function(name):
    with pytest.raises(ConfigError, match=rf"^model.name: mine:{name}: .*mine.py.* has no function '{name}'"):
        load_function("model.name", f"mine:{name}")


def test_a_module_that_itself_lacks_one_keeps_its_traceback():
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        load_function("data.name", "mine_broken:f")
