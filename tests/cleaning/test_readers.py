"""Every format, every encoding, and files that are not what their name says."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.cleaning import streams
from align.cleaning.decoding import by_mark, declared, decode, guess, is_binary
from align.cleaning.readers import Reader
from align.cleaning.settings import Settings
from align.cleaning.sources import find_files, kind_of, units_of
from align.config_errors import UserError

ZH = "这家酒店的位置非常好，房间也很干净，服务员的态度让人觉得像在自己家里一样，下次来还会住这里。"
ZHT = "這家飯店的位置非常好，房間也很乾淨，服務員的態度讓人覺得像在自己家裡一樣，下次來還會住這裡。"
EN = "The room was clean and the staff were kind, so we would come back here again."
PAGE = """<html><head><title>t</title>{meta}</head><body>
<nav><a href="/">Home</a> <a href="/shop">Shop now</a> <a href="/login">Log in</a></nav>
<article><h1>{title}</h1>{body}</article>
<div class="advert">Buy cheap watches today</div>
<footer>Copyright 2024. All rights reserved. <a href="/privacy">Privacy</a></footer>
<script>var tracking = "secret";</script></body></html>"""


def read(path, **switches):
    """(texts, (place, reason) of what was refused) of an input."""
    refused = []
    reader = Reader(Settings(**switches), lambda f, place, why, s: refused.append((place, why)))
    texts = []
    for unit in units_of(find_files([str(path)])[0]):
        for _, places in reader.documents(unit):
            texts += [text for _, text in places]
    return texts, refused


def page(body: str, title: str, meta: str = "") -> str:
    paragraphs = "".join(f"<p>{body} {i}.</p>" for i in range(6))
    return PAGE.format(body=paragraphs, title=title, meta=meta)


# Text files


def test_lines_are_documents(tmp_path):
    (tmp_path / "a.txt").write_bytes(f"\ufeff{ZH}\r\n{EN}\r\nlast".encode())
    assert read(tmp_path) == ([ZH, EN, "last"], [])


def test_a_text_with_blank_lines_is_one_document(tmp_path):
    text = f"{ZH}\n\n{EN}\n \n{ZH}"
    (tmp_path / "a.txt").write_text(text)
    assert read(tmp_path) == ([text], [])
    assert read(tmp_path, documents="line")[0] == [ZH, EN, ZH]
    assert read(tmp_path, documents="paragraph")[0] == [ZH, EN, ZH]


def test_a_stray_blank_line_does_not_make_a_list_of_reviews_one_document(tmp_path):
    lines = [f"{i} {ZH}" for i in range(40)]
    (tmp_path / "a.txt").write_text("\n".join([*lines[:20], "", *lines[20:]]))
    assert read(tmp_path)[0] == lines


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "utf-16", "utf-16-le", "utf-16-be",
                                      "utf-8-sig", "utf-32"])  # fmt: skip
def test_chinese_encodings_are_found_out(tmp_path, encoding):
    text = ZHT if encoding == "big5" else ZH
    raw = f"{text}\n{text}第二\n".encode(encoding)
    (tmp_path / "a.txt").write_bytes(raw)
    assert read(tmp_path) == ([text, f"{text}第二"], [])


def test_mixed_encodings_in_one_file(tmp_path):
    raw = b"\n".join([ZH.encode(), ZH.encode("gb18030"), EN.encode()])
    (tmp_path / "a.txt").write_bytes(raw)
    assert read(tmp_path) == ([ZH, ZH, EN], [])


def test_latin_text_that_is_not_utf8(tmp_path):
    text = "Le garçon a mangé une pomme à l'école près de la forêt où il était né."
    (tmp_path / "a.txt").write_bytes((text + "\n").encode("cp1252") * 3)
    assert read(tmp_path)[0] == [text] * 3


def test_an_encoding_that_is_given(tmp_path):
    (tmp_path / "a.txt").write_bytes("短".encode("gb18030") + b"\n")
    assert read(tmp_path, encoding="gb18030") == (["短"], [])


def test_a_binary_file_named_txt(tmp_path):
    (tmp_path / "a.txt").write_bytes(random.Random(0).randbytes(5000))
    (tmp_path / "b.txt").write_text(EN)
    assert read(tmp_path) == ([EN], [(0, "binary_file")])


def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "LINE_BYTES", 3 << 20)
    (tmp_path / "a.txt").write_bytes(b"first\n" + b"x" * (9 << 20) + b"\nlast\n")
    assert read(tmp_path) == (["first", "last"], [(6, "line_too_long")])
    (tmp_path / "a.txt").write_bytes(b"x" * (9 << 20))
    assert read(tmp_path) == ([], [(0, "line_too_long")])


LINES = st.lists(st.sampled_from(["", "a", "文字", "x" * 9, " "]), max_size=30)


@given(LINES, st.integers(3, 40), st.booleans(), st.sampled_from(["line", "paragraph"]))
@settings(max_examples=200)
def test_units_of_any_size_read_every_document_once(tmp_path_factory, lines, size, end, documents):
    path = tmp_path_factory.mktemp("u") / "a.txt"
    path.write_text("\n".join(lines) + ("\n" if end else ""))
    files, _ = find_files([str(path)])
    reader = Reader(Settings(documents=documents), lambda *_: None)
    whole, parts = [], []
    for target, unit_bytes in ((whole, 1 << 20), (parts, size)):
        for unit in units_of(files, unit_bytes):
            for _, places in reader.documents(unit):
                target += places
    assert parts == whole


def test_small_blocks_read_the_same_lines(tmp_path, monkeypatch):
    text = "\n".join(f"{i} {ZH}" for i in range(200))
    (tmp_path / "a.txt").write_text(text)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 100)
    assert read(tmp_path, documents="line")[0] == text.split("\n")


# Rows


def test_json_lines(tmp_path):
    rows = [{"text": ZH}, {"content": EN}, {"id": 1}, {"text": 5}, {"text": " "}, "bare"]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{half", ""]))
    texts, refused = read(tmp_path)
    assert texts == [ZH, EN, "bare"]
    assert [why for _, why in refused] == ["no_text_field", "no_text_field", "empty", "bad_json"]


def test_a_field_that_is_given(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"review": ZH, "text": EN}))
    assert read(tmp_path, text_field="review")[0] == [ZH]


def test_a_json_array(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"text": ZH}, {"text": EN}]))
    assert read(tmp_path) == ([ZH, EN], [])


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_compressed_lines(tmp_path, suffix):
    raw = "".join(json.dumps({"text": f"{EN} {i}"}) + "\n" for i in range(50)).encode()
    import zstandard

    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
            "zst": zstandard.ZstdCompressor().compress}[suffix]  # fmt: skip
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(pack(raw))
    assert read(tmp_path) == ([f"{EN} {i}" for i in range(50)], [])
    # Cut short: what can be read is, and the file is reported.
    long = "".join(json.dumps({"text": f"{random.Random(i).random()} {EN}"}) + "\n"
                   for i in range(60000)).encode()  # fmt: skip
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(pack(long)[:-2000])
    texts, refused = read(tmp_path)
    assert [why for _, why in refused][-1] == "damaged_file"
    assert all(text.endswith(EN) for text in texts)


def test_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [ZH, None, EN], "n": [1, 2, 3]}), tmp_path / "a.parquet")
    assert read(tmp_path) == ([ZH, EN], [(1, "empty")])
    with pytest.raises(UserError, match=r"is no column of a.parquet. Its columns: text, n"):
        read(tmp_path, text_field="body")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    assert read(tmp_path) == ([], [(0, "damaged_file")])


# Pages


@pytest.mark.parametrize(("body", "title"), [(ZH, "酒店"), (EN, "Hotel")])
def test_main_text_of_a_page(tmp_path, body, title):
    (tmp_path / "a.html").write_text(page(body, title))
    (text,), refused = read(tmp_path)
    assert refused == []
    assert text.count(body) == 6
    for gone in ("Shop now", "cheap watches", "rights reserved", "tracking"):
        assert gone not in text
    (all_text,), _ = read(tmp_path, extract_html=False)
    assert "Shop now" in all_text
    assert "tracking" not in all_text


def test_a_page_says_its_encoding(tmp_path):
    meta = '<meta charset="gb2312">'
    (tmp_path / "a.html").write_bytes(page(ZH, "酒店", meta).encode("gb18030"))
    (text,), _ = read(tmp_path)
    assert ZH in text


def test_a_page_without_text(tmp_path):
    (tmp_path / "a.html").write_text(
        "<html><head><title>t</title></head><body><script>x = 1</script></body></html>"
    )
    assert read(tmp_path) == ([], [(0, "no_main_text")])


def warc(path, answers):
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for status, kind, body in answers:
            headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
            record = writer.create_warc_record("http://a/", "response", payload=io.BytesIO(body),
                                               http_headers=headers)  # fmt: skip
            writer.write_record(record)


def test_a_crawl(tmp_path):
    warc(tmp_path / "a.warc.gz", [
        ("200 OK", "text/html; charset=gb18030", page(ZH, "酒店").encode("gb18030")),
        ("404 Not Found", "text/html", b"<p>gone</p>"),
        ("200 OK", "image/png", b"\x89PNG"),
        ("200 OK", "text/plain", EN.encode()),
    ])  # fmt: skip
    texts, refused = read(tmp_path)
    assert ZH in texts[0]
    assert texts[1:] == [EN]
    assert refused == [(1, "not_found"), (2, "not_a_page")]


def test_pdf(tmp_path):
    (tmp_path / "a.pdf").write_bytes(_pdf(["The first line of text", "goes on here. It ends."]))
    (text,), refused = read(tmp_path)
    assert (text, refused) == ("The first line of text goes on here. It ends.", [])
    (tmp_path / "a.pdf").write_bytes(_pdf([]))
    assert read(tmp_path) == ([], [(0, "no_text_layer")])
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4 cut")
    assert read(tmp_path) == ([], [(0, "damaged_file")])


def _pdf(lines: list[str]) -> bytes:
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    sheet = writer.add_blank_page(300, 300)
    font = DictionaryObject({NameObject("/Type"): NameObject("/Font"),
                             NameObject("/Subtype"): NameObject("/Type1"),
                             NameObject("/BaseFont"): NameObject("/Helvetica")})  # fmt: skip
    fonts = DictionaryObject({NameObject("/F1"): writer._add_object(font)})
    sheet[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    stream = DecodedStreamObject()
    shown = " ".join(f"1 0 0 1 20 {200 - 20 * i} Tm ({t}) Tj" for i, t in enumerate(lines))
    stream.set_data(f"BT /F1 12 Tf {shown} ET".encode())
    sheet[NameObject("/Contents")] = writer._add_object(stream)
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def test_code_and_markdown_are_one_document_each(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n\n\ny = 2\n")
    (tmp_path / "b.md").write_text("# T\n\n- one\n")
    assert read(tmp_path)[0] == ["x = 1\n\n\ny = 2\n", "# T\n\n- one\n"]


# Files


def test_kinds():
    assert [kind_of(__import__("pathlib").Path(n)) for n in
            ("a.TXT", "a.jsonl.zst", "a.warc.gz", "a.tar.gz", "README", "a.tsx")] == [
        "text", "jsonl", "warc", None, None, "code"]  # fmt: skip


def test_folders_patterns_and_names(tmp_path):
    for name in ("b/2.txt", "a/1.txt", ".git/3.txt", "a/.hidden.txt", "a/x.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("t")
    files, unknown = find_files([str(tmp_path)])
    assert [f.name for f in files] == ["a/1.txt", "b/2.txt"]
    assert unknown == ["a/x.bin"]
    files, _ = find_files([str(tmp_path / "*/*.txt"), str(tmp_path / "a/1.txt")])
    assert len(files) == 2
    with pytest.raises(UserError, match=r"does not exist"):
        find_files([str(tmp_path / "gone")])
    with pytest.raises(UserError, match=r"names no file that can be read"):
        find_files([str(tmp_path / "a/x.bin")])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    from align.cleaning import readers

    (tmp_path / "a.txt").write_text(EN)
    (tmp_path / "b.txt").write_text(ZH)
    opened = readers.open_bytes

    def refuse(path):
        if path.endswith("a.txt"):
            raise PermissionError(13, "Permission denied", path)
        return opened(path)

    monkeypatch.setattr(readers, "open_bytes", refuse)
    assert read(tmp_path) == ([ZH], [(0, "unreadable_file")])
    (tmp_path / "c.txt").symlink_to(tmp_path / "gone")
    assert read(tmp_path) == ([ZH], [(0, "unreadable_file")] * 2)
    assert os.path.exists(tmp_path / "a.txt")


# Encodings


def test_marks_and_binary():
    assert by_mark("文字".encode("utf-16")) == "utf-16"
    assert by_mark(("line one\n" * 9).encode("utf-16-le")) == "utf-16-le"
    assert by_mark(b"plain text") is None
    assert is_binary(b"\x00\x01\x02" * 100)
    assert not is_binary(ZH.encode("gb18030"))
    assert not is_binary(b"")


def test_declared_code_pages_are_widened():
    assert declared(b'<meta http-equiv="x" content="text/html; charset=GBK">') == "gb18030"
    assert declared(b"<meta charset=nonsense-99>") is None


def test_guesses():
    assert guess(ZH.encode("gb18030")) == "gb18030"
    assert guess(ZHT.encode("big5")) == "big5hkscs"
    russian = "Это обычный русский текст, который был сохранён в старой кодировке Windows."
    assert russian == decode(russian.encode("cp1251"))
    assert decode(b"\xff\xfe\xfd" + bytes(range(128, 160)), "utf-8") is None


@pytest.mark.parametrize(
    ("name", "content", "package", "line"),
    [
        ("a.html", page(EN, "Hotel").encode(), "trafilatura", "pip install 'align[data]'"),
        ("a.pdf", b"%PDF-1.4", "pypdf", "pip install 'align[pdf]'"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd", "zstandard", "pip install 'align[data]'"),
        (
            "a.txt",
            "短".encode("gb18030") + b"\xff\n",
            "charset-normalizer",
            "pip install 'align[data]'",
        ),
    ],
)
def test_a_missing_package_gives_the_install_line(
    tmp_path, monkeypatch, name, content, package, line
):
    (tmp_path / name).write_bytes(content)
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert f"needs the package {package}, which is not installed. {line}" in str(caught.value)
