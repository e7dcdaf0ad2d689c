"""Every format's sample is that format and no other, whatever the order in which they are asked."""

from __future__ import annotations

import csv
import io
import json
import random

import pytest
from samples import SAMPLES

from align.config_errors import UserError
from reward_models.annotations import FORMATS, Intake
from reward_models.annotations.base import Format, Row
from reward_models.annotations.detect import detect, fitting

BY_NAME = {f.name: f for f in FORMATS}


def test_every_format_has_a_sample():
    assert sorted(SAMPLES) == sorted(BY_NAME)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_a_sample_is_detected_as_its_format(name, tmp_path):
    assert [d.format.name for d in fitting(SAMPLES[name])] == [name]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in SAMPLES[name]))
    found = detect(path)
    assert found.format.name == name
    n = len(SAMPLES[name])
    assert f" of the first {n} rows: " in found.evidence


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_a_sample_imports_without_a_rejected_row(name):
    rows = [Row("rows.jsonl", i, i, obj) for i, obj in enumerate(SAMPLES[name], 1)]
    intake = Intake()
    groups = list(BY_NAME[name].parse(rows, intake))
    assert groups
    assert all(len(g.candidates) > 1 and g.judgements for g in groups)
    assert intake.rows.used == intake.rows.total == len(rows)


def test_the_order_of_the_formats_does_not_matter():
    formats = list(FORMATS)
    for seed in range(3):
        random.Random(seed).shuffle(formats)
        for name, rows in SAMPLES.items():
            assert [d.format.name for d in fitting(rows, formats)] == [name]


def test_a_sample_with_further_fields_is_still_its_format():
    for name, rows in SAMPLES.items():
        more = [{**row, "note": "x", "weight": 3, "tags": ["a"]} for row in rows]
        assert [d.format.name for d in fitting(more)] == [name]


def test_rows_of_two_formats_in_one_file_go_to_the_one_that_most_have():
    pairs, tables = SAMPLES["pairs"], SAMPLES["table"]
    assert [d.format.name for d in fitting([*pairs, *pairs, *tables])] == ["pairs"]
    both = {d.format.name for d in fitting([*SAMPLES["pairs"][:1], *SAMPLES["nectar"][:1]])}
    assert both == {"pairs", "nectar"}


def test_no_sample_is_detected_from_odd_values():
    for odd in (None, 1, "text", [], {}, ["a"], {"prompt": None}):
        assert fitting([odd] * 3) == []
        for known in FORMATS:
            assert known.matches(odd) is None


def named(name, generic=False):
    return Format(name, name, lambda obj: f"is {name}", lambda rows, intake: iter(()), generic)


def test_a_generic_format_gives_way_to_any_other_but_not_to_its_like():
    special, plain, plain_too = named("special"), named("plain", True), named("plain_too", True)
    assert [d.format.name for d in fitting([{}], [plain, special])] == ["special"]
    assert [d.format.name for d in fitting([{}], [plain])] == ["plain"]
    assert {d.format.name for d in fitting([{}], [plain, plain_too])} == {"plain", "plain_too"}


TRANSCRIPT = {"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": " A", "rejected": " B"}


def test_a_transcript_in_the_prompt_is_no_plain_pair():
    assert [d.format.name for d in fitting([TRANSCRIPT] * 3)] == ["hh_rlhf"]
    # By row: plain pairs beside them are not taken for transcripts.
    plain = SAMPLES["pairs"][0]
    assert [d.format.name for d in fitting([plain, plain, TRANSCRIPT])] == ["pairs"]
    assert {d.format.name for d in fitting([plain, TRANSCRIPT])} == {"pairs", "hh_rlhf"}


def test_chosen_and_rejected_in_a_table_of_other_names_are_a_table():
    assert [d.format.name for d in fitting([{"问题": "Q", "chosen": "A", "rejected": "B"}])] == [
        "table"
    ]


def test_no_format_and_two_formats_are_errors_that_name_them(tmp_path):
    def tried(*rows):
        path = tmp_path / "x.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(UserError) as caught:
            detect(path)
        return str(caught.value)

    assert "fits no known format; its keys are ['回答', '问']" in tried({"问": "q", "回答": "a"})
    both = {**SAMPLES["shp"][0], **SAMPLES["label_studio"][0]}
    text = tried(both)
    assert "fits more than one format: " in text
    assert "label_studio (1 of the first 1 rows: " in text
    assert "shp (1 of the first 1 rows: " in text
    assert text.endswith("Choose one with --format.")


def test_flat_samples_are_the_same_format_in_any_container(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow
    from pyarrow import parquet

    flat = {
        name: rows
        for name, rows in SAMPLES.items()
        if all(isinstance(v, (str, int, float, type(None))) for row in rows for v in row.values())
    }
    assert {"pairs", "table", "shp", "helpsteer2", "pku_saferlhf", "hh_rlhf"} <= flat.keys()
    for name, rows in flat.items():
        columns = list(dict.fromkeys(k for row in rows for k in row))
        whole = [{c: row.get(c) for c in columns} for row in rows]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(whole)
        (tmp_path / f"{name}.csv").write_text(text.getvalue(), "utf-8")
        assert detect(tmp_path / f"{name}.csv").format.name == name
        texts = [{k: v if v is None else str(v) for k, v in row.items()} for row in whole]
        same = [len({type(r[c]) for r in whole} - {type(None)}) < 2 for c in columns]
        table = pyarrow.Table.from_pylist(whole if all(same) else texts)
        parquet.write_table(table, tmp_path / f"{name}.parquet")
        assert detect(tmp_path / f"{name}.parquet").format.name == name
