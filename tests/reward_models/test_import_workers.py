"""Imports in several processes: the same files, and nothing that stays behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align.config_errors import UserError
from reward_models import import_groups, importing
from reward_models.import_annotations import main
from reward_models.importing import ImportSettings, run_import
from reward_models.workers import Known, Workers

BROKEN = [
    "{not json",
    '{"prompt": "a"}',
    "[1]",
    '"text"',
    '{"prompt": "", "chosen": "a", "rejected": "b"}',
]


def pairs(rng, n):
    """Rows of which some come twice, join an earlier one, or are of no use; English and Chinese."""
    made = []
    for i in range(n):
        k = rng.randrange(n)
        question = f"Question {k}?" if k % 3 else f"第{k}个问题？&lt;b&gt;"
        good, bad = f"good {k % 5}", "I'm sorry, but no." if k % 7 == 0 else f"不好 {k % 4}"
        row = {"prompt": question, "chosen": good, "rejected": bad, "annotator": f"w{i % 4}"}
        if rng.random() < 0.3:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        if rng.random() < 0.2:
            row["margin"] = rng.choice([-1.5, 0.25, 2])
        made.append(json.dumps(row, ensure_ascii=False))
        if rng.random() < 0.1:
            made.append(rng.choice(BROKEN))
    return made


def hh(rng, n):
    """Transcripts; every fifth stands twice."""
    made = []
    for i in range(n):
        start = f"\n\nHuman: topic {i - i % 5 // 4}\n\nAssistant: "
        made.append(json.dumps({"chosen": start + "yes", "rejected": start + f"no {rng.random()}"}))
    return made


def canonical(rng, n):
    """Groups of four with ranks, a display order and lead times."""
    made = []
    for i in range(n):
        ids = list("abcd")
        ranks = {name: rng.choice([1, 2, 3, 4]) for name in ids}
        made.append(
            json.dumps(
                {
                    "group_id": f"g{i}",
                    "prompt": [{"role": "user", "content": f"prompt {i // 2}"}],
                    "candidates": [{"id": c, "content": f"answer {c} of {i // 2}"} for c in ids],
                    "judgements": [{"annotator": f"w{i % 3}", "kind": "rank", "value": ranks}],
                    "meta": {"display_order": True, "lead_time": {f"w{i % 3}": 0.1}},
                }
            )
        )
    return made


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Three files of different formats, for which workers are used however small they are."""
    monkeypatch.setattr(importing, "WORTH_WORKERS", 0)
    rng = random.Random(5)
    paths = []
    for make in (pairs, hh, canonical):
        path = tmp_path / f"{make.__name__}.jsonl"
        path.write_text("\n".join(make(rng, 120)) + "\n", encoding="utf-8")
        paths.append(str(path))
    return paths


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def batches_of(monkeypatch, n):
    monkeypatch.setattr(import_groups, "BATCH", n)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ties": "drop", "suspects": "drop", "aggregate": "majority"},
        pytest.param({"aggregate": "per_annotator", "min_annotators": 2}, marks=pytest.mark.slow),
        pytest.param({"aggregate": "dawid_skene"}, marks=pytest.mark.slow),
    ],
    ids=["soft", "drop", "per_annotator", "dawid_skene"],
)
def test_files_are_the_same_for_any_number_of_workers(tmp_path, inputs, monkeypatch, options):
    def run(workers, batch):
        batches_of(monkeypatch, batch)
        out = tmp_path / f"out_{workers}_{batch}"
        run_import(ImportSettings(tuple(inputs), out, workers=workers, **options), lambda _: None)
        return files(out)

    expected = run(0, 128)
    report = json.loads(expected["report.json"])
    assert report["merged_rows"] > 20
    assert report["rows"]["dropped"]["duplicate_row"] > 5
    assert {"bad_json", "missing_field", "no_prompt"} <= report["rows"]["dropped"].keys()
    for workers, batch in ((1, 128), (2, 1), (2, 7), (3, 50)):
        made = run(workers, batch)
        assert made.keys() == expected.keys()
        assert [name for name in made if made[name] != expected[name]] == []


@pytest.mark.slow
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.integers(0, 9), min_size=1, max_size=40), batch=st.integers(1, 5))
def test_every_row_is_accounted_for_in_batches(tmp_path, monkeypatch, rows, batch):
    monkeypatch.setattr(importing, "WORTH_WORKERS", 0)
    batches_of(monkeypatch, batch)
    source, out = tmp_path / "rows.jsonl", tmp_path / "out"
    texts = ['{"prompt": "first", "chosen": "a", "rejected": "b"}']
    for k in rows:
        row = {"prompt": f"p{k % 3}", "chosen": f"a{k % 2}", "rejected": "b"}
        texts.append(json.dumps(row) if k < 6 else BROKEN[k - 6])
    source.write_text("\n".join(texts), encoding="utf-8")
    asked = ImportSettings((str(source),), out, format="pairs", workers=2)
    report = run_import(asked, lambda _: None)
    dropped = sum(report["rows"]["dropped"].values())
    assert report["rows"]["used"] + dropped == len(texts)
    assert len((out / "rejects.jsonl").read_bytes().splitlines()) == dropped
    assert report["rows"]["used"] == 1 + len({k % 6 for k in rows if k < 6})


def twice(setup, batch):
    return setup + 2 * batch


def unlucky(setup, batch):
    if batch == 3:
        raise ValueError("three")
    return batch


def dies(setup, batch):
    # In the parent too this would end the tests: it must never be called there.
    os._exit(9)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_results_come_in_order_and_known_ones_in_their_place(n):
    with closing(Workers(n, setup=100)) as workers:
        batches = [Known("here") if k == 4 else k for k in range(10)]
        got = [result for _, result in workers.map(twice, batches)]
    assert got == [100, 102, 104, 106, "here", 110, 112, 114, 116, 118]


@pytest.mark.parametrize("n", [0, 2])
def test_what_a_call_raises_is_raised_here(n):
    with closing(Workers(n)) as workers, pytest.raises(ValueError, match="three"):
        list(workers.map(unlucky, range(9)))


def test_a_worker_that_died_is_an_error_that_says_what_to_do():
    said = r"exit code 9.*--workers 0"
    with closing(Workers(2)) as workers, pytest.raises(UserError, match=said):
        list(workers.map(dies, range(4)))


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes in /proc")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGINT"])
def test_no_process_and_no_file_outlives_a_stopped_import(tmp_path, name):
    source, out = tmp_path / "rows.jsonl", tmp_path / "out"
    with source.open("w", encoding="utf-8") as file:
        for i in range(60_000):
            row = {"prompt": f"p{i}", "chosen": "good " * 20, "rejected": "bad " * 20}
            file.write(json.dumps(row) + "\n")
    code = "import sys; from reward_models.import_annotations import main; sys.exit(main())"
    words = ["--input", str(source), "--output", str(out), "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        # A shell's background job ignores SIGINT, and what it starts does too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    limit = time.monotonic() + 60
    while len(found := children.read_text().split()) < 2:
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(getattr(signal, name))
    assert process.wait(60) != 0
    while any(alive(pid) for pid in found):
        assert time.monotonic() < limit
        time.sleep(0.01)
    assert not out.exists() or {p.name for p in out.iterdir()} <= {".import.tmp"}


def test_a_wrong_number_of_workers_is_exit_2(tmp_path, capsys):
    words = ["--input", "x.jsonl", "--output", str(tmp_path / "out"), "--workers", "-1"]
    assert main(words) == 2
    assert "workers" in capsys.readouterr().err
