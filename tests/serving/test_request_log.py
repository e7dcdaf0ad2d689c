"""Answers read as they come, and the log's own rules: days, what it keeps, what it loses."""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "feedback"))

from feedback_rows import thumb, write

from align.feedback.records import Completion, FeedbackRecord, read_log
from align.records import Message
from align.serving import request_log
from align.serving.chat_reply import MAX_BYTES, ChatReply
from align.serving.exchange import Exchange, record_of
from align.serving.request_log import RequestLog, UnknownAnswer, day_file, days_in
from reward_models.import_annotations import main as import_annotations

STREAM = (
    ': a comment\r\n\r\ndata: {"id":"c1","model":"m","choices":[{"index":0,"delta":'
    '{"role":"assistant","content":""}}]}\n\n'
    'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"早"}},'
    '{"index":1,"delta":{"content":"X"}}]}\r\n\r\n'
    'event: message\ndata: {"choices":[{"index":0,\ndata:  "delta":{"content":"安"}}]}\n\n'
    'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\ndata: [DONE]'
).encode()
RECORD = FeedbackRecord(
    prompt=(Message("user", "早餐？"),),
    completions=(Completion("m", "好"),),
    vote=None,
    consent=True,
    source="serving",
    time="2026-03-01T23:59:59.000+00:00",
    request={"completion_id": "c1"},
)


def read(data, size):
    reply = ChatReply(streamed=True)
    for i in range(0, len(data), size):
        reply.feed(data[i : i + size], at=float(i))
    reply.close(float(len(data)))
    return reply


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_is_the_same_however_it_is_cut(size):
    reply = read(STREAM, size)
    assert (reply.text, reply.id, reply.model, reply.finish_reason) == ("早安", "c1", "m", "stop")
    assert (reply.choices, reply.pieces, reply.ended, reply.error) == (2, 3, True, None)
    assert (reply.tokens("prompt_tokens"), reply.tokens("completion_tokens")) == (5, 2)


def test_the_first_piece_is_the_first_with_words():
    reply = ChatReply(streamed=True)
    for at, part in enumerate(STREAM.replace(b"\r", b"").split(b"\n\n")):
        reply.feed(part + b"\n\n", float(at))
    # 0 is the comment, 1 the role; 2 and 3 have words; then reason, usage and end.
    assert (reply.first_at, reply.last_at) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("data", "error", "ended"),
    [
        (b'data: {"error": {"message": "oom"}}\n\n', "{'message': 'oom'}", False),
        (b"data: nonsense\n\n", "an event is no JSON object", False),
        (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', None, False),
        (b'data: {"choices":[null, 5], "usage": 3}\n\ndata: [DONE]\n\n', None, True),
        (b"x" * (MAX_BYTES + 1), f"longer than {MAX_BYTES} bytes", False),
    ],
)
def test_streams_that_are_no_answer(data, error, ended):
    reply = read(data, 1 << 16)
    assert (reply.error, reply.ended) == (error, ended)


def test_a_body_that_is_no_stream():
    reply = ChatReply(streamed=False)
    body = {"id": "c", "model": "m", "choices": [{"message": {"content": "好"},
                                                "finish_reason": "length"}]}  # fmt: skip
    data = json.dumps(body).encode()
    reply.feed(data[:9], 0.0)
    reply.feed(data[9:], 1.0)
    reply.close(1.0)
    assert (reply.text, reply.finish_reason, reply.ended, reply.first_at) == (
        "好", "length", True, None,
    )  # fmt: skip
    broken = ChatReply(streamed=False)
    broken.feed(b"<html>", 0.0)
    broken.close(0.0)
    assert (broken.error, broken.ended) == ("no JSON object", False)


def test_a_days_file_is_the_requests_day(tmp_path):
    log = RequestLog(tmp_path)
    log.put(lambda: RECORD)
    log.put(lambda: replace(RECORD, time="2026-03-02T00:00:00.000+00:00", id="b"))
    log.close()
    assert days_in(tmp_path) == ["2026-03-01", "2026-03-02"]
    (row,), torn = read_log(day_file(tmp_path, "2026-03-02"))
    assert (row["id"], torn) == ("b", 0)
    assert day_file(tmp_path / "one.jsonl", "2026-03-02") == tmp_path / "one.jsonl"


def test_a_full_queue_never_waits(tmp_path):
    lost = []
    log = RequestLog(tmp_path, lost=lost.append, waiting=1)
    go, in_work = threading.Event(), threading.Event()

    def slow():
        in_work.set()
        go.wait(10)
        return RECORD

    log.put(slow)
    assert in_work.wait(10)
    begin = time.monotonic()
    for _ in range(5):
        log.put(lambda: RECORD)
    with pytest.raises(OSError, match="too many lines wait"):
        log.vote(RECORD.id, "up").result(1)
    assert time.monotonic() - begin < 1
    assert lost == ["queue_full"] * 4
    go.set()
    log.close()
    assert len(read_log(day_file(tmp_path, "2026-03-01"))[0]) == 2


def test_a_record_that_cannot_be_made_costs_itself_alone(tmp_path, capsys):
    lost = []
    log = RequestLog(tmp_path, lost=lost.append)
    log.put(lambda: replace(RECORD, vote="left"))
    log.put(lambda: RECORD)
    log.close()
    assert lost == ["ValueError"]
    assert "1 line(s) lost" in capsys.readouterr().err
    assert len(read_log(day_file(tmp_path, "2026-03-01"))[0]) == 1


def test_only_the_newest_answers_can_be_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(request_log, "KEPT", 2)
    log = RequestLog(tmp_path / "all.jsonl")
    for name in "abc":
        log.put(lambda name=name: replace(RECORD, id=name, request={"completion_id": f"c-{name}"}))
    for gone in ("a", "c-a"):
        with pytest.raises(UnknownAnswer):
            log.vote(gone, "up").result(5)
    assert log.vote("c-b", "up").result(5).answer == "b"
    log.close()


def test_an_answer_whose_file_is_gone_is_unknown(tmp_path):
    log = RequestLog(tmp_path)
    log.put(lambda: RECORD)
    assert log.vote(RECORD.id, "up").result(5)
    day_file(tmp_path, RECORD.time[:10]).unlink()
    with pytest.raises(UnknownAnswer):
        log.vote(RECORD.id, "up").result(5)
    log.close()


def test_a_failed_request_keeps_what_was_asked_and_no_half_answer():
    reply = ChatReply(streamed=True)
    reply.feed(b'data: {"choices":[{"delta":{"content":"half"}}]}\n\n', 1.0)
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "早？"}]}).encode()
    seen = Exchange("i", "2026-03-01T00:00:00+00:00", body, reply, 200, "connection", 1.23456, 0.5)
    row = record_of(seen, texts=True).to_json()
    assert row["prompt"] == [{"role": "user", "content": "早？"}]
    assert row["completions"] == [{"model": "m", "text": None}]
    assert (row["request"]["failure"], row["request"]["chars"]) == ("connection", None)
    assert row["latency_s"] == 1.2346


def test_the_import_takes_the_last_vote_of_each_person(tmp_path):
    """Of ann's three votes on answer 1 the last counts; thumbs that name no answer all count."""
    votes = [thumb("A", said="up", answer="1"), thumb("A", said="up", answer="1"),
             thumb("A", said="down", answer="1"), thumb("A", said="up", answer="1", by="bob"),
             thumb("B", said="up", answer="2"), thumb("B", said="up"),
             thumb("B", said="down")]  # fmt: skip
    failed = thumb("C", said=None, request={"failure": "http_500"})
    log = write(tmp_path / "requests-2026-03-01.jsonl", [*votes, failed])
    assert import_annotations(["--input", str(log), "--output", str(tmp_path / "out")]) == 0
    (group,) = [json.loads(v) for v in (tmp_path / "out" / "preferences.jsonl").open()]
    scores = group["judgements"][0]["value"]
    by_text = {c["content"]: scores[c["id"]] for c in group["candidates"]}
    assert by_text == {"A": 0.5, "B": pytest.approx(2 / 3)}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rows"]["used"] == 5
    assert report["rows"]["dropped"] == {"failed_request": 1, "replaced_vote": 2}
    assert report["votes"]["dropped"] == {"replaced_vote": 2}
