"""Counts lines of code: those that hold a token which is neither a comment nor a docstring.

python .ci/code_lines.py [--without PATH ...] PATH ...
"""

import argparse
import ast
import tokenize
from pathlib import Path

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(path: Path) -> int:
    """Lines of one file that hold code; a string that is a statement by itself counts as a docstring."""
    with open(path, "rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    lines = {line for token in tokens if token.type not in _NO_CODE for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--without", nargs="*", type=Path, default=[])
    options = parser.parse_args()
    counts: dict[str, int] = {}
    for root in options.paths:
        for path in sorted([root] if root.is_file() else root.rglob("*.py")):
            if not any(path.is_relative_to(left_out) for left_out in options.without):
                room = str(path.parent)
                counts[room] = counts.get(room, 0) + code_lines(path)
    for room, count in counts.items():
        print(f"{count:6,}  {room}")
    print(f"{sum(counts.values()):6,}  all")
