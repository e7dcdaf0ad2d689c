"""Files into rows: every byte is part of a row, an error row, or behind an error that says so."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.config_errors import UserError
from reward_models.annotations import reading
from reward_models.annotations.detect import detect, format_named
from reward_models.annotations.reading import read


def rows(tmp_path, content, name="x.json"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return [(r.line, r.error[0] if r.error else r.obj) for r in read(path)]


def last(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return list(read(path))[-1]


def test_jsonl_goes_on_behind_a_broken_line(tmp_path):
    text = '{"a": 1}\n\n{"a": \n"文"\n' + "[" * 100_000 + "\n" + "9" * 5000 + "\n{}"
    assert rows(tmp_path, text) == [
        (1, {"a": 1}), (3, "bad_json"), (4, "文"), (5, "bad_json"), (6, "bad_json"), (7, {}),
    ]  # fmt: skip
    assert rows(tmp_path, b'{"a": 1}\n"\xc4\xe3"\n{}') == [
        (1, {"a": 1}),
        (2, "bad_encoding"),
        (3, {}),
    ]


def test_arrays_and_documents_in_any_layout(tmp_path):
    assert rows(tmp_path, '[{"a": 1}, [2],\n 3.5, null]') == [
        (1, {"a": 1}), (1, [2]), (2, 3.5), (2, None),
    ]  # fmt: skip
    assert rows(tmp_path, '{\n "a": 1\n}\n{\n "a": 2\n}') == [(1, {"a": 1}), (4, {"a": 2})]
    assert rows(tmp_path, "[]") == []
    bom = b"\xef\xbb\xbf"
    assert rows(tmp_path, bom + b'[{"a": 1}]') == rows(tmp_path, bom + b'{"a": 1}')


def test_arrays_behind_each_other_are_all_read(tmp_path):
    assert rows(tmp_path, '[{"a": 1}]\n[{"a": 2},\n{"a": 3}]\n') == [
        (1, {"a": 1}), (2, {"a": 2}), (3, {"a": 3}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "before", "code"),
    [
        ('[{"a": 1}, {"a": ', 1, "truncated_file"),
        ('[{"a": 1},', 1, "truncated_file"),
        ('[{"a": 1}, {"a" 2}, {"a": 3}, {"a": 4}, {"a": 5}]', 1, "bad_json"),
        ('[{"a": 1}] and more', 1, "bad_json"),
        (b'[{"a": 1}, {"a": "\xff\x81"}]', 1, "bad_encoding"),
        (b'[{"a": 1}, {"a": "\xe6\x96\x87\xe6\x96\x87\xe6\x96\x87\xc4"}]', 1, "bad_encoding"),
        ('[{"a": 1}, ' + "[" * 100_000 + "]", 1, "bad_json"),
        ('{\n "a": 1\n}\n{\n "a": 1', 1, "truncated_file"),
    ],
)
def test_what_cannot_be_read_on_is_one_error_row_that_ends_the_file(
    tmp_path, content, before, code
):
    assert [found for _, found in rows(tmp_path, content)] == [{"a": 1}] * before + [code]
    assert last(tmp_path, content).ends


def test_a_window_that_ends_within_a_character_is_no_other_encoding(tmp_path, monkeypatch):
    text = json.dumps([{"a": "x" * 50 + "é" + "y" * 50}], ensure_ascii=False)
    cut = text.encode().index("é".encode()) + 1
    monkeypatch.setattr(reading, "CHUNK", cut)
    assert rows(tmp_path, text) == [(1, json.loads(text)[0])]
    # At the end of the file it is half a character.
    with pytest.raises(UserError, match="reads as Windows-1252"):
        rows(tmp_path, b'["caf\xe9')


def test_damaged_gzip_files(tmp_path):
    whole = gzip.compress(b'{"a": 1}\n' * 20_000, compresslevel=0)
    for damaged in (whole[: len(whole) // 2], whole[:-200] + b"\xff" * 192 + whole[-8:]):
        (tmp_path / "x.jsonl.gz").write_bytes(damaged)
        found = list(read(tmp_path / "x.jsonl.gz"))
        assert found[0].obj == {"a": 1}
        assert found[-1].ends
        assert found[-1].error
        assert found[-1].error[0] in ("truncated_file", "bad_json", "bad_encoding")
    (tmp_path / "x.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(UserError, match="cannot be read"):
        next(read(tmp_path / "x.jsonl.gz"))


def test_a_row_that_is_too_long_is_dropped_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_ROW_BYTES", 100)
    monkeypatch.setattr(reading, "CHUNK", 64)
    long = json.dumps({"a": "x" * 300})
    assert rows(tmp_path, f'{{"a": 1}}\n{long}\n{{"a": 2}}\n') == [
        (1, {"a": 1}), (2, "row_too_long"), (3, {"a": 2}),
    ]  # fmt: skip
    assert [f for _, f in rows(tmp_path, f'[{{"a": 1}}, {long}]')] == [{"a": 1}, "row_too_long"]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60)
@given(
    st.lists(st.dictionaries(st.text(max_size=3), values, max_size=3), min_size=1, max_size=6),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.integers(1, 9),
)
def test_what_was_written_is_read_whatever_the_layout(
    tmp_path_factory, written, indent, ascii, chunk
):
    folder = tmp_path_factory.mktemp("read")
    array, lines = folder / "a.json", folder / "l.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        array.write_text(json.dumps(written, ensure_ascii=ascii, indent=indent), "utf-8")
        lines.write_text("".join(json.dumps(w) + "\n" for w in written), "utf-8")
        assert [row.obj for row in read(lines)] == written
        patch.setattr(reading, "CHUNK", chunk + 63)
        assert [row.obj for row in read(array)] == written


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("folder", None, "is a folder"),
        ("missing.json", None, "does not exist"),
        ("empty.json", b" \n", "is empty"),
        ("x.json", b"PK\x03\x04rest", "is a zip archive"),
    ],
)
def test_unusable_files_are_user_errors(tmp_path, name, content, message):
    if name == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        next(read(tmp_path / name))


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
TASK = {"data": {"prompt": "q"}, "annotations": []}
GROUP = {"prompt": "q", "candidates": [], "judgements": []}


def detected(tmp_path, *objects):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(o) + "\n" for o in objects))
    return detect(path)


def test_each_format_is_told_from_its_content(tmp_path):
    found = {n: detected(tmp_path, o) for n, o in
             {"pairs": PAIR, "label_studio": TASK, "canonical": GROUP}.items()}  # fmt: skip
    assert {name: d.format.name for name, d in found.items()} == {n: n for n in found}
    assert found["pairs"].evidence == "1 of the first 1 rows: prompt, chosen and rejected"
    old = detected(tmp_path, {"data": {}, "completions": []})
    assert old.evidence.endswith("data and completions")
    assert detected(tmp_path, PAIR, PAIR, {"odd": 1}).evidence.startswith("2 of the first 3 rows")


def test_no_format_and_two_formats_are_errors_that_name_them(tmp_path):
    with pytest.raises(
        UserError, match=r"fits no known format; its keys are \['回答', '问'\].*pairs"
    ):
        detected(tmp_path, {"问": "q", "回答": "a"})
    with pytest.raises(
        UserError, match=r"more than one format: canonical.*; label_studio.*--format"
    ):
        detected(tmp_path, {**GROUP, **TASK})
    (tmp_path / "bad.jsonl").write_text("{oops\n")
    with pytest.raises(UserError, match=r"no readable row \(bad_json"):
        detect(tmp_path / "bad.jsonl")
    with pytest.raises(
        UserError, match=r"format='label-studio' is not known\. Did you mean label_studio"
    ):
        format_named("label-studio")
