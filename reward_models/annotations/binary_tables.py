"""Tables that are no text: Excel workbooks by openpyxl, Parquet and Arrow by pyarrow."""

from __future__ import annotations

import datetime
import decimal
import gzip
import io
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from align.config_errors import UserError
from reward_models.annotations.archives import BROKEN, check_ratio, check_sizes
from reward_models.annotations.intake import Row
from reward_models.annotations.tables import (
    HEADER_WITHIN,
    check_title,
    header_of,
    known_names,
    too_wide,
)

BATCH = 512
INSTALL = "pip install 'align[annotations]'"


def seekable(file: Any, name: str) -> Any:
    """The file on disk, for formats whose index stands at their end."""
    if isinstance(file, io.BufferedReader):
        return file
    copy = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the last reference to it)
    try:
        while part := file.read(1 << 20):
            copy.write(part)
            # Members of a zip have been measured; how much a .gz holds shows only here.
            if isinstance(file, gzip.GzipFile):
                check_ratio(name, copy.tell(), file.fileobj.tell())  # type: ignore[union-attr]
    except BROKEN as error:
        raise UserError("input", name, f"cannot be read: {error}", "Check the file") from None
    copy.seek(0)
    return copy


def xlsx_rows(file: Any, name: str, mapping: Mapping[str, str]) -> Iterator[Row]:
    """Rows of every visible sheet that has a header; line: the sheet's row.

    With several sheets those without a known header are one dropped row each. UserError where
    openpyxl is missing or the workbook is damaged.
    """
    try:
        import openpyxl
    except ImportError:
        raise UserError("input", name, "needs openpyxl", INSTALL) from None
    try:
        with zipfile.ZipFile(file) as archive:
            check_sizes(name, archive.infolist(), file.seek(0, 2))
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        sheets = [s for s in book.worksheets if s.sheet_state == "visible"]
    except (*BROKEN, KeyError, ValueError, SyntaxError) as error:
        raise UserError(
            "input", name, f"is a damaged workbook: {error}", "Save it again, or as CSV"
        ) from None
    found = [(sheet, first) for sheet in sheets if (first := _first_rows(sheet))]
    number = 0
    for sheet, first in found:
        known = [known_names(cells, mapping) for _, cells in first]
        at = known.index(max(known)) if max(known) >= 2 else 0
        if max(known) < 2 and len(found) > 1:
            number += 1
            detail = f"sheet {sheet.title!r} has no row that is a known header"
            yield Row(name, first[0][0], number, error=("no_header", detail))
            continue
        check_title([cells for _, cells in first], at, name)
        begin, cells = first[at]
        header = header_of(cells, name, begin)
        for line, cells in _filled_rows(sheet, begin + 1):
            number += 1
            problem = too_wide(cells, header)
            made = {n: c for n, c in zip_longest(header, cells[: len(header)]) if n}
            error = ("bad_columns", problem) if problem else None
            yield Row(name, line, number, None if problem else made, error)
    book.close()


def _first_rows(sheet: Any) -> list[tuple[int, list[Any]]]:
    # Some writers store a wrong size of the sheet, and rows outside of it would not be read.
    sheet.reset_dimensions()
    found = []
    for row in _filled_rows(sheet, 1):
        found.append(row)
        if len(found) == HEADER_WITHIN:
            break
    return found


def _filled_rows(sheet: Any, begin: int) -> Iterator[tuple[int, list[Any]]]:
    rows = sheet.iter_rows(min_row=begin, values_only=True)
    for line, cells in enumerate(rows, start=begin):
        if any(cell not in (None, "") for cell in cells):
            yield line, [_cell(cell) for cell in cells]


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        # How Excel stores the carriage return of a line break.
        return value.replace("_x000D_\n", "\n").replace("_x000D_", "\n")
    return _plain(value)


def parquet_rows(file: Any, name: str) -> Iterator[Row]:
    """Rows of a Parquet file, a few hundred at a time."""
    pyarrow = _pyarrow(name)
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            "input", name, f"is a damaged Parquet file: {error}", "Download it again"
        ) from None
    yield from _batches(table.iter_batches(BATCH), pyarrow, name)


def arrow_rows(file: Any, name: str, stream: bool) -> Iterator[Row]:
    """Rows of an Arrow IPC file or stream (``datasets.save_to_disk`` writes streams)."""
    pyarrow = _pyarrow(name)
    try:
        if stream:
            batches: Any = pyarrow.ipc.open_stream(file)
        else:
            opened = pyarrow.ipc.open_file(file)
            batches = map(opened.get_batch, range(opened.num_record_batches))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            "input", name, f"is a damaged Arrow file: {error}", "Write it again"
        ) from None
    yield from _batches(batches, pyarrow, name)


def _pyarrow(name: str) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise UserError("input", name, "needs pyarrow", "pip install pyarrow") from None
    return pyarrow


def _batches(batches: Any, pyarrow: Any, name: str) -> Iterator[Row]:
    number = 0
    try:
        for batch in batches:
            for begin in range(0, batch.num_rows, BATCH):
                for obj in batch.slice(begin, BATCH).to_pylist():
                    number += 1
                    yield _row(obj, name, number)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        problem = ("truncated_file", str(error))
        yield Row(name, number + 1, number + 1, error=problem, ends=True)


def _row(obj: Any, name: str, number: int) -> Row:
    try:
        return Row(name, number, number, _plain(obj))
    except UnicodeDecodeError as error:
        detail = f"bytes that are not UTF-8: {error.reason}"
        return Row(name, number, number, error=("bad_encoding", detail))


def _plain(value: Any) -> Any:
    """A cell as a JSON value: times as ISO text, decimals as numbers, bytes as text."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value)
