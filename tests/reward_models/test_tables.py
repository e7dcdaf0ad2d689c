"""Tables in any container → the exact rows; moved, damaged and odd ones."""

from __future__ import annotations

import datetime
import decimal
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.config_errors import UserError
from reward_models.annotations import reading, tables
from reward_models.annotations.base import Options
from reward_models.annotations.columns import is_text
from reward_models.annotations.detect import detect
from reward_models.annotations.reading import read


def objects(path, **options):
    return [r.obj if r.error is None else r.error[0] for r in read(path, Options(**options))]


def save(tmp_path, content, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def refused(path, **options):
    with pytest.raises(UserError) as caught:
        list(read(path, Options(**options)))
    return str(caught.value)


# --- CSV

PLAIN = "prompt,response_1,response_2,winner\n"


def test_cells_keep_commas_quotes_and_line_breaks(tmp_path):
    text = PLAIN + '"q, 1","说 ""好""\n第二行",b,1\n\nq2,a,b,tie\n'
    found = list(read(save(tmp_path, text)))
    assert [r.obj for r in found] == [
        {"prompt": "q, 1", "response_1": '说 "好"\n第二行', "response_2": "b", "winner": 1},
        {"prompt": "q2", "response_1": "a", "response_2": "b", "winner": "tie"},
    ]
    assert [(r.line, r.number) for r in found] == [(2, 1), (5, 2)]


@pytest.mark.parametrize(
    ("name", "delimiter"), [("t.csv", ","), ("t.tsv", "\t"), ("t.txt", ";"), ("t.csv", "|")]
)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_delimiters_and_line_ends(tmp_path, name, delimiter, newline):
    rows = [["prompt", "response_1", "response_2", "winner"], ["q, a; b", "x", "y", "b"]]
    text = newline.join(delimiter.join(f'"{cell}"' for cell in row) for row in rows) + newline
    assert objects(save(tmp_path, text, name)) == [
        {"prompt": "q, a; b", "response_1": "x", "response_2": "y", "winner": "b"}
    ]


@pytest.mark.parametrize(
    ("encoding", "option"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-16", None),
        ("utf-16-be", "utf-16-be"),
        ("gb18030", "gb18030"),
        ("gbk", "gbk"),
        ("big5", "big5"),
        ("utf-8-sig", "gb18030"),  # the mark is stronger than the option
    ],
)
def test_encodings(tmp_path, encoding, option):
    text = "提示,回答1,回答2,排名1,排名2\n春天有什么花,桃花,雪花,1,2\n"
    path = save(tmp_path, text.encode(encoding))
    assert objects(path, encoding=option) == [
        {"提示": "春天有什么花", "回答1": "桃花", "回答2": "雪花", "排名1": 1, "排名2": 2}
    ]
    lines = save(tmp_path, (json.dumps({"提示": "花"}) + "\n").encode(encoding), "x.jsonl")
    assert objects(lines, encoding=option) == [{"提示": "花"}]
    array = save(
        tmp_path, json.dumps([{"提示": "花"}], ensure_ascii=False).encode(encoding), "x.json"
    )
    assert objects(array, encoding=option) == [{"提示": "花"}]


def test_chinese_windows_text_is_refused_by_name(tmp_path):
    text = "提示,回答1,回答2,排名1,排名2\n春天有什么花,桃花,雪花,1,2\n"
    said = refused(save(tmp_path, text.encode("gbk")))
    assert "is not UTF-8; it reads as GB18030 or GBK (Chinese Windows)" in said
    assert "--encoding gb18030" in said
    said = refused(save(tmp_path, "提示,回答1\n春天有什麼花,桃花和櫻花\n".encode("big5")))
    assert "--encoding big5" in said
    said = refused(save(tmp_path, PLAIN.encode("utf-16-le")))
    assert "--encoding utf-16-le" in said


def test_single_rows_in_another_encoding_are_dropped_alone(tmp_path):
    good = "".join(f"q{i},a,b,1\n" for i in range(9)).encode()
    path = save(tmp_path, PLAIN.encode() + good + "问,甲,乙,1\n".encode("gbk") + b"q,a,b,2\n")
    assert [o for o in objects(path) if isinstance(o, str)] == ["bad_encoding"]
    assert len(objects(path)) == 11
    # With the wrong encoding named it is the same.
    assert "bad_encoding" in objects(save(tmp_path, PLAIN.encode() + b"q,\xff\xff,b,1\n"),
                                     encoding="gb18030")  # fmt: skip


def test_a_header_below_title_lines_is_found(tmp_path):
    text = "标注导出 2024,,,\n\n,,导出人：李雷,\n" + PLAIN + "q,a,b,2\n"
    assert objects(save(tmp_path, text)) == [
        {"prompt": "q", "response_1": "a", "response_2": "b", "winner": 2}
    ]


def test_a_header_below_data_is_refused(tmp_path):
    said = refused(save(tmp_path, "q1,a,b,1\nq2,c,d,2\n" + PLAIN + "q3,e,f,1\n"))
    assert "has its header in row 3, below rows as wide as it" in said
    assert "neither JSON nor a table" in refused(save(tmp_path, "just text\nand more\n"))
    assert "two columns 'winner' (line 1)" in refused(
        save(tmp_path, "prompt,response_1,response_2,winner,winner\nq,a,b,1,1\n")
    )


def test_a_header_of_unknown_names_is_read_and_then_not_detected(tmp_path):
    path = save(tmp_path, "col1,col2,col3\nq,x,y\nq2,x,y\n")
    assert objects(path)[0] == {"col1": "q", "col2": "x", "col3": "y"}
    with pytest.raises(
        UserError, match=r"no known format; its keys are \['col1', 'col2', 'col3'\]"
    ):
        detect(path)


def test_rows_of_other_widths_are_never_shifted(tmp_path):
    text = PLAIN + "q,a,b,1,stray\nq,a,b\nq,a, comma,b,1\nq,a,b,2,,\n"
    assert objects(save(tmp_path, text)) == [
        "bad_columns",
        {"prompt": "q", "response_1": "a", "response_2": "b", "winner": None},
        "bad_columns",
        {"prompt": "q", "response_1": "a", "response_2": "b", "winner": 2},
    ]


def test_a_saved_row_index_is_left_out(tmp_path):
    text = "," + PLAIN + "0,q,a,b,1\n"
    assert objects(save(tmp_path, text)) == [
        {"prompt": "q", "response_1": "a", "response_2": "b", "winner": 1}
    ]


def test_broken_quotes_cost_the_rows_that_they_touch(tmp_path):
    text = PLAIN + 'q1,a,b,1\nq2,"open,b,1\nq3,"x",b,1\nq4,a,b,2\nq5,a,"never closed,1\n'
    found = list(read(save(tmp_path, text)))
    assert [(r.line, r.error[0] if r.error else r.obj["prompt"]) for r in found] == [
        (2, "q1"), (3, "bad_csv"), (5, "q4"), (6, "bad_csv"),
    ]  # fmt: skip
    assert "in lines 3 to 4" in found[1].error[1]


def test_cells_and_lines_that_are_too_long_are_dropped_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_ROW_BYTES", 200)
    monkeypatch.setattr(tables.csv, "field_size_limit", lambda limit=None: 0)
    text = PLAIN + "q1,a,b,1\nq2," + "x" * 500 + ",b,1\nq3,a,b,2\n"
    assert [o if isinstance(o, str) else o["prompt"] for o in objects(save(tmp_path, text))] == [
        "q1", "row_too_long", "q3",
    ]  # fmt: skip


def test_a_damaged_gzip_table_ends_with_a_row_that_says_so(tmp_path):
    import gzip

    whole = gzip.compress((PLAIN + "q,a,b,1\n" * 50_000).encode(), compresslevel=0)
    found = list(read(save(tmp_path, whole[: len(whole) // 2], "t.csv.gz")))
    assert found[0].obj["prompt"] == "q"
    assert found[-1].error[0] in ("truncated_file", "bad_columns")
    assert found[-1].ends
    assert len(found) > 1000


cell = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(cell, cell, cell), min_size=1, max_size=6), st.sampled_from(",\t;"))
def test_what_a_csv_writer_wrote_is_read(tmp_path_factory, written, delimiter):
    import csv

    path = tmp_path_factory.mktemp("csv") / "t.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["prompt", "response_1", "response_2"])
        writer.writerows(written)
    wanted = [
        dict(zip(("prompt", "response_1", "response_2"), (c or None for c in row), strict=True))
        for row in written
        if any(c.strip() for c in row)
    ]
    assert objects(path) == wanted


def test_numbers_are_told_by_the_columns_name(tmp_path):
    header = (
        "prompt,response_1,response_2,score_1,score_2,annotator,labels,is_response_0_safe,note\n"
    )
    assert objects(save(tmp_path, header + "42,007,1e3,4,2.5,7,1,TRUE,nan\n")) == [
        {"prompt": "42", "response_1": "007", "response_2": "1e3", "score_1": 4, "score_2": 2.5,
         "annotator": "7", "labels": 1, "is_response_0_safe": True, "note": "nan"}
    ]  # fmt: skip
    assert [is_text(n) for n in ("Response A", "回答1", "rank_1", "system", "helpfulness")] == [
        True, True, False, True, False,
    ]  # fmt: skip


def test_a_conversation_in_a_cell_is_a_conversation(tmp_path):
    turns = [{"role": "user", "content": "问"}]
    quoted = json.dumps(turns, ensure_ascii=False).replace('"', '""')
    (row,) = objects(save(tmp_path, f'prompt,chosen,rejected\n"{quoted}",a,"[{{not json"\n'))
    assert row == {"prompt": turns, "chosen": "a", "rejected": "[{not json"}


# --- Excel, Parquet, Arrow


def book(tmp_path, **sheets):
    openpyxl = pytest.importorskip("openpyxl")
    made = openpyxl.Workbook()
    made.remove(made.active)
    for title, rows in sheets.items():
        sheet = made.create_sheet(title)
        for row in rows:
            sheet.append(row)
    path = tmp_path / "t.xlsx"
    made.save(path)
    return path


HEADER = ["prompt", "response_1", "response_2", "rank_1", "rank_2"]


def test_a_workbook(tmp_path):
    day = datetime.datetime(2024, 5, 1, 12)
    path = book(
        tmp_path,
        Sheet1=[
            ["标注", None, None],
            [],
            [*HEADER, "day"],
            ["问", "甲", "乙_x000D_\n丙", 1, 2.0, day],
            [42, 7, True, None, "x"],
        ],
    )
    found = list(read(path))
    assert [(r.line, r.obj) for r in found] == [
        (4, {"prompt": "问", "response_1": "甲", "response_2": "乙\n丙", "rank_1": 1, "rank_2": 2,
             "day": "2024-05-01T12:00:00"}),
        (5, {"prompt": 42, "response_1": 7, "response_2": True, "rank_1": None, "rank_2": "x",
             "day": None}),
    ]  # fmt: skip
    assert detect(path).format.name == "table"


def test_sheets_without_a_header_are_said(tmp_path):
    path = book(
        tmp_path,
        Votes=[HEADER, ["q", "a", "b", 1, 2]],
        More=[HEADER, ["q2", "a", "b", 2, 1]],
        Notes=[["Please rank every answer"], ["Thank you"]],
        Empty=[],
    )
    assert [o if isinstance(o, str) else o["prompt"] for o in objects(path)] == [
        "q", "q2", "no_header",
    ]  # fmt: skip


def test_a_hidden_sheet_is_not_read_and_a_wrong_size_does_not_cut_rows(tmp_path):
    import zipfile

    path = book(tmp_path, Votes=[HEADER, ["q", "a", "b", 1, 2]])
    odd = tmp_path / "odd.xlsx"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(odd, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith("sheet1.xml"):
                assert b'<dimension ref="A1:E2"' in data
                data = data.replace(b'<dimension ref="A1:E2"', b'<dimension ref="A1"')
            new.writestr(info.filename, data)
    assert len(objects(odd)) == 1
    assert objects(odd)[0]["rank_2"] == 2


def test_damaged_workbooks_and_a_missing_reader_are_user_errors(tmp_path, monkeypatch):
    path = book(tmp_path, Votes=[HEADER])
    cut = save(tmp_path, path.read_bytes()[:-40], "cut.xlsx")
    assert "zip archive" in refused(cut)
    assert "an old Excel workbook" in refused(save(tmp_path, b"\xd0\xcf\x11\xe0" * 9, "t.xls"))
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert refused(path).endswith("needs openpyxl. pip install 'align[annotations]'.")


def test_parquet_and_arrow(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"chosen": [{"role": "user", "content": "问"}], "n": decimal.Decimal("1.50"),
         "when": datetime.date(2024, 5, 1), "raw": b"abc", "map": [("k", 1)]},
        {"chosen": None, "n": None, "when": None, "raw": b"\xff", "map": None},
    ]  # fmt: skip
    kinds = {
        "chosen": pyarrow.list_(
            pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
        ),
        "n": pyarrow.decimal128(5, 2),
        "when": pyarrow.date32(),
        "raw": pyarrow.binary(),
        "map": pyarrow.map_(pyarrow.string(), pyarrow.int64()),
    }
    table = pyarrow.Table.from_pylist(rows, pyarrow.schema(list(kinds.items())))
    parquet.write_table(table, tmp_path / "t.parquet")
    for name, new in (("t.arrow", pyarrow.ipc.new_stream), ("f.arrow", pyarrow.ipc.new_file)):
        with pyarrow.OSFile(str(tmp_path / name), "wb") as sink, new(sink, table.schema) as file:
            file.write_table(table)
    wanted = [
        {"chosen": [{"role": "user", "content": "问"}], "n": 1.5, "when": "2024-05-01",
         "raw": "abc", "map": [["k", 1]]},
        "bad_encoding",
    ]  # fmt: skip
    for name in ("t.parquet", "t.arrow", "f.arrow"):
        assert objects(tmp_path / name) == wanted
    cut = save(tmp_path, (tmp_path / "t.parquet").read_bytes()[:-20], "cut.parquet")
    assert "a damaged Parquet file" in refused(cut)
    assert "a damaged Arrow file" in refused(save(tmp_path, b"\xff" * 50, "cut.arrow"))
