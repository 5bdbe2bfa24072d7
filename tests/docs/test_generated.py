"""What stands in the pages by generation: tables of results, options and the names of the reference."""

import re
from pathlib import Path

import pytest

import pipeflow
from docs.generate.blocks import fill, pages_with_tables
from docs.generate.pages import gather, pages
from pipeflow.config.config import SECTIONS, option_names

ROOT = Path(__file__).parents[2]
FILES = (".json", ".lock", ".yaml", ".py", ".md", ".zip", ".npz", ".safetensors")


def test_tables_of_results_are_those_of_the_json():
    stale = [page.name for page, text in pages_with_tables().items() if page.read_text() != text]
    assert not stale, "write them anew: python -m docs.generate.blocks"


def test_the_page_of_options_has_all_of_them():
    page = fill(ROOT / "docs" / "options.md")
    rows = re.findall(r"^\| `(\w+\.\w+)` \|", page, re.MULTILINE)
    assert rows == option_names()
    (optimizer,) = [line for line in page.splitlines() if line.startswith("| `optim.name`")]
    assert "| `adam` |" in optimizer and "<br>`adamax`: " in optimizer


def test_the_reference_has_the_public_interface():
    page = fill(ROOT / "docs" / "api.md")
    assert {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")} == set(pipeflow.__all__)


# A benchmark or the list of changes may name an option that has gone.
@pytest.mark.parametrize(
    "page", [page for page in pages() if page.parts[0] in ("README.md", "docs", "launch")], ids=str
)
def test_options_in_the_pages_are_options(page):
    sections = "|".join(SECTIONS)
    named = re.findall(rf"(?:`|--)((?:{sections})\.[a-z]\w*)(?=[`:= \n])", fill(ROOT / page))
    assert {name for name in named if not name.endswith(FILES)} <= set(option_names())


def test_a_link_to_a_file_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    import docs.generate.pages as module

    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("[here](docs/there.md)")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=r"README.md: links to docs/there.md"):
        gather(tmp_path / "build")
