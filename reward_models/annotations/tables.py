"""Tables as rows: CSV and TSV here, workbooks and Parquet in ``binary_tables``.

A row is a dict of column → cell, exactly as a JSON line with these fields would be, so every format
can come as a table. CSV knows text only: a cell that looks like a number becomes one unless its
column's name says that it is text, and an empty cell is null.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import Any, BinaryIO

from align.config_errors import UserError
from reward_models.annotations.archives import BROKEN
from reward_models.annotations.columns import is_text, role_of
from reward_models.annotations.encoding import UNDECODABLE
from reward_models.annotations.intake import Row

DELIMITERS = ",\t;|"
HEADER_WITHIN = 20
# Columns of known formats, by which a header is told from a title and from data.
KNOWN = {
    "helpfulness", "correctness", "coherence", "complexity", "verbosity", "human_ref_a",
    "human_ref_b", "labels", "better_response_id", "safer_response_id", "overall_preference",
    "conversations", "message_id", "parent_id", "message_tree_id", "completions", "generator_1",
}  # fmt: skip
NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?")
MESSAGES = re.compile(r'\[\s*\{\s*"(role|content|from|value)"\s*:')


def csv_rows(
    file: BinaryIO, name: str, head: bytes, mapping: Mapping[str, str], limit: int
) -> Iterator[Row]:
    """Rows of CSV text in UTF-8. head: its beginning. limit: characters that a line may have.

    UserError where no header or more than one possible delimiter is found.
    """
    text = head.decode("utf-8-sig", "replace").replace("\r\n", "\n")
    delimiter, title = _layout(text, name, mapping)
    csv.field_size_limit(max(csv.field_size_limit(), limit))
    lines = io.TextIOWrapper(file, "utf-8-sig", errors=UNDECODABLE, newline="")
    reader = csv.reader(_capped(lines, limit), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    seen = number = 0
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except _TooLong:
            number += 1
            detail = f"a line has over {limit} characters"
            yield Row(name, line, number, error=("row_too_long", detail))
            continue
        except BROKEN as error:
            yield Row(name, line, number + 1, error=("truncated_file", str(error)), ends=True)
            break
        except csv.Error as error:
            if header is None:
                reason = f"has no header that can be read: {error} in line {reader.line_num}"
                raise UserError(
                    "input", name, reason, "Save it again as CSV, or as .xlsx"
                ) from None
            number += 1
            detail = f"{error} in lines {line} to {reader.line_num}"
            code = "row_too_long" if "field limit" in str(error) else "bad_csv"
            yield Row(name, line, number, error=(code, detail))
            continue
        if cells is None:
            break
        if not any(cell.strip() for cell in cells):
            continue
        seen += 1
        if header is None:
            if seen > title:
                header = header_of(cells, name, line)
            continue
        number += 1
        yield _csv_row(cells, header, name, line, number)
    lines.detach()


class _TooLong(Exception):
    """A line over the limit; the reader begins anew at the next one."""


def _capped(lines: io.TextIOWrapper, limit: int) -> Iterator[str]:
    class Lines:
        def __iter__(self) -> Iterator[str]:
            return self

        def __next__(self) -> str:
            line = lines.readline(limit + 1)
            if not line:
                raise StopIteration
            if len(line) > limit and not line.endswith(("\n", "\r")):
                while line and not line.endswith(("\n", "\r")):
                    line = lines.readline(limit)
                raise _TooLong
            return line

    return Lines()


def _layout(text: str, name: str, mapping: Mapping[str, str]) -> tuple[str, int]:
    """(delimiter, non-empty lines above the header) of a CSV file's beginning."""
    found = []
    for delimiter in DELIMITERS:
        records = list(islice(_first_records(text, delimiter), HEADER_WITHIN))
        known = [known_names(cells, mapping) for cells in records]
        if known and max(known) >= 2:
            at = known.index(max(known))
            found.append((max(known), delimiter, at, records))
    if found:
        found.sort(key=lambda f: -f[0])
        best, delimiter, at, records = found[0]
        if len(found) > 1 and found[1][0] == best:
            both = " and ".join(repr(f[1]) for f in found[:2])
            raise UserError("input", name, f"could be separated by {both}", "Save it as .xlsx")
        check_title(records, at, name)
        return delimiter, at
    for delimiter in DELIMITERS:
        records = list(islice(_first_records(text, delimiter), HEADER_WITHIN))
        widths = {len(cells) for cells in records}
        if len(widths) == 1 and widths != {1}:
            return delimiter, 0
    raise UserError(
        "input",
        name,
        "is neither JSON nor a table whose header is known",
        "Name its columns: --mapping prompt=COLUMN,response_1=COLUMN,response_2=COLUMN,…",
    )


def _first_records(text: str, delimiter: str) -> Iterator[list[str]]:
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error:
            continue
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield cells


def known_names(cells: Sequence[Any], mapping: Mapping[str, str]) -> int:
    """How many of the cells are names of columns."""
    names = {cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()}
    mapped = set(mapping.values())
    return sum(n in mapped or n.lower() in KNOWN or role_of(n) is not None for n in names)


def check_title(records: Sequence[Sequence[Any]], at: int, name: str) -> None:
    """Refuses a header that stands below lines which are no titles."""
    width = _filled(records[at])
    for above in records[:at]:
        if 2 * _filled(above) > width:
            raise UserError(
                "input",
                name,
                f"has its header in row {at + 1}, below rows as wide as it",
                "Remove what stands above the header, or name the columns with --mapping",
            )


def _filled(cells: Sequence[Any]) -> int:
    return sum(cell is not None and str(cell).strip() != "" for cell in cells)


def header_of(cells: Sequence[Any], name: str, line: int) -> list[str]:
    """Column names; the nameless ones (a saved row index, trailing separators) are ""."""
    names = ["" if cell is None else str(cell).strip() for cell in cells]
    named = [n for n in names if n]
    twice = next((n for n in named if named.count(n) > 1), None)
    if twice is not None:
        raise UserError(
            "input", name, f"has two columns {twice!r} (line {line})", "Rename one of them"
        )
    return names


def _csv_row(cells: list[str], header: list[str], name: str, line: int, number: int) -> Row:
    if [cell.strip() for cell in cells] == header:  # of a file that was appended to this one
        detail = "the header stands here again"
        return Row(name, line, number, error=("repeated_header", detail))
    if "\udcff" in "".join(cells):
        detail = "not in the encoding of the file"
        return Row(name, line, number, error=("bad_encoding", detail))
    problem = too_wide(cells, header)
    if problem:
        return Row(name, line, number, error=("bad_columns", problem))
    # Some programs leave out empty cells at the end of a row.
    pairs = zip_longest(header, cells[: len(header)], fillvalue="")
    return Row(name, line, number, {n: _typed(n, cell) for n, cell in pairs if n})


def too_wide(cells: Sequence[Any], header: Sequence[str]) -> str | None:
    """Why these cells are not of these columns: a stray separator or quote moved them."""
    if _filled(cells[len(header) :]):
        return f"{len(cells)} cells for {len(header)} columns"
    after = [c for c, n in zip(cells[1:], header[1:], strict=False) if not n]
    return "a cell without a column" if _filled(after) else None


def _typed(name: str, cell: str) -> Any:
    if cell == "":
        return None
    if is_text(name):
        if MESSAGES.match(cell):  # a conversation, saved as JSON in a cell
            try:
                return json.loads(cell)
            except (ValueError, RecursionError):
                return cell
        return cell
    if NUMBER.fullmatch(cell):
        return float(cell) if any(c in cell for c in ".eE") else int(cell)
    return {"true": True, "false": False}.get(cell.lower(), cell)
