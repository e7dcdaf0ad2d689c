"""Tables of the documentation that the tests fill in with what they found.

A table stands between `<!-- table NAME -->` and `<!-- end of table NAME -->`. Its header names the
columns; the first cell names the row. A test that has passed its assertions sets cells; the page is
rewritten when the session ends and ALIGN_TABLES=write is set, which `make test-distributed` and
`make test-faults` do. Rows whose tests did not run stay as they are; those of a test that failed
say so.
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = {"matrix": "scaling.md", "faults": "reliability.md"}


def split(line: str) -> list[str]:
    """Cells of a Markdown row."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def read(text: str, name: str) -> tuple[list[str], dict[str, list[str]]]:
    """Columns and rows of a table in a page's text."""
    found = re.search(rf"<!-- table {name} -->\n(.*?)<!-- end of table {name} -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"no table {name}")
    header, _, *rows = [line for line in found[1].splitlines() if line.strip()]
    return split(header), {split(row)[0]: split(row) for row in rows}


def updated(text: str, name: str, cells: dict[tuple[str, str], str]) -> str:
    """The page with cells {(row, column): text} put into its table; new rows come last."""
    columns, rows = read(text, name)
    for (row, column), cell in cells.items():
        place = columns.index(column)
        rows.setdefault(row, [row] + [""] * (len(columns) - 1))[place] = cell.replace("|", "/")
    lines = [columns, ["---"] * len(columns), *rows.values()]
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    pattern = rf"(<!-- table {name} -->\n).*?(<!-- end of table {name} -->)"
    return re.sub(pattern, lambda m: m[1] + table + m[2], text, flags=re.DOTALL)


def write(found: dict[str, dict[tuple[str, str], str]]) -> None:
    """Rewrite the pages of the tables that tests have set cells of."""
    for name, cells in found.items():
        page = DOCS / PAGES[name]
        page.write_text(updated(page.read_text("utf-8"), name, cells), encoding="utf-8")
