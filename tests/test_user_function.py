"""A user's function, named `module:function`: what is found, and what is said where it is not."""

import re
import sys

import pytest

from pipeflow.errors import ConfigError
from pipeflow.user_function import load_function


def test_functions_of_the_current_folder_are_found_and_what_is_not_there_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("number = 1\ndef double(value):\n    return 2 * value\n")
    (tmp_path / "mine_broken.py").write_text("import a_package_that_is_not_there")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert load_function("data.name", "mine:double")(4) == 8
    refusals = {f"{name}:f": f"there is no module '{name}'" for name in ("not_there", "not.there", "mine.there")}
    refusals |= {f"mine:{name}": f"mine.py.* has no function '{name}'" for name in ("missing", "number")}
    for name, words in refusals.items():
        with pytest.raises(ConfigError) as error:
            load_function("data.name", name)
        assert re.match(f"data.name: {name}: .*{words}", str(error.value))
    for name in ("mine", "mine:", ":f"):
        with pytest.raises(ConfigError, match=f"data.name: expected module:function, got '{name}'"):
            load_function("data.name", name)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        load_function("data.name", "mine_broken:f")
