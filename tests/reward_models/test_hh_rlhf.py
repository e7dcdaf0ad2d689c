"""Literal HH-RLHF rows → the exact groups; transcripts are parsed turn by turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.records import Candidate, Judgement, Message, RecordError
from reward_models.annotations import Intake
from reward_models.annotations.base import Row
from reward_models.annotations.hh_rlhf import FORMAT, matches, parse_transcript
from reward_models.preferences import targets

U, A = "user", "assistant"


def run(*rows):
    intake = Intake()
    groups = list(FORMAT.parse([Row("hh.jsonl", i, i, r) for i, r in enumerate(rows, 1)], intake))
    assert intake.rows.total == len(rows)
    return groups, intake


def row(chosen, rejected, **more):
    return {"chosen": chosen, "rejected": rejected, **more}


def test_one_turn():
    (group,), intake = run(row("\n\nHuman: Q\n\nAssistant: A", "\n\nHuman: Q\n\nAssistant: B"))
    assert group.prompt == (Message(U, "Q"),)
    assert group.candidates == (Candidate("chosen", "A"), Candidate("rejected", "B"))
    assert group.judgements == (
        Judgement(None, "pair", {"winner": "chosen", "loser": "rejected"}, None, "hh_rlhf", None),
    )
    assert group.meta == {"source": "hh_rlhf"}
    (pair,) = targets(group)
    assert (pair.a, pair.b, pair.target, pair.weight, pair.margin) == (0, 1, 1.0, 1.0, None)
    assert (intake.rows.used, intake.votes.used) == (1, 1)


def test_many_turns_and_chinese():
    shared = "\n\nHuman: 怎样泡茶？\n\nAssistant: 先烧水。\n\n再等两分钟。"
    shared += "\n\nHuman: 多少度？\n\nAssistant:"
    (group,), _ = run(row(shared + " 八十度左右。\n", shared + " Human: 不知道"))
    assert group.prompt == (
        Message(U, "怎样泡茶？"), Message(A, "先烧水。\n\n再等两分钟。"), Message(U, "多少度？"),
    )  # fmt: skip
    # A marker in the middle of a line is text, and the answers lose the space around them only.
    assert [c.content for c in group.candidates] == ["八十度左右。", "Human: 不知道"]


@pytest.mark.parametrize(
    "text",
    [
        "he said Human: stop",
        "see:\nHuman: stop",
        "\nAssistant: not a turn",
        "Humans:\n\nHumane: no",
    ],
)
def test_what_looks_like_a_marker_stays_in_the_turn(text):
    (group,), _ = run(row(f"\n\nHuman: Q\n\nAssistant: A {text}", "\n\nHuman: Q\n\nAssistant: B"))
    assert group.candidates[0].content == f"A {text}"
    assert group.prompt == (Message(U, "Q"),)


def test_transcripts_that_part_before_the_last_turn_keep_their_turns():
    (group,), _ = run(
        row(
            "\n\nHuman: Q\n\nAssistant: x\n\nHuman: more\n\nAssistant: good",
            "\n\nHuman: Q\n\nAssistant: y\n\nHuman: more\n\nAssistant: bad",
        )
    )
    assert group.prompt == (Message(U, "Q"),)
    assert [c.content for c in group.candidates] == [
        (Message(A, "x"), Message(U, "more"), Message(A, "good")),
        (Message(A, "y"), Message(U, "more"), Message(A, "bad")),
    ]
    assert group.judgements[0].suspect is None


@pytest.mark.parametrize(
    "rejected",
    [
        "\n\nHuman: Q\n\nAssistant: x\n\nHuman: why\n\nAssistant: bad",
        "\n\nHuman: Q\n\nAssistant: x",
        "\n\nHuman: Q\n\nAssistant: y",
    ],
)
def test_other_questions_after_the_shared_beginning_are_suspect(rejected):
    (group,), _ = run(
        row("\n\nHuman: Q\n\nAssistant: x\n\nHuman: more\n\nAssistant: good", rejected)
    )
    # What both begin with is the prompt only as far as the assistant answers next.
    assert group.prompt == (Message(U, "Q"),)
    assert group.candidates[0].content[0] == Message(A, "x")
    assert group.judgements[0].suspect == "user_turns_differ"
    assert targets(group, suspects="drop") == []


def test_a_role_that_speaks_twice_is_one_turn():
    (group,), _ = run(
        row(
            "\n\nHuman: Q\n\nHuman: really\n\nAssistant:\n\nAssistant:  one\n\nAssistant: two",
            "\n\nHuman: Q\n\nHuman: really\n\nAssistant: one",
        )
    )
    assert group.prompt == (Message(U, "Q\n\nreally"),)
    assert [c.content for c in group.candidates] == ["one\n\ntwo", "one"]


def test_line_ends_of_windows_and_a_text_without_the_first_blank_line():
    (group,), _ = run(
        row("Human: Q\r\n\r\nAssistant: A\r\n", "\r\n\r\nHuman: Q\r\n\r\nAssistant: B")
    )
    assert group.prompt == (Message(U, "Q"),)
    assert [c.content for c in group.candidates] == ["A", "B"]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("\n\nHuman: Q\n\nAssistant:", " A", " B"),
        ("\n\nHuman: Q\n\nAssistant: ", "A", "B"),
        ("\n\nHuman: Q", "A", "B\n"),
        ("\n\nHuman: Q", "\n\nHuman: Q\n\nAssistant: A", "\n\nHuman: Q\n\nAssistant: B"),
    ],
)  # fmt: skip
def test_a_prompt_field_that_is_a_transcript(prompt, chosen, rejected):
    (group,), _ = run(row(chosen, rejected, prompt=prompt))
    assert group.prompt == (Message(U, "Q"),)
    assert [c.content for c in group.candidates] == ["A", "B"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row("\n\nHuman: Q\n\nAssistant: A", "\n\nHuman: R\n\nAssistant: B"), "no_prompt"),
        (row("\n\nAssistant: A", "\n\nAssistant: B"), "no_prompt"),
        (row("\n\nAssistant: hi\n\nHuman: Q\n\nAssistant: A",
             "\n\nAssistant: hi\n\nHuman: R\n\nAssistant: A"), "no_prompt"),
        (row("\n\nHuman: Q\n\nAssistant: A\n\nHuman: and?",
             "\n\nHuman: Q\n\nAssistant: B"), "bad_role"),
        (row("\n\nHuman: Q", "\n\nHuman: Q\n\nAssistant: B"), "bad_role"),
        (row("\n\nHuman: Q\n\nAssistant: ", "\n\nHuman: Q\n\nAssistant: B"), "empty_candidate"),
        (row("\n\nHuman: Q\n\nAssistant: x\n\nHuman: more\n\nAssistant:",
             "\n\nHuman: Q\n\nAssistant: B"), "empty_candidate"),
        (row("\n\nHuman:\n\nAssistant: A", "\n\nHuman:\n\nAssistant: B"), "empty_turn"),
        (row("\n\nHuman: Q\n\nAssistant:\n\nHuman: R\n\nAssistant: A",
             "\n\nHuman: Q\n\nAssistant: B"), "empty_turn"),
        (row("\n\nHuman: Q\n\nAssistant: A", "\n\nHuman: Q\n\nAssistant: A "),
         "identical_candidates"),
        (row("Q", "A"), "no_turns"),
        (row("", "\n\nHuman: Q\n\nAssistant: B"), "no_turns"),
        (row("Note\n\nHuman: Q\n\nAssistant: A", "\n\nHuman: Q\n\nAssistant: B"), "no_turns"),
        (row("\n\nHuman: Q\n\nAssistant: A", None), "not_text"),
        (row("A", "B", prompt=["Human: Q"]), "not_text"),
        ({"chosen": "\n\nHuman: Q\n\nAssistant: A"}, "missing_field"),
        ("\n\nHuman: Q", "not_an_object"),
    ],
)  # fmt: skip
def test_bad_rows_are_dropped_by_name(bad, reason):
    groups, intake = run(bad)
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}
    assert dict(intake.votes.dropped) == ({reason: 1} if isinstance(bad, dict) else {})


def test_the_same_row_twice_counts_once_and_the_opposite_stays():
    one = row("\n\nHuman: Q\n\nAssistant: A", "\n\nHuman: Q\n\nAssistant: B")
    groups, intake = run(one, dict(one), row(one["rejected"], one["chosen"]))
    assert groups[0].group_id == groups[1].group_id
    assert [g.candidates[0].content for g in groups] == ["A", "B"]
    assert dict(intake.rows.dropped) == {"duplicate_row": 1}


words = st.text(st.sampled_from("ab 甲：:\n"), min_size=1).filter(
    lambda t: t.strip() == t and "\n\n" not in t
)


@given(st.lists(words, min_size=1, max_size=6))
def test_a_transcript_that_was_written_is_read_back(contents):
    names = ["Human", "Assistant"] * 3
    text = "".join(f"\n\n{n}: {c}" for n, c in zip(names, contents, strict=False))
    assert parse_transcript(text) == tuple(
        Message(r, c) for r, c in zip([U, A] * 3, contents, strict=False)
    )


def test_an_unreadable_transcript_is_a_record_error():
    with pytest.raises(RecordError, match=r"turn 2 .assistant. is empty"):
        parse_transcript("\n\nHuman: a\n\nAssistant:\n\nHuman: b")


def test_matching_says_what_it_saw():
    both = row("\n\nHuman: Q\n\nAssistant: A", "Human: Q\n\nAssistant: B")
    assert matches(both) == "chosen and rejected are Human/Assistant transcripts"
    continued = row("A", "B", prompt="\n\nHuman: Q\n\nAssistant:")
    assert matches(continued) == "prompt is a Human/Assistant transcript"
    for other in (row("A", "B", prompt="Q"), row("Human: Q", ["x"]), row("A", "B"), ["Human:"]):
        assert matches(other) is None
