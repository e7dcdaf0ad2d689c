"""The arena without its page: what is on disk after votes, crashes, refusals and own prompts."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import feedback_rows as rows

from align.config_errors import UserError
from align.data.pairs import load_preferences
from align.feedback.arena import Arena, annotator_name
from align.feedback.records import read_log
from reward_models.annotations.detect import detect


def log_of(arena):
    return read_log(arena.log.path)[0]


def test_a_vote_is_on_disk_with_side_model_and_time(tmp_path):
    now = [100.0]
    arena = Arena(rows.items(3, ("a", "b")), tmp_path, clock=lambda: now[0])
    shown = arena.next("王")
    now[0] = 107.25
    assert arena.vote("王", shown.item.id, "right", consent=True)
    (row,) = log_of(arena)
    left, right = shown.completions
    assert [c["model"] for c in row["completions"]] == [left.model, right.model]
    assert [c["text"] for c in row["completions"]] == [left.text, right.text]
    assert row["position"] == ("ab" if left.model == "a" else "ba")
    assert (row["vote"], row["annotator"], row["seconds"]) == ("right", "王", 7.25)
    assert row["item"] == shown.item.id
    assert arena.next("王").item != shown.item


def test_a_vote_that_comes_too_late_is_refused(tmp_path):
    arena = Arena(rows.items(3, ("a", "b")), tmp_path)
    first = arena.next("ann").item.id
    assert arena.vote("ann", first, "tie", consent=True)
    assert not arena.vote("ann", first, "left", consent=True)
    assert not arena.vote("ann", "no such item", "left", consent=True)
    assert not arena.vote("bob", first, "left", consent=True)
    with pytest.raises(UserError, match="Use one of left, right, tie, both_bad, skip"):
        arena.vote("ann", first, "best", consent=True)
    assert len(log_of(arena)) == 1


def test_preferences_are_canonical_and_say_what_was_voted(tmp_path):
    arena = Arena(rows.items(8, ("a", "b")), tmp_path)
    said = ["left", "right", "tie", "both_bad", "skip", "left"]
    shown = []
    for vote in said:
        shown.append(arena.next("ann"))
        arena.vote("ann", shown[-1].item.id, vote, consent=True)
    dropped = arena.flush()
    assert dropped == {"no_vote": 1}
    path = tmp_path / "preferences.jsonl"
    assert detect(path).format.name == "canonical"
    groups, counts = load_preferences(path)
    assert counts.dropped == {}
    # What was skipped is not there; the rest keeps the sides as they were.
    kept = [(v, s) for v, s in zip(said, shown, strict=True) if v != "skip"]
    by_item = {g.meta["item"]: g for g in groups}
    for vote, item in kept:
        group = by_item[item.item.id]
        assert [c.model for c in group.candidates] == [c.model for c in item.completions]
        (judgement,) = group.judgements
        assert judgement.annotator == "ann"
        assert judgement.value == {
            "left": {"winner": "left", "loser": "right"},
            "right": {"winner": "right", "loser": "left"},
        }.get(vote, {"tie": ["left", "right"]})
        assert group.meta.get("both_bad") == (1 if vote == "both_bad" else None)
        assert group.meta["position"] == item.position
        assert group.meta["display_order"] is True


def test_a_restart_goes_on_and_a_torn_line_is_one_vote_less(tmp_path):
    items = rows.items(6, ("a", "b"))
    arena = Arena(items, tmp_path)
    for _ in range(4):
        arena.vote("ann", arena.next("ann").item.id, "left", consent=True)
    lines = arena.log.path.read_bytes().splitlines(keepends=True)
    torn = json.loads(lines[-1])["item"]
    arena.log.path.write_bytes(b"".join(lines[:3]) + lines[3][:50])
    again = Arena(items, tmp_path)
    assert (again.resumed, again.torn) == (3, 1)
    assert again.progress("ann") == (3, 6)
    seen = []
    while (shown := again.next("ann")) is not None:
        seen.append(shown.item.id)
        again.vote("ann", shown.item.id, "left", consent=True)
    assert torn in seen
    assert len(seen) == 3
    again.close()
    assert len(load_preferences(tmp_path / "preferences.jsonl")[0]) == 6


@pytest.mark.parametrize(("mode", "kept"), [("drop", 0), ("vote_only", 2)])
def test_without_consent_no_text_is_stored(tmp_path, mode, kept):
    arena = Arena(rows.items(3, ("a", "b")), tmp_path, without_consent=mode)
    for vote in ("left", "tie"):
        arena.vote("ann", arena.next("ann").item.id, vote, consent=False)
    arena.flush()
    text = b"".join(p.read_bytes() for p in tmp_path.iterdir()).decode()
    assert "回答" not in text
    assert "评论" not in text
    assert len(log_of(arena)) == kept
    assert all(row["consent"] is False and row["prompt"] is None for row in log_of(arena))
    assert (tmp_path / "preferences.jsonl").read_text() == ""
    assert arena.progress("ann") == (2, 3)  # not shown again while the server runs


def test_own_prompts_are_answered_by_pairs_in_turn(tmp_path):
    asked = []

    def ask(names, conversation):
        asked.append((tuple(names), conversation[0].content))
        return [f"{n} answers {conversation[0].content}" for n in names]

    arena = Arena([], tmp_path, models=rows.MODELS, ask=ask)
    assert arena.next("ann") is None
    for i in range(6):
        shown = arena.own_prompt("ann", f"  我的问题 {i} ")
        assert shown.item.prompt[0].content == f"我的问题 {i}"
        assert arena.next("ann") == shown
        assert arena.vote("ann", shown.item.id, "left", consent=True)
    assert Counter(names for names, _ in asked[:6]) == dict.fromkeys(
        combinations(rows.MODELS, 2), 2
    )
    # Nobody sees what somebody else asked, not even what they skipped.
    skipped = arena.own_prompt("ann", "秘密")
    assert arena.next("bob") is None
    assert arena.vote("ann", skipped.item.id, "skip", consent=False)
    assert arena.next("bob") is None
    assert arena.progress("bob") == (0, 0)
    arena.close()
    assert len(load_preferences(tmp_path / "preferences.jsonl")[0]) == 6


def test_own_prompts_that_cannot_be_compared(tmp_path):
    replies = iter([["x", None], ["same", "same"], ["x", " "]])
    arena = Arena([], tmp_path, models=["a", "b"], ask=lambda *_: next(replies))
    for message in ("no answer", "same answer twice", "no answer"):
        with pytest.raises(UserError, match=message):
            arena.own_prompt("ann", "问")
    with pytest.raises(UserError, match="prompt='  ' is empty"):
        arena.own_prompt("ann", "  ")
    with pytest.raises(UserError, match="no model is loaded"):
        Arena([], tmp_path).own_prompt("ann", "问")


def test_many_people_at_once(tmp_path):
    arena = Arena(rows.items(40, ("a", "b"), overlap=0.25), tmp_path, overlap=0.25)

    def work(name):
        while (shown := arena.next(name)) is not None:
            arena.vote(name, shown.item.id, "left", consent=True)

    threads = [threading.Thread(target=work, args=(f"p{k}",)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    arena.close()
    votes = Counter(row["item"] for row in log_of(arena))
    shared = {i.id for i in arena.queue.items.values() if i.shared}
    assert abs(len(shared) - 10) <= 1
    assert {item for item, n in votes.items() if n == 4} == shared
    assert sum(votes.values()) == 40 + 3 * len(shared)


def test_names():
    assert annotator_name("  Ａnn \t Lee\n") == "Ann Lee"
    assert annotator_name("王小明") == "王小明"
    with pytest.raises(UserError, match="name='' is empty"):
        annotator_name("")
    with pytest.raises(UserError, match="is longer than 80 characters"):
        annotator_name("x" * 81)
