"""Reading pre-training text."""

from __future__ import annotations

import gzip

import pytest

from align.data.corpus import iter_texts, load_texts, text_files, write_text
from align.jsonl import RecordError


def test_txt_is_one_paragraph_a_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff房间很大。\r\n\n  \nThe room was small.\u2028still one line\n".encode())
    assert list(iter_texts(path)) == ["房间很大。", "The room was small.\u2028still one line"]


def test_jsonl_keeps_line_breaks_inside_a_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "一\\n二", "id": 3}\n\n{"text": ""}\n', encoding="utf-8")
    assert list(iter_texts(path)) == ["一\n二"]


def test_gz_and_folders_in_name_order(tmp_path):
    (tmp_path / "b.txt").write_text("乙\n", encoding="utf-8")
    with gzip.open(tmp_path / "a.txt.gz", "wb") as file:
        file.write("甲\n".encode())
    (tmp_path / "notes.pdf").write_bytes(b"no text")
    assert list(iter_texts(tmp_path)) == ["甲", "乙"]
    assert [p.name for p in text_files(tmp_path)] == ["a.txt.gz", "b.txt"]


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("a.txt", "好\n".encode() + "坏".encode("gbk"), "bad_encoding", "a.txt:2"),
        ("a.jsonl", b'{"text": "x"}\n{"content": "y"}\n', "missing_field", "a.jsonl:2"),
        ("a.jsonl", b'{"text": ["x"]}\n', "not_text", "a.jsonl:1"),
        ("a.jsonl", b'{"text": \n', "bad_json", "a.jsonl:1"),
        ("a.docx", b"", "unknown_format", ".jsonl"),
    ],
)
def test_errors_name_file_and_line(tmp_path, name, content, code, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RecordError) as caught:
        list(iter_texts(path))
    assert caught.value.code == code
    assert words in str(caught.value)


def test_missing_and_empty(tmp_path):
    with pytest.raises(RecordError, match="does not exist"):
        list(iter_texts(tmp_path / "gone.txt"))
    with pytest.raises(RecordError, match=r"no \.txt, \.jsonl or \.parquet"):
        text_files(tmp_path)
    (tmp_path / "a.txt").write_text("\n\n")
    with pytest.raises(RecordError, match="holds no text"):
        load_texts(tmp_path / "a.txt")


def test_load_counts(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "一\n二\n")
    texts, counts = load_texts(tmp_path / "new" / "a.txt")
    assert (texts, counts.used) == (["一", "二"], 2)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.txt"]
