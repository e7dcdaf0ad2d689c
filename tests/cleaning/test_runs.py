"""Whole runs through the recipe's command line: accounting, outputs, restarts, wrong input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from align.cleaning import pipeline
from align.cleaning.main import main
from align.cleaning.settings import Settings
from align.cleaning.store import Stored
from align.data.corpus import iter_texts
from align.jsonl import RecordError
from align.tools import run_tool

ROOT = Path(__file__).resolve().parents[2]
ZH = [f"第{i}家酒店在{street}，房间{good}，早餐也{taste}，{i}号房看得见{view}。"
      for i, (street, good, taste, view) in enumerate(
          (a, b, c, d) for a in ("江边", "山上", "市中心", "车站旁边") for b in ("很大", "很安静")
          for c in ("不错", "丰富") for d in ("湖", "花园", "街道"))]  # fmt: skip
EN = [
    f"Guest {i} {did} the {what} and {also}, which {how} the whole week."
    for i, (did, what, also, how) in enumerate(
        (a, b, c, d)
        for a in ("liked", "praised")
        for b in ("garden", "kitchen", "view of the sea")
        for c in ("slept well", "walked a lot")
        for d in ("made up for", "was better than")
    )
]


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "zh.txt").write_text("\n".join([*ZH, ZH[0], ZH[1] + "！", "短", "!!!!!!!!!!!!"]))
    rows = [json.dumps({"text": text}) for text in [*EN, EN[0].upper(), "mail a@b.com now please"]]
    (folder / "en.jsonl").write_text("\n".join([*rows, "{half"]))
    return folder


def clean(*argv: object) -> int:
    return main([str(word) for word in argv])


def rows_of(folder: Path, split: str = "train") -> list[dict]:
    index = json.loads((folder / "index.json").read_text())
    shards = index["splits"][split]["shards"]
    return [json.loads(line) for shard in shards
            for line in (folder / shard["file"]).read_text().splitlines()]  # fmt: skip


def test_every_document_is_accounted_for(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    assert clean("--input", corpus, "--output", out, "--workers", 1, "--keep_rejected",
                 "--validation_fraction", 0.2) == 0  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    dropped = {name: tally["documents"] for name, tally in report["dropped"].items()}
    assert dropped == {"too_short": 1, "few_letters": 1, "bad_json": 1, "exact_duplicate": 2,
                       "near_duplicate": dropped["near_duplicate"]}  # fmt: skip
    assert report["read"]["documents"] == report["kept"]["documents"] + sum(dropped.values())
    assert report["read"]["documents"] == len(ZH) + 4 + len(EN) + 3
    train, held = rows_of(out), rows_of(out, "validation")
    assert len(train) + len(held) == report["kept"]["documents"]
    assert len(held) > 3
    assert not {r["text"] for r in train} & {r["text"] for r in held}
    rejected = [json.loads(s) for s in (out / "rejected.jsonl").read_text().splitlines()]
    assert sorted(r["reason"] for r in rejected) == sorted(
        name for name, n in dropped.items() for _ in range(n)
    )
    assert report["pii"] == {"email": 1}
    assert any(r["text"] == "mail <EMAIL> now please" for r in train + held)
    assert {r["language"] for r in train} >= {"zh", "en"}
    page = (out / "report.html").read_text()
    for word in ("Funnel", "near_duplicate", "bad_json", "Length of documents", "Languages", "zh"):
        assert word in page
    assert sorted(p.name for p in out.iterdir()) == [
        "index.json", "rejected.jsonl", "report.html", "report.json", "train-00000.jsonl",
        "validation-00000.jsonl"]  # fmt: skip
    shown = capsys.readouterr().out
    assert "dropped   too_short                    1   e.g. 短" in shown


def test_where_a_document_came_from(corpus, tmp_path):
    clean("--input", corpus, "--output", tmp_path / "out", "--workers", 1)
    row = next(r for r in rows_of(tmp_path / "out") if r["text"] == ZH[5])
    name, place = row["source"].rsplit(":", 1)
    raw = (corpus / name).read_bytes()[int(place) :]
    assert raw.startswith(ZH[5].encode())


@pytest.mark.parametrize("workers", [1, 2])
def test_the_output_does_not_depend_on_workers(corpus, tmp_path, workers, monkeypatch):
    for i in range(3):
        (corpus / f"more{i}.txt").write_text("\n".join(text + f"再来{i}次" for text in ZH))
    args = {"inputs": [str(corpus)], "settings": Settings(near_duplicates=0.9)}
    found = []
    for n in (1, workers):
        job = pipeline.Job(
            output=tmp_path / f"out{n}{len(found)}", workers=n, unit_bytes=700, **args
        )
        result = pipeline.run(job, lambda _: None)
        assert result is not None
        pipeline.publish(job, result, lambda _: None)
        found.append({p.name: p.read_bytes() for p in job.output.iterdir()})
    shards = [{k: v for k, v in f.items() if k != "index.json"} for f in found]
    assert shards[0] == shards[1]
    assert len(pipeline.units_of(pipeline.find_files([str(corpus)])[0], 700)) > 5


def test_the_order_is_random_and_depends_on_the_seed_alone(corpus, tmp_path):
    texts = {}
    for name, more in (("a", []), ("b", []), ("c", ["--seed", 1]), ("d", ["--no-shuffle"])):
        clean("--input", corpus, "--output", tmp_path / name, "--workers", 1,
              "--validation_fraction", 0, *more)  # fmt: skip
        texts[name] = [r["text"] for r in rows_of(tmp_path / name)]
    assert texts["a"] == texts["b"]
    assert sorted(texts["a"]) == sorted(texts["c"]) == sorted(texts["d"])
    assert len({tuple(t) for t in texts.values()}) == 3
    # In the order of the files: en.jsonl, zh.txt.
    assert texts["d"][:3] == EN[:3]


def test_sources_are_repeated(corpus, tmp_path):
    zh, en = corpus / "zh.txt", corpus / "en.jsonl"
    clean("--input", zh, en, "--output", tmp_path / "o", "--workers", 1, "--near_duplicates", 0,
          "--validation_fraction", 0, "--repeat", f"{zh}=2", f"{en}=0.5")  # fmt: skip
    texts = [r["text"] for r in rows_of(tmp_path / "o")]
    kept = json.loads((tmp_path / "o/report.json").read_text())["sources"]
    zh_kept, en_kept = kept[str(zh)][2], kept[str(en)][2]
    assert sum(t in set(ZH) for t in texts) == 2 * sum(t in set(ZH) for t in {*texts})
    assert sum("酒店" in t for t in texts) == 2 * zh_kept
    assert 0 < sum("酒店" not in t for t in texts) < en_kept


def test_sources_have_the_shares_asked_for(corpus, tmp_path):
    zh, en = corpus / "zh.txt", corpus / "en.jsonl"
    clean("--input", zh, en, "--output", tmp_path / "o", "--workers", 1, "--near_duplicates", 0,
          "--validation_fraction", 0, "--share", f"{zh}=0.8", f"{en}=0.2")  # fmt: skip
    sizes = {True: 0, False: 0}
    for row in rows_of(tmp_path / "o"):
        sizes["酒店" in row["text"]] += len(row["text"].encode())
    assert sizes[True] / (sizes[True] + sizes[False]) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("form", ["jsonl", "parquet", "txt"])
def test_shards_of_every_format_are_read_back(corpus, tmp_path, form):
    clean("--input", corpus, "--output", tmp_path / "o", "--format", form, "--workers", 1,
          "--validation_fraction", 0.2)  # fmt: skip
    train, held = (set(iter_texts(tmp_path / "o", s)) for s in ("train", "validation"))
    assert train
    assert held
    assert not train & held
    report = json.loads((tmp_path / "o/report.json").read_text())
    assert len(train) + len(held) == report["kept"]["documents"]
    if form == "parquet":
        table = pq.read_table(tmp_path / "o/train-00000.parquet")
        assert table.column_names == ["text", "id", "source", "language"]


def test_a_corpus_without_held_out_documents_says_so(corpus, tmp_path):
    clean("--input", corpus, "--output", tmp_path / "o", "--validation_fraction", 0, "--workers", 1)
    with pytest.raises(RecordError, match=r"holds no validation documents: clean_corpus --valid"):
        list(iter_texts(tmp_path / "o", "validation"))
    (tmp_path / "o/train-00000.jsonl").unlink()
    with pytest.raises(RecordError, match=r"is missing, which index.json names"):
        list(iter_texts(tmp_path / "o"))


def test_one_file_instead_of_shards(corpus, tmp_path):
    out = tmp_path / "one.txt"
    assert clean("--input", corpus, "--output", out, "--workers", 1) == 0
    lines = out.read_text().splitlines()
    assert set(ZH[2:10]) <= set(lines)
    assert json.loads((tmp_path / "one.txt.report.json").read_text())["kept"]["documents"] == len(
        lines
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "in",
        "one.txt",
        "one.txt.index.json",
        "one.txt.report.html",
        "one.txt.report.json",
    ]


def test_contamination_word_lists_and_classifier(corpus, tmp_path):
    (tmp_path / "eval.jsonl").write_text(json.dumps({"question": ZH[3]}))
    (tmp_path / "words.txt").write_text("花园\n")
    (tmp_path / "judge.py").write_text(
        "def score(texts):\n    return ['sea' in t for t in texts]\n"
    )
    clean("--input", corpus, "--output", tmp_path / "o", "--workers", 1, "--near_duplicates", 0,
          "--decontaminate", tmp_path / "eval.jsonl", "--word_lists", tmp_path / "words.txt",
          "--classifier", f"{tmp_path}/judge.py:score")  # fmt: skip
    dropped = json.loads((tmp_path / "o/report.json").read_text())["dropped"]
    assert dropped["listed_words"]["documents"] == sum("花园" in t for t in [*ZH, ZH[1]])
    assert dropped["classifier"]["documents"] == sum("sea" in t for t in EN) + (
        "SEA" in EN[0].upper()
    )
    texts = " ".join(r["text"] for r in rows_of(tmp_path / "o"))
    assert ZH[3] not in texts
    assert dropped["contaminated"]["documents"] >= 1


def test_repeated_lines_go_and_what_is_left_stays(tmp_path):
    notice = "版权所有，未经许可不得转载本站内容。"
    for i, text in enumerate(ZH[:6]):
        (tmp_path / f"{i}.txt").write_text(f"{text}\n\n{notice}\n")
    (tmp_path / "6.txt").write_text(f"\n{notice}\n\n")
    clean("--input", tmp_path, "--output", tmp_path / "../o7", "--workers", 1, "--repeated_lines",
          3,
          "--near_duplicates", 0, "--validation_fraction", 0, "--documents", "file")  # fmt: skip
    texts = [r["text"] for r in rows_of(tmp_path / "../o7")]
    assert sum(notice in t for t in texts) == 1
    assert sorted(t.split("\n")[0] for t in texts) == sorted(ZH[:6])


# Restarts


def test_a_finished_run_is_not_done_again(corpus, tmp_path, capsys):
    argv = ["--input", corpus, "--output", tmp_path / "o", "--workers", 1]
    clean(*argv)
    before = (tmp_path / "o/train-00000.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    assert clean(*argv) == 0
    assert "is finished already" in capsys.readouterr().out
    assert (tmp_path / "o/train-00000.jsonl").stat().st_mtime_ns == before
    # Other settings make another corpus in its place; nothing of the old one stays.
    assert clean(*argv, "--format", "parquet") == 0
    assert not (tmp_path / "o/train-00000.jsonl").exists()
    # So does a shard that somebody removed.
    (tmp_path / "o/train-00000.parquet").unlink()
    assert clean(*argv, "--format", "parquet") == 0
    assert (tmp_path / "o/train-00000.parquet").exists()


def test_finished_units_are_not_read_again(corpus, tmp_path, monkeypatch):
    job = pipeline.Job([str(corpus)], tmp_path / "o", Settings(), unit_bytes=700)
    whole = pipeline.Job([str(corpus)], tmp_path / "whole", Settings(), unit_bytes=700)
    result = pipeline.run(whole, lambda _: None)
    assert result is not None
    pipeline.publish(whole, result, lambda _: None)
    done: list[str] = []
    work = pipeline._work

    def failing(settings, sources, files, folder, unit):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(folder)
        work(settings, sources, files, folder, unit)

    monkeypatch.setattr(pipeline, "_work", failing)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(job, lambda _: None)
    assert not (tmp_path / "o/index.json").exists()
    assert sorted(p.name for p in (tmp_path / "o/.work").iterdir()) == [
        "fingerprint", "unit-00000", "unit-00001", "unit-00002"]  # fmt: skip
    again: list[str] = []
    monkeypatch.setattr(pipeline, "_work", lambda *a: (again.append(a[3]), work(*a)))
    result = pipeline.run(job, lambda _: None)
    assert result is not None
    pipeline.publish(job, result, lambda _: None)
    assert not set(again) & set(done)
    for name in ("train-00000.jsonl", "validation-00000.jsonl"):
        if (tmp_path / "whole" / name).exists():
            assert (tmp_path / "o" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "o/.work").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_run_goes_on(tmp_path, workers):
    source = tmp_path / "in"
    source.mkdir()
    for i in range(40):
        (source / f"{i:02d}.txt").write_text("\n".join(f"{t}{i}号楼" for t in ZH) * 30)
    script = (
        "import sys; from align.cleaning import sources; sources.UNIT_BYTES = 200_000;"
        "from align.cleaning import pipeline; units = pipeline.units_of;"
        "pipeline.units_of = lambda files: units(files, 200_000);"
        "from align.cleaning.main import main; sys.exit(main(sys.argv[1:]))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", script, "--input", str(source), "--workers", workers,
            "--exact_duplicates", "--near_duplicates", "0"]  # fmt: skip
    killed = subprocess.Popen([*argv, "--output", str(tmp_path / "o")], env=env)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "o").glob(".work/unit-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "o/index.json").exists()
    again = subprocess.run([*argv, "--output", str(tmp_path / "o")], env=env, capture_output=True,
                           text=True)  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "parts were finished before" in again.stdout
    fresh = subprocess.run([*argv, "--output", str(tmp_path / "p")], env=env, capture_output=True)
    assert fresh.returncode == 0
    assert (tmp_path / "o/train-00000.jsonl").read_bytes() == (
        tmp_path / "p/train-00000.jsonl").read_bytes()  # fmt: skip


def test_a_unit_that_fails_leaves_nothing(corpus, tmp_path):
    (tmp_path / "judge.py").write_text("def score(texts):\n    return [1]\n")
    assert clean("--input", corpus, "--output", tmp_path / "o", "--workers", 1,
                 "--classifier", f"{tmp_path}/judge.py:score") == 2  # fmt: skip
    assert [p.name for p in (tmp_path / "o/.work").iterdir()] == ["fingerprint"]
    assert [p.name for p in (tmp_path / "o").iterdir()] == [".work"]
    assert Stored(tmp_path / "nothing").folder.name == "nothing"


# Wrong input


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--input", "gone.txt", "--output", "o"], "input='gone.txt' does not exist"),
        (["--input", "in", "--output", "o", "--min_letters", "2"], "must be between 0 and 1"),
        (["--input", "in", "--output", "o.csv"], "output='o.csv' has a suffix"),
        (["--input", "in", "--output", "in/clean"], None),
        (["--input", "in", "--output", "in"], "holds the input"),
        (["--input", "in/zh.txt", "--output", "in/zh.txt"], "is also an input"),
        (["--input", "in", "--output", "o", "--repeat", "zh=2"], "repeat='zh' is none of"),
        (["--input", "in", "--output", "o", "--workers", "0"], "workers=0 must be at least 1"),
        (["--input", "in", "--output", "o", "--classifier", "x"], "does not name a function"),
        (["--input", "in", "--output", "o", "--word_lists", "w"], "word_lists='w' does not exist"),
        (["--input", "in/zh.txt", "--output", "o", "--languages", "ko"],
         "leaves no text after cleaning: language"),
        (["--input", "empty.txt", "--output", "o"], "leaves no text after cleaning"),
        (["--input", "binary.txt", "--output", "o"], "binary_file: binary.txt"),
    ],
)  # fmt: skip
def test_wrong_input_is_named(corpus, tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 20)
    code = clean(*argv, "--workers", 1) if "--workers" not in argv else clean(*argv)
    if message is None:
        assert code == 0
        return
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o/index.json").exists()


def test_switches_of_a_config_file_reach_the_tool(corpus, tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text(
        f"tools:\n  clean_corpus:\n    input: [{corpus}]\n    output: {tmp_path}/o\n"
        "    pii: [none]\n    fix_mojibake: false\n    min_chars: 1\n    workers: 1\n"
        "    validation_fraction: 0\n"
    )
    assert run_tool("clean_corpus", ["--config", str(config)]) == 0
    settings = json.loads((tmp_path / "o/index.json").read_text())["settings"]
    assert settings["fix_mojibake"] is False
    assert settings["pii"] == ["none"]
    texts = [r["text"] for r in rows_of(tmp_path / "o")]
    assert "短" in texts
    assert "mail a@b.com now please" in texts


def test_perplexity_quality_and_a_language_model_decide(corpus, tmp_path, capsys):
    from align.cleaning.quality import main as quality

    (tmp_path / "zh_good.txt").write_text("\n".join(ZH))
    (tmp_path / "noise.txt").write_text(
        "\n".join(f"zq{i} xv{i * 7} jk{i * 3} wq" for i in range(48))
    )
    argv = ["--good", f"{tmp_path}/zh_good.txt", "--bad", f"{tmp_path}/noise.txt"]
    assert quality([*argv, "--output", f"{tmp_path}/q.npz"]) == 0
    common = ["--workers", 1, "--near_duplicates", 0, "--validation_fraction", 0]
    source = ["--input", tmp_path / "zh_good.txt", tmp_path / "noise.txt"]
    assert clean(*source, "--output", tmp_path / "q", "--quality", tmp_path / "q.npz", *common) == 0
    assert {r["text"] for r in rows_of(tmp_path / "q")} == set(ZH)
    assert clean(*source, "--output", tmp_path / "p", "--perplexity", tmp_path / "zh_good.txt",
                 "--max_perplexity", 5, *common) == 0  # fmt: skip
    assert {r["text"] for r in rows_of(tmp_path / "p")} == set(ZH)
    # The shipped base has read Chinese reviews.
    base = ROOT / "recipes" / "assets" / "demo_base"
    assert clean(*source, "--output", tmp_path / "m", "--perplexity", base,
                 "--max_perplexity", 80, *common) == 0  # fmt: skip
    assert {r["text"] for r in rows_of(tmp_path / "m")} == set(ZH)
    dropped = json.loads((tmp_path / "m/report.json").read_text())["dropped"]
    assert dropped["perplexity"]["documents"] == 48
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    capsys.readouterr()
    assert clean(*source, "--output", tmp_path / "x", "--perplexity", tmp_path / "empty",
                 "--max_perplexity", 5, *common) == 2  # fmt: skip
    assert "is no language model" in capsys.readouterr().err
