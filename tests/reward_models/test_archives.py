"""Folders and zip archives → the files in them; dangerous and damaged ones are refused."""

from __future__ import annotations

import gzip
import json
import os
import zipfile

import pytest

from align.config_errors import UserError
from reward_models.annotations import archives
from reward_models.annotations.archives import Source, expand
from reward_models.annotations.reading import read

LINE = b'{"a": 1}\n'


def put(folder, *names, data=LINE):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def pack(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def found(*inputs):
    sources, skipped = expand([str(i) for i in inputs])
    return [s.name for s in sources], [(s.file, s.reason) for s in skipped]


def refused(path):
    with pytest.raises(UserError) as caught:
        expand([str(path)])
    return str(caught.value)


def test_folders_are_walked_in_order_of_name(tmp_path):
    put(tmp_path, "b.jsonl", "a/z.json", "a/k.jsonl.gz", "a/K.CSV", "c/x.tsv", "c/y.parquet",
        "c/book.xlsx", "d.ndjson")  # fmt: skip
    put(tmp_path, "c/pic.png", "README", ".hidden.jsonl", ".git/x.json", "c/~$book.xlsx",
        "c/dataset_info.json")  # fmt: skip
    names, skipped = found(tmp_path)
    assert names == [
        str(tmp_path / n)
        for n in ("b.jsonl", "d.ndjson", "a/K.CSV", "a/k.jsonl.gz", "a/z.json", "c/book.xlsx",
                  "c/x.tsv", "c/y.parquet")
    ]  # fmt: skip
    assert dict(skipped) == {
        str(tmp_path / "README"): "no extension",
        str(tmp_path / ".hidden.jsonl"): "hidden",
        str(tmp_path / ".git") + os.sep: "hidden",
        str(tmp_path / "c/pic.png"): "unknown extension .png",
        str(tmp_path / "c/~$book.xlsx"): "hidden",
        str(tmp_path / "c/dataset_info.json"): "description of a data set",
    }


def test_a_file_counts_once_however_it_is_named(tmp_path):
    put(tmp_path, "a.jsonl", "sub/b.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    names, skipped = found(tmp_path / "a.jsonl", tmp_path, tmp_path / "sub" / ".." / "a.jsonl")
    assert names == [str(tmp_path / n) for n in ("a.jsonl", "sub/b.jsonl")]
    assert [reason for _, reason in skipped] == ["link to a folder"]
    # A file that is named itself is read whatever it is called.
    put(tmp_path, "README")
    assert found(tmp_path / "README")[0] == [str(tmp_path / "README")]


def test_results_of_an_import_are_no_input(tmp_path):
    for name in ("preferences", "pairs", "train", "rejects"):
        put(tmp_path, f"prefs/{name}.jsonl")
    put(tmp_path, "prefs/report.json", "prefs/more.jsonl", "x/report.json", "x/train.jsonl")
    names, skipped = found(tmp_path)
    assert names == [
        str(tmp_path / n) for n in ("prefs/more.jsonl", "x/report.json", "x/train.jsonl")
    ]
    assert {reason for _, reason in skipped} == {"result of an import"}
    (tmp_path / "prefs/more.jsonl").unlink()
    said = refused(tmp_path / "prefs")
    assert "holds no file that can be read (result of an import)" in said
    assert f"give {tmp_path / 'prefs' / 'preferences.jsonl'}" in said


def test_members_of_an_archive_are_files(tmp_path):
    path = pack(
        tmp_path / "e.zip",
        **{
            "b/丽.jsonl": LINE,
            "a/x": b"no extension",
            "all": b"",
            "__MACOSX/y.json": b"?",
            "admin.jsonl": LINE * 2,
            "t.csv": b"prompt,response_1,response_2,winner\nq,a,b,1\n",
            "z.jsonl.gz": gzip.compress(LINE * 3),
            ".secret.json": LINE,
        },
    )
    sources, skipped = expand([str(path)])
    assert [s.name for s in sources] == [
        f"{path}/{n}" for n in ("admin.jsonl", "b/丽.jsonl", "t.csv", "z.jsonl.gz")
    ]
    rows = {s.name[len(str(path)) + 1 :]: list(read(s)) for s in sources}
    assert {n: len(r) for n, r in rows.items()} == {
        "admin.jsonl": 2, "b/丽.jsonl": 1, "t.csv": 1, "z.jsonl.gz": 3,
    }  # fmt: skip
    assert rows["b/丽.jsonl"][0].file == f"{path}/b/丽.jsonl"
    assert rows["b/丽.jsonl"][0].stem == "丽"
    assert rows["t.csv"][0].obj["winner"] == 1
    assert len(skipped) == 4


def test_member_names_without_a_flag_are_utf8_or_the_named_encoding(tmp_path):
    def zipped(raw):
        path = pack(tmp_path / "n.zip", **{"x" * len(raw) + ".jsonl": LINE})
        data = path.read_bytes().replace(b"x" * len(raw), raw)
        path.write_bytes(data)
        return path

    path = zipped("丽丽".encode())
    sources, _ = expand([str(path)])
    assert sources[0].name == f"{path}/丽丽.jsonl"
    path = zipped("丽丽丽丽".encode("gbk"))
    sources, _ = expand([str(path)], "gb18030")
    assert sources[0].name == f"{path}/丽丽丽丽.jsonl"
    assert [r.obj for r in read(sources[0])] == [{"a": 1}]
    assert expand([str(path)])[0][0].name != f"{path}/丽丽丽丽.jsonl"


@pytest.mark.parametrize(
    "name", ["../x.jsonl", "a/../../x.jsonl", "/etc/x.jsonl", "C:/x.jsonl", "..\\x.jsonl"]
)
def test_a_path_outside_of_the_archive_is_refused(tmp_path, name):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.jsonl", LINE)
        archive.writestr(zipfile.ZipInfo(name), LINE)
    assert "leads out of the archive" in refused(path)
    assert not (tmp_path.parent / "x.jsonl").exists()


def test_zip_bombs_are_refused_before_they_are_read(tmp_path, monkeypatch):
    path = pack(tmp_path / "bomb.zip", **{"x.jsonl": b" " * (70 << 20)})
    assert path.stat().st_size < 100_000
    said = refused(path)
    assert "times its size, like a zip bomb" in said
    # Well-packed text below the size that could do harm is read.
    small = pack(tmp_path / "small.zip", **{"x.jsonl": LINE * 100_000})
    assert found(small)[0] == [f"{small}/x.jsonl"]
    monkeypatch.setattr(archives, "MAX_UNPACKED", 1000)
    assert "unpacks to" in refused(small)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 1)
    many = pack(tmp_path / "many.zip", **{"x.jsonl": LINE, "y.jsonl": LINE})
    assert "holds over 1 files" in refused(many)


def test_a_workbook_that_is_a_bomb_is_refused(tmp_path):
    path = pack(tmp_path / "b.xlsx", **{"xl/workbook.xml": b"<a/>", "x.xml": b" " * (70 << 20)})
    with pytest.raises(UserError, match="like a zip bomb"):
        list(read(path))


def test_encrypted_nested_empty_and_damaged_archives_are_refused(tmp_path):
    inner = pack(tmp_path / "i.zip", **{"x.jsonl": LINE})
    nested = pack(tmp_path / "n.zip", **{"good.jsonl": LINE, "a/i.zip": inner.read_bytes()})
    assert f"{nested}/a/i.zip' is an archive inside an archive" in refused(nested)
    assert "without a file that can be read" in refused(pack(tmp_path / "e.zip"))
    assert "without a file that can be read" in refused(pack(tmp_path / "p.zip", **{"p.png": b"x"}))
    cut = tmp_path / "cut.zip"
    cut.write_bytes(inner.read_bytes()[:-10])
    assert "is a damaged zip archive" in refused(cut)
    locked = bytearray(inner.read_bytes())
    locked[6] |= 1  # in the member's own header and in the directory
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "l.zip").write_bytes(bytes(locked))
    assert "x.jsonl' is encrypted" in refused(tmp_path / "l.zip")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(inner, "a") as archive:
        archive.writestr("x.jsonl", b"{}")
    assert "is in the archive twice" in refused(inner)


def test_a_damaged_member_ends_with_a_row_that_says_so(tmp_path):
    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("x.jsonl", LINE * 20_000)
        archive.writestr("y.jsonl", LINE)
    data = bytearray(path.read_bytes())
    data[100_000] ^= 1  # the checksum at the member's end is not met
    path.write_bytes(bytes(data))
    sources, _ = expand([str(path)])
    rows = list(read(sources[0]))
    assert len(rows) > 10_000
    assert rows[-1].ends
    assert rows[-1].error
    assert rows[-1].error[0] == "truncated_file"
    assert [r.obj for r in read(sources[1])] == [{"a": 1}]


def test_other_archives_say_what_to_do(tmp_path):
    import tarfile

    put(tmp_path, "x.jsonl")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "x.jsonl", "x.jsonl")
    for name, data, what in (
        ("x.tar.gz", None, "is a tar archive"),
        ("x.zst", b"\x28\xb5\x2f\xfd...", "is compressed by zstd"),
        ("x.bz2", b"BZh9...", "is compressed by bzip2"),
        ("x.xz", b"\xfd7zXZ\x00", "is compressed by xz"),
        ("x.pdf", b"%PDF-1.7", "is a PDF"),
        ("x.db", b"SQLite format 3\x00", "is an SQLite data base"),
    ):
        if data:
            put(tmp_path, name, data=data)
        with pytest.raises(UserError, match=what):
            list(read(tmp_path / name))


def test_inputs_that_are_not_there(tmp_path):
    assert "does not exist" in refused(tmp_path / "none.zip")
    assert "holds no file that can be read" in refused(tmp_path)
    assert Source(tmp_path / "x").name == str(tmp_path / "x")


def test_gzip_is_known_by_its_content(tmp_path):
    put(tmp_path, "x.jsonl", data=gzip.compress(json.dumps({"a": "文"}).encode()))
    assert [r.obj for r in read(tmp_path / "x.jsonl")] == [{"a": "文"}]
