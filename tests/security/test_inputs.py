"""Configuration files, archives, compressed files and temporary files from elsewhere."""

from __future__ import annotations

import gzip
import os
import stat
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from align.cleaning import extract, streams
from align.cleaning.main import main as clean
from align.config import load_config
from align.config_errors import UserError
from align.config_yaml import MAX_VALUES, load_yaml
from align.evaluation.history import config_value
from align.report import write_run_report
from reward_models.annotations import archives
from reward_models.annotations.archives import expand
from reward_models.annotations.reading import read
from reward_models.annotations.spool import Spool

LAUGHS = "a0: &a0 [哈, 哈]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


def config(tmp_path: Path, text: str) -> str:
    (tmp_path / "my.yaml").write_text(text, "utf-8")
    return str(tmp_path / "my.yaml")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, f"unfolds to more than {MAX_VALUES} values"),
        ("policy: &p\n  path: *p\n", "holds itself"),
        ("policy: !!python/object/apply:os.system ['touch mark']\n", "could not determine"),
        ("policy: {path: null}\npolicy: {path: b}\n", "written twice"),
        ("[" * 5000, "is not valid YAML"),
        ("? [a, b]\n: 1\n", "is not valid YAML"),
        ("data: {sft: 2001-99-99}\n", "is not valid YAML"),
        ("policy: \x00\n", "is not valid YAML"),
    ],
)
def test_hostile_yaml_is_an_error_with_a_place(tmp_path, monkeypatch, text, reason, fault):
    fault("a YAML file with code, or that unfolds to billions", "refused, exit code 2")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=reason):
        load_config("sft", ["--config", config(tmp_path, text)])
    assert not (tmp_path / "mark").exists()


def test_aliases_in_reason_are_taken():
    assert load_yaml("a: &x {r: 1}\nb: *x\n") == {"a": {"r": 1}, "b": {"r": 1}}


def test_a_runs_configuration_from_elsewhere_is_held_to_the_same(tmp_path):
    config_file = tmp_path / "config.yaml"
    config_file.write_text(LAUGHS + "eval: {prompts: x}\n", "utf-8")
    assert config_value(tmp_path, "eval.prompts") is None
    assert write_run_report(tmp_path).is_file()
    with pytest.raises(yaml.YAMLError):
        load_yaml(config_file.read_text("utf-8"))


def test_a_link_in_an_archive_is_not_followed(tmp_path, fault):
    fault("an archive with links or paths that lead out of it", "refused or skipped, and said")
    (tmp_path / "secret.jsonl").write_text('{"prompt": "x"}\n')
    link = zipfile.ZipInfo("link.jsonl")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr(link, str(tmp_path / "secret.jsonl"))
        archive.writestr("good.jsonl", '{"prompt": "好"}\n')
    found, skipped = expand([str(tmp_path / "in.zip")])
    assert [source.member for source in found] == ["good.jsonl"]
    assert [(Path(s.file).name, s.reason) for s in skipped] == [("link.jsonl", "a link")]


def test_a_packed_table_that_unpacks_without_end_is_refused(tmp_path, monkeypatch, fault):
    fault("a compressed file that unpacks to gigabytes", "refused, or read in bounded memory")
    monkeypatch.setattr(archives, "RATIO_FROM", 1 << 20)
    file = tmp_path / "table.parquet.gz"
    file.write_bytes(gzip.compress(b"PAR1" + bytes(64 << 20)))
    with pytest.raises(UserError, match="times its size, like a zip bomb"):
        list(read(file))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_line_without_end_is_passed_over(tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(streams, "LINE_BYTES", 1 << 20)
    monkeypatch.setattr("align.cleaning.readers.LINE_BYTES", 1 << 20)
    text = "前面的一行，早餐很丰富。\n" + "x" * (6 << 20) + "\n后面的一行，房间很干净。\n"
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt.gz").write_bytes(gzip.compress(text.encode(encoding)))
    out = tmp_path / "out"
    words = ["--input", str(tmp_path / "in"), "--output", str(out), "--rules", "none"]
    assert clean([*words, "--documents", "line", "--workers", "1"]) == 0
    kept = "".join(path.read_text("utf-8") for path in out.glob("*.jsonl"))
    assert "前面的一行" in kept
    assert "后面的一行" in kept
    assert "xxxx" not in kept


def test_an_endless_page_of_a_crawl_is_not_held(monkeypatch):
    monkeypatch.setattr(extract, "PAGE_BYTES", 3 << 20)

    class Record:
        http_headers = None

        class rec_headers:
            @staticmethod
            def get_header(_name):
                return "text/html"

        @staticmethod
        def content_stream():
            class Endless:
                @staticmethod
                def read(n):
                    return bytes(n)

            return Endless()

    assert extract._page(Record())[0] == "page_too_large"


@pytest.mark.skipif(sys.platform == "win32", reason="files have names there")
def test_what_an_import_pickles_lies_in_a_file_that_nobody_else_can_open(tmp_path):
    """Rows wait there as pickles: only this process may be able to write what it will read."""
    spool = Spool(tmp_path)
    spool.add(b"0" * 16, b"value")
    found = os.fstat(spool._file.fileno())
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_nlink == 0  # no name: a path to it does not exist
    assert list(tmp_path.iterdir()) == []
    assert list(spool.groups()) == [[b"value"]]
    spool.close()
