"""Every importer, fed with damaged rows and files: counts or our error, never a traceback."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zipfile
from pathlib import Path

from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "reward_models"))
from fuzzing import TEXTS, VALUES, hold, said, sizes
from samples import SAMPLES
from test_records import mutated

from align.config_errors import UserError
from reward_models.annotations import FORMATS, Intake
from reward_models.annotations.base import Row
from reward_models.annotations.detect import fitting
from reward_models.importing import ImportSettings, run_import
from reward_models.preferences import targets

BY_NAME = {known.name: known for known in FORMATS}


def test_every_format_has_a_sample():
    assert set(SAMPLES) == set(BY_NAME)


@sizes(200, 15_000)
def test_damaged_rows_are_used_or_dropped_under_a_reason(examples, fault):
    fault("damaged or hostile annotation rows", "used or counted as dropped, never a traceback")

    def check(name_and_rows):
        name, rows = name_and_rows
        intake = Intake()
        numbered = [Row("in.jsonl", i, i, row) for i, row in enumerate(rows, 1)]
        for group in BY_NAME[name].parse(numbered, intake):
            assert len({c.id for c in group.candidates}) == len(group.candidates)
            targets(group)
            json.dumps(group.to_json())
        assert intake.rows.total == len(rows)
        assert intake.votes.used <= intake.votes.total

    rows = [
        st.tuples(st.just(name), mutated(good).map(lambda v: v if isinstance(v, list) else [v]))
        for name, good in SAMPLES.items()
    ]
    hold(examples, check, st.one_of(rows))


def as_bytes(kind: str, rows: list, cut: int, junk: bytes) -> bytes:
    """Rows as a file of some kind, with a piece of it written over."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if kind == "array":
        text = json.dumps(rows)
    elif kind == "csv":
        out = io.StringIO()
        table = [row for row in rows if isinstance(row, dict)] or [{"prompt": "a"}]
        names = list(dict.fromkeys(str(key) for row in table for key in row))
        writer = csv.writer(out)
        writer.writerow(names)
        writer.writerows([[json.dumps(row.get(name)) for name in names] for row in table])
        text = out.getvalue()
    raw = text.encode("utf-8", "surrogatepass")
    if kind == "zip":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.jsonl", raw)
        raw = file.getvalue()
    elif kind == "gzip":
        raw = gzip.compress(raw, mtime=0)
    at = cut % (len(raw) + 1)
    return raw[:at] + junk + raw[at + len(junk) :] if junk else raw[: at or None]


@sizes(40, 4_000)
def test_damaged_files_are_imported_or_refused(examples, tmp_path, fault):
    fault("damaged files and archives of annotations", "counts or a refusal, never a traceback")

    def check(rows, kind, cut, junk, suffix):
        source = tmp_path / f"in{suffix}"
        source.write_bytes(as_bytes(kind, rows, cut, junk))
        settings = ImportSettings((str(source),), tmp_path / "out", dry_run=True)
        try:
            report = run_import(settings, say=lambda _: None)
        except UserError as error:
            said(error)
        else:
            json.dumps(report)
        source.unlink()

    rows = st.sampled_from(sorted(SAMPLES)).flatmap(
        lambda name: st.just(SAMPLES[name]) | st.lists(mutated(SAMPLES[name][0]), max_size=3)
    )
    kinds = st.sampled_from(["lines", "array", "csv", "zip", "gzip"])
    suffixes = st.sampled_from(
        [".jsonl", ".json", ".csv", ".zip", ".jsonl.gz", ".xlsx", ".parquet"]
    )
    hold(examples, check, rows, kinds, st.integers(0, 10**6), st.binary(max_size=6), suffixes)


@sizes(80, 4_000)
def test_anything_has_a_known_format_or_none(examples):
    def check(rows):
        assert {found.format.name for found in fitting(rows)} <= set(BY_NAME)

    hold(examples, check, st.lists(VALUES | st.dictionaries(TEXTS, VALUES), max_size=3))
