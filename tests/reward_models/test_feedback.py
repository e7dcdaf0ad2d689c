"""Literal lines of a feedback log → the exact groups."""

from __future__ import annotations

import json

import pytest

from align.records import Candidate, Judgement, Message
from reward_models.annotations import Intake
from reward_models.annotations.base import Row
from reward_models.annotations.feedback import FORMAT, matches
from reward_models.import_annotations import main

VOTE = {
    "id": "1", "time": "2026-05-01T08:00:00+00:00", "source": "arena", "annotator": "王",
    "session": None, "item": "i1", "prompt": [{"role": "user", "content": "问"}],
    "completions": [{"model": "ppo", "text": "好"}, {"model": "dpo", "text": "B"}],
    "vote": "right", "position": "ba", "latency_s": None, "seconds": 12.5, "tokens": None,
    "consent": True,
}  # fmt: skip
THUMB = {
    "id": "2", "source": "chat", "annotator": "ann", "session": "s",
    "prompt": [{"role": "user", "content": "Q"}],
    "completions": [{"model": "ppo", "text": "A"}], "vote": "up", "consent": True,
}  # fmt: skip


def run(*rows):
    intake = Intake()
    groups = list(FORMAT.parse([Row("f.jsonl", i, i, r) for i, r in enumerate(rows, 1)], intake))
    assert intake.rows.total == len(rows)
    assert intake.votes.total == sum(r.get("vote") is not None for r in rows)
    return groups, intake


def thumb(text, vote, **more):
    return {**THUMB, "completions": [{"model": "m", "text": text}], "vote": vote, **more}


def test_a_vote_on_a_pair():
    (group,), intake = run(VOTE)
    assert group.prompt == (Message("user", "问"),)
    assert group.candidates == (Candidate("left", "好", "ppo"), Candidate("right", "B", "dpo"))
    assert group.judgements == (
        Judgement("王", "pair", {"winner": "right", "loser": "left"}, source="feedback"),
    )
    assert group.meta == {
        "source": "feedback", "display_order": True, "position": "ba", "item": "i1",
        "time": "2026-05-01T08:00:00+00:00", "lead_time": {"王": 12.5},
    }  # fmt: skip
    assert intake.votes.used == 1


@pytest.mark.parametrize(
    ("vote", "value", "both_bad"),
    [
        ("left", {"winner": "left", "loser": "right"}, None),
        ("tie", {"tie": ["left", "right"]}, None),
        ("both_bad", {"tie": ["left", "right"]}, 1),
    ],
)
def test_every_vote_on_a_pair(vote, value, both_bad):
    (group,), _ = run({**VOTE, "vote": vote})
    assert group.judgements[0].value == value
    assert group.meta.get("both_bad") == both_bad


def test_thumbs_on_answers_to_the_same_prompt_are_one_comparison():
    rows = [
        thumb("A", "up"), VOTE, thumb("B", "down"), thumb("A", "down", annotator="bob"),
        thumb("C", "up"), thumb("A", "up", annotator="cat"),
    ]  # fmt: skip
    groups, intake = run(*rows)
    (group,) = [g for g in groups if "thumbs" in g.meta]
    assert [c.content for c in group.candidates] == ["A", "B", "C"]
    (judgement,) = group.judgements
    assert (judgement.annotator, judgement.kind, judgement.source) == (
        None, "score", "feedback:thumbs",
    )  # fmt: skip
    assert judgement.value == pytest.approx({"1": 2 / 3, "2": 0.0, "3": 1.0})
    assert group.meta["thumbs"] == {
        "1": {"up": 2, "down": 1}, "2": {"up": 0, "down": 1}, "3": {"up": 1, "down": 0}
    }  # fmt: skip
    assert intake.votes.used == 6


def test_one_persons_thumbs_carry_the_name():
    (group,), _ = run(thumb("A", "up"), thumb("B", "down"))
    assert group.judgements[0].annotator == "ann"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**VOTE, "consent": False}, "no_consent"),
        ({**VOTE, "consent": "yes"}, "no_consent"),
        ({**VOTE, "vote": None}, "no_vote"),
        ({**VOTE, "vote": "up"}, "bad_vote"),
        ({**THUMB, "vote": "left"}, "bad_vote"),
        ({**VOTE, "vote": "best"}, "bad_vote"),
        ({**VOTE, "vote": ["left"]}, "bad_vote"),
        ({**VOTE, "prompt": None}, "no_prompt"),
        ({**VOTE, "completions": [{"text": "a"}, {"text": None}]}, "not_text"),
        ({**VOTE, "completions": [{"text": "a"}, {"text": " "}]}, "empty_candidate"),
        ({**VOTE, "completions": [{"text": "a"}, {"text": "a"}]}, "identical_candidates"),
        ({**VOTE, "completions": [{"text": "a"}, {}]}, "missing_field"),
        ({k: v for k, v in VOTE.items() if k != "consent"}, "missing_field"),
        (THUMB, "one_candidate"),
    ],
)
def test_what_is_dropped(row, reason):
    groups, intake = run(row)
    assert groups == []
    assert intake.rows.dropped == {reason: 1}
    assert intake.votes.used == 0


def test_a_second_vote_of_the_same_person_is_dropped_whatever_the_side():
    turned = {**VOTE, "completions": VOTE["completions"][::-1], "vote": "right"}
    groups, intake = run(VOTE, turned, {**VOTE, "annotator": "bob"})
    assert len(groups) == 2
    assert intake.rows.dropped == {"second_vote": 1}
    # People without a name are told apart by session, then by the line.
    nameless = [{**VOTE, "annotator": None, "id": str(i)} for i in range(3)]
    assert len(run(*nameless)[0]) == 3


def test_other_rows_are_not_a_log():
    assert matches({"prompt": "q", "completions": [], "vote": "up"}) is None
    assert matches(VOTE) == "prompt, completions, vote and consent"


def test_the_import_tells_and_merges(tmp_path, capsys):
    path = tmp_path / "votes.jsonl"
    other = {**VOTE, "completions": VOTE["completions"][::-1], "vote": "tie", "annotator": "bob"}
    rows = [VOTE, other, {**VOTE, "annotator": "cat", "consent": False},
            {**VOTE, "annotator": "dan", "vote": None}]  # fmt: skip
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    path.write_text(text + '{"torn', "utf-8")
    assert main(["--input", str(path), "--output", str(tmp_path / "out")]) == 0
    assert "feedback" in capsys.readouterr().out
    (line,) = (tmp_path / "out" / "preferences.jsonl").read_text("utf-8").splitlines()
    group = json.loads(line)
    assert [j["annotator"] for j in group["judgements"]] == ["王", "bob"]
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    dropped = json.dumps(report)
    for reason in ("no_consent", "no_vote", "bad_json"):
        assert reason in dropped


def test_an_empty_split_is_said_with_where_all_rows_are(tmp_path, capsys):
    file = tmp_path / "votes.jsonl"
    file.write_text(json.dumps(VOTE, ensure_ascii=False) + "\n", encoding="utf-8")
    words = ["--input", str(file), "--output", str(tmp_path / "out")]
    assert main([*words, "--fractions", "0.5,0.25,0.25"]) == 0
    said = "".join(capsys.readouterr())
    assert "is empty: too few prompts for the fractions, or an earlier import" in said
    counts = [
        len((tmp_path / "out" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())
        for name in ("train", "validation", "test", "preferences")
    ]
    assert (sorted(counts[:3]), counts[3]) == ([0, 0, 1], 1)
