"""Generated blocks in pages: what stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->`.

    python -m docs.generate.blocks           # writes README.md's and docs/'s tables of results anew
    python -m docs.generate.blocks --check   # only says which are not as their JSON has them

The tables of results stand in the pages, so that they are read in the repository too. Options and the reference of
the public interface are filled in when the site is built.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from docs.generate.api import api
from docs.generate.options import options
from docs.generate.results import results
from docs.generate.tables import TABLES

ROOT = Path(__file__).parents[2]
GENERATORS: dict[str, Callable[[], str]] = {"options": options, "api": api, "results": results, **TABLES}
_BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


def fill(page: Path, generators: dict[str, Callable[[], str]] = GENERATORS) -> str:
    """The text of a page, with its blocks generated anew. generators: of the blocks to fill; others stay."""
    benchmarks = "benchmarks/" if page.parent == ROOT else "../benchmarks/"

    def block(found: re.Match[str]) -> str:
        name = found[2]
        if name not in GENERATORS:
            raise SystemExit(f"<!-- generated: {name} -->: there is no such block, only {', '.join(GENERATORS)}.")
        if name not in generators:
            return found[0]
        return f"{found[1]}\n{generators[name]().replace('BENCHMARKS/', benchmarks)}\n\n{found[3]}"

    return _BLOCK.sub(block, page.read_text())


def pages_with_tables() -> dict[Path, str]:
    """Each page in which tables of results stand, as it should read."""
    pages = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    filled = {page: fill(page, TABLES) for page in pages}
    return {page: text for page, text in filled.items() if "<!-- generated: " in text}


def main(arguments: list[str]) -> int:
    """Writes the pages, or says which differ; 1 if some do."""
    stale = [page for page, text in pages_with_tables().items() if page.read_text() != text]
    for page in stale:
        if "--check" not in arguments:
            page.write_text(fill(page, TABLES))
        print(f"{page.relative_to(ROOT)}: {'differs from' if '--check' in arguments else 'written anew from'} the JSON")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
