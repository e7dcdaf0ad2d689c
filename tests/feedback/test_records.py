"""The feedback log: every complete line survives crashes, threads and processes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from align.feedback.records import Completion, FeedbackLog, FeedbackRecord, read_log
from align.records import Message

RECORD = FeedbackRecord(
    prompt=(Message("user", "写一条评论"),),
    completions=(Completion("x", "好 <script>"), Completion("y", "B\nB")),
    vote="left",
    consent=True,
    annotator="王",
    item="i1",
    position="ba",
    seconds=3.5,
)


def test_a_line_holds_every_field_and_reads_back(tmp_path):
    log = FeedbackLog(tmp_path / "deep" / "votes.jsonl")
    log.write(RECORD)
    (row,), torn = read_log(log.path)
    assert torn == 0
    assert row["prompt"] == [{"role": "user", "content": "写一条评论"}]
    assert row["completions"] == [
        {"model": "x", "text": "好 <script>"}, {"model": "y", "text": "B\nB"}
    ]  # fmt: skip
    assert (row["vote"], row["consent"], row["annotator"], row["position"]) == (
        "left", True, "王", "ba",
    )  # fmt: skip
    assert set(row) == {
        "id", "time", "source", "session", "annotator", "item", "prompt", "completions", "vote",
        "position", "latency_s", "seconds", "tokens", "consent",
    }  # fmt: skip
    assert row["time"].endswith("+00:00")


def test_a_torn_line_costs_itself_alone(tmp_path):
    log = FeedbackLog(tmp_path / "votes.jsonl")
    log.write(RECORD)
    with log.path.open("ab") as file:
        file.write(b'{"vote": "right", "prompt": [{"role": "us')
    assert read_log(log.path)[1] == 1
    log.write(replace(RECORD, id="second"))
    rows, torn = read_log(log.path)
    assert [r["id"] for r in rows] == [RECORD.id, "second"]
    assert torn == 1


def test_a_lone_surrogate_does_not_stop_the_log(tmp_path):
    log = FeedbackLog(tmp_path / "votes.jsonl")
    log.write(replace(RECORD, completions=(Completion("x", "a\ud800"), Completion("y", "b"))))
    (row,), torn = read_log(log.path)
    assert (row["completions"][0]["text"], torn) == ("a?", 0)


def test_threads_and_processes_share_a_log(tmp_path):
    path = tmp_path / "votes.jsonl"
    code = (
        "import sys; from dataclasses import replace; from align.feedback.records import *;"
        "from align.records import Message;"
        "r = FeedbackRecord((Message('user', 'q' * 5000),), (Completion('x', 'a'),), 'up', True);"
        "log = FeedbackLog(sys.argv[1]);"
        "[log.write(replace(r, id=f'{sys.argv[2]}-{i}')) for i in range(20)]"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, str(path), str(k)]) for k in range(2)]
    log = FeedbackLog(path)
    threads = [
        threading.Thread(
            target=lambda k=k: [log.write(replace(RECORD, id=f"t{k}-{i}")) for i in range(10)]
        )
        for k in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait() for process in others] == [0, 0]
    rows, torn = read_log(path)
    assert torn == 0
    wanted = {f"{k}-{i}" for k in range(2) for i in range(20)}
    wanted |= {f"t{k}-{i}" for k in range(3) for i in range(10)}
    assert {r["id"] for r in rows} == wanted
    assert len(rows) == 70


def test_without_text_nothing_that_anybody_wrote_is_left():
    row = RECORD.without_text().to_json()
    assert row["prompt"] is None
    assert row["completions"] == [{"model": "x", "text": None}, {"model": "y", "text": None}]
    assert (row["vote"], row["id"]) == ("left", RECORD.id)
    assert "评论" not in json.dumps(row, ensure_ascii=False)


@pytest.mark.parametrize(
    ("count", "vote"), [(1, "left"), (2, "up"), (0, None), (3, "left"), (2, "best")]
)
def test_a_vote_must_fit_the_completions(count, vote):
    completions = tuple(Completion("x", "a") for _ in range(count))
    with pytest.raises(ValueError, match="completion"):
        FeedbackRecord(None, completions, vote, True)


def test_a_missing_log_is_empty(tmp_path):
    assert read_log(tmp_path / "none.jsonl") == ([], 0)
