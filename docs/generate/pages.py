"""Gathers the pages of the site into a folder: `python -m docs.generate.pages build/pages`.

The folder mirrors the repository, so that a link between two pages is the same on the site and in the repository. README.md
becomes index.md. What a page links to and is no page is copied too; a link to a file that is not there is an error.
"""

import re
import shutil
import sys
from pathlib import Path

from docs.generate.blocks import fill

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def pages() -> list[Path]:
    """All pages, relative to the repository."""
    named = (ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "launch/README.md"))
    found = [*(page for page in named if page.exists()), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md")]
    return sorted(path.relative_to(ROOT) for path in found)


def gather(folder: Path) -> None:
    """Writes all pages, and the files that they link to, into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    listed = pages()
    for page in listed:
        target = folder / _place(page)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_with_links(page, listed, folder))
    for notebook in (ROOT / "docs").glob("*.ipynb"):
        from docs.generate.notebook import write_page  # nbconvert, which only the site needs

        write_page(notebook, folder / "docs" / f"{notebook.stem}.md")


def _place(page: Path) -> Path:
    """Where a page of the repository is on the site."""
    return Path("index.md") if page == Path("README.md") else page


def _with_links(page: Path, listed: list[Path], folder: Path) -> str:
    """The text of a page, as it is on the site."""
    return _LINK.sub(lambda found: _link(found, page, listed, folder), fill(ROOT / page))


def _link(found: re.Match[str], page: Path, listed: list[Path], folder: Path) -> str:
    address, _, anchor = found[1].partition("#")
    if not address or "://" in address or address.startswith("mailto:"):
        return found[0]
    target = (ROOT / page.parent / address).resolve().relative_to(ROOT)
    if target.suffix == ".ipynb":
        address = address.replace(".ipynb", ".md")
    elif target not in listed:
        if not (ROOT / target).is_file():
            raise SystemExit(f"{page}: links to {address}, which is not there.")
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / target, folder / target)
    if target == Path("README.md"):
        address = address.replace("README.md", "index.md")
    return f"]({address}{'#' * bool(anchor)}{anchor})"


if __name__ == "__main__":
    gather(Path(sys.argv[1]))
