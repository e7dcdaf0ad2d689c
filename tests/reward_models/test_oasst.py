"""Literal OpenAssistant trees and flat messages → the exact groups."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.records import Candidate, Judgement, Message
from reward_models.annotations import Intake
from reward_models.annotations.base import Row
from reward_models.annotations.oasst import FORMAT, matches, votes_in
from reward_models.preferences import targets

U, A = "user", "assistant"


def run(*rows):
    intake = Intake()
    groups = list(FORMAT.parse([Row("o.jsonl", i, i, r) for i, r in enumerate(rows, 1)], intake))
    assert intake.rows.total == len(rows)
    assert intake.votes.total == sum(map(votes_in, rows))
    return groups, intake


def message(name, text, rank=None, role="assistant", **more):
    return {"message_id": name, "text": text, "role": role, "lang": "en", "rank": rank,
            "review_result": True, "deleted": False, "synthetic": False, **more}  # fmt: skip


def ask(name, text, *replies, rank=None, **more):
    return message(name, text, rank, "prompter", replies=list(replies), **more)


def answer(name, text, rank=None, *replies, **more):
    return message(name, text, rank, replies=list(replies), **more)


def tree(prompt, name="t"):
    return {"message_tree_id": name, "tree_state": "ready_for_export", "prompt": prompt}


def flat(name, parent, text, rank=None, role="assistant", tree="t", **more):
    return {**message(name, text, rank, role), "parent_id": parent, "message_tree_id": tree,
            "tree_state": "ready_for_export", **more}  # fmt: skip


def flattened(row):
    """The messages of a tree as flat rows."""
    rows = []

    def walk(node, parent):
        own = {k: v for k, v in node.items() if k != "replies"}
        shared = {k: row[k] for k in ("message_tree_id", "tree_state")}
        rows.append({**own, "parent_id": parent, **shared})
        for reply in node["replies"]:
            walk(reply, node["message_id"])

    walk(row["prompt"], None)
    return rows


# r ─ a (rank 1) ─ q ─ c (rank 0), d (rank 1), e (no rank)
#   └ b (rank 0)
TREE = tree(
    ask(
        "r",
        "怎样泡茶？",
        answer(
            "a",
            "烧水。",
            1,
            ask("q", "几度？", answer("c", "八十", 0), answer("d", "一百", 1), answer("e", "?")),
        ),
        answer("b", "先烧水，再等两分钟。", 0, model_name="gpt", synthetic=True),
    )
)


def test_every_ranked_set_of_replies_is_a_group_with_the_path_as_prompt():
    (first, second), intake = run(TREE)
    assert first.prompt == (Message(U, "怎样泡茶？"),)
    assert first.candidates == (
        Candidate("a", "烧水。"), Candidate("b", "先烧水，再等两分钟。", "gpt"),
    )  # fmt: skip
    assert first.judgements == (Judgement(None, "rank", {"a": 1, "b": 0}, None, "oasst"),)
    assert first.meta == {
        "source": "oasst", "message_tree_id": "t", "tree_state": "ready_for_export",
        "parent_id": "r", "lang": "en",
    }  # fmt: skip
    # Rank 0 is the best.
    assert [(p.a, p.b, p.target, p.weight) for p in targets(first)] == [(1, 0, 1.0, 1.0)]
    assert second.prompt == (Message(U, "怎样泡茶？"), Message(A, "烧水。"), Message(U, "几度？"))
    # A reply without a rank was compared with nothing.
    assert [c.id for c in second.candidates] == ["c", "d"]
    assert [(p.a, p.b) for p in targets(second)] == [(0, 1)]
    assert (intake.rows.used, intake.votes.used) == (1, 4)


def test_three_replies_are_ranked_pair_by_pair():
    (group,), _ = run(tree(ask("r", "Q", *(answer(n, n, i) for i, n in enumerate("xyz")))))
    got = [(p.a, p.b, p.target, p.weight) for p in targets(group)]
    assert got == [(0, 1, 1.0, 1 / 3), (0, 2, 1.0, 1 / 3), (1, 2, 1.0, 1 / 3)]


def test_flat_messages_in_any_order_give_the_same_groups():
    rows = flattened(TREE)
    other = flattened(tree(ask("R", "Q", answer("A", "x", 1), answer("B", "y", 0)), "u"))
    expected, _ = run(TREE)
    for seed in range(5):
        mixed = [*rows, *other]
        random.Random(seed).shuffle(mixed)
        groups, intake = run(*mixed)
        assert len(groups) == 3
        got = {g.meta["parent_id"]: g for g in groups}
        for group in expected:
            same = got[group.meta["parent_id"]]
            assert (same.group_id, same.prompt, same.meta) == (
                group.group_id, group.prompt, group.meta,
            )  # fmt: skip
            assert same.judgements[0].value == group.judgements[0].value
        # Only the reply without a rank is left out.
        assert dict(intake.rows.dropped) == {"no_rank": 1}
        assert intake.votes.used == 6


def test_a_tree_and_its_messages_together_count_once():
    groups, intake = run(TREE, *flattened(TREE))
    assert len(groups) == 2
    assert dict(intake.rows.dropped) == {"duplicate_row": 7}
    assert (intake.votes.used, dict(intake.votes.dropped)) == (4, {"duplicate_row": 4})


def test_the_same_ranking_in_another_tree_is_a_duplicate():
    again = json.loads(json.dumps(TREE).replace('"message_tree_id": "t"', '"message_tree_id": "s"'))
    groups, intake = run(TREE, again)
    assert len(groups) == 2
    assert dict(intake.rows.dropped) == {"no_comparison": 1}
    assert (intake.votes.used, dict(intake.votes.dropped)) == (4, {"duplicate_row": 4})


ROOT = flat("r", None, "Q", role="prompter")
PAIR = (flat("a", "r", "x", 0), flat("b", "r", "y", 1))


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (flat("c", "r", "z", 2, deleted=True), "deleted"),
        (flat("c", "r", "z"), "no_rank"),
        (flat("c", "r", "z", float("nan")), "no_rank"),
        (flat("c", "r", "z", "2"), "bad_rank"),
        (flat("c", "r", "z", True), "bad_rank"),
        (flat("c", "r", " ", 2), "empty_candidate"),
        (flat("c", "missing", "z", 2), "no_parent"),
        (flat("c", ["r"], "z", 2), "no_parent"),
        (flat("c", None, "z", 2), "no_parent"),
        (flat("c", "c", "z", 2), "no_parent"),
        (flat("q", "a", "more", role="prompter"), "no_comparison"),
        (flat("q", "a", "more", 0, role="prompter"), "no_comparison"),
        (flat("c", "a", "z", 2), "bad_role"),
        (flat("a", "r", "x", 0), "duplicate_row"),
        (flat("c", "r", "z", 2, role="system"), "bad_role"),
        (flat("c", "r", None, 2), "not_text"),
        (flat("", "r", "z", 2), "missing_field"),
        (flat(3, "r", "z", 2), "not_text"),
        ({**ROOT, "message_tree_id": None}, "not_text"),
        ({"message_id": "c", "text": "z"}, "missing_field"),
        ({"message_tree_id": "t", "prompt": "Q"}, "not_a_tree"),
        ("t", "not_an_object"),
    ],
)
def test_what_is_no_candidate_is_dropped_by_name_and_the_rest_stays(extra, reason):
    groups, intake = run(ROOT, *PAIR, extra)
    assert dict(intake.rows.dropped) == {reason: 1}
    assert [g.judgements[0].value for g in groups] == [{"a": 0, "b": 1}]
    assert intake.votes.used == 2


def test_ranks_of_user_messages_are_no_votes():
    groups, intake = run(
        ROOT, *PAIR,
        flat("q", "a", "one", 0, role="prompter"), flat("s", "a", "two", 1, role="prompter"),
    )  # fmt: skip
    assert len(groups) == 1
    assert dict(intake.votes.dropped) == {"prompter_rank": 2}
    assert dict(intake.rows.dropped) == {"no_comparison": 2}


def test_what_hangs_below_a_deleted_message_is_dropped():
    _, intake = run(
        flat("r", None, "Q", role="prompter", deleted=True), *PAIR,
        flat("q", "a", "more", role="prompter"),
    )  # fmt: skip
    assert dict(intake.rows.dropped) == {"deleted": 1, "no_parent": 2, "no_comparison": 1}
    assert dict(intake.votes.dropped) == {"no_parent": 2}


def test_a_reply_that_was_ranked_alone_can_still_be_part_of_a_prompt():
    groups, intake = run(
        ROOT, flat("a", "r", "x", 0), flat("b", "r", "y"),
        flat("q", "a", "more", role="prompter"), flat("c", "q", "1", 0), flat("d", "q", "2", 1),
    )  # fmt: skip
    assert [[m.content for m in g.prompt] for g in groups] == [["Q", "x", "more"]]
    assert dict(intake.rows.dropped) == {"no_rank": 1}
    assert (intake.votes.used, dict(intake.votes.dropped)) == (2, {"single_reply": 1})


@pytest.mark.parametrize(
    "prompt",
    [
        ask("r", "Q"),
        ask("r", "Q", answer("a", "x", 0)),
        ask("r", "Q", answer("a", "x"), answer("b", "y")),
        ask("r", "Q", answer("a", "x", 0), answer("b", "x", 1)),
        ask("r", " ", answer("a", "x", 0), answer("b", "y", 1)),
        ask("r", "Q", answer("a", "x", 0), answer("b", "y", 1, deleted=True)),
        ask("r", "Q", answer("a", "x", 0), "b"),
        ask("r", "Q", answer("a", "x", 0), {"rank": 1, "text": "y"}),
        ask("r", None, answer("a", "x", 0), answer("b", "y", 1)),
        {"replies": [answer("a", "x", 0), answer("b", "y", 1)]},
        {"replies": None},
    ],
)
def test_a_tree_without_a_comparison_is_dropped_and_its_ranks_are_counted(prompt):
    groups, intake = run(tree(prompt))
    assert groups == []
    assert dict(intake.rows.dropped) == {"no_comparison": 1}
    assert intake.votes.used == 0


def test_a_ranked_reply_without_another_is_dropped():
    question = flat("q", "a", "more", role="prompter")
    _, intake = run(ROOT, *PAIR, question, flat("c", "q", "z", 0))
    assert dict(intake.rows.dropped) == {"no_comparison": 1, "single_reply": 1}
    assert dict(intake.votes.dropped) == {"single_reply": 1}


def test_equal_ranks_are_a_tie():
    (group,), _ = run(ROOT, flat("a", "r", "x", 1), flat("b", "r", "y", 1.0))
    assert targets(group)[0].target == 0.5


names = st.sampled_from(["r", "a", "b", "c"])
wild = st.builds(
    flat,
    names,
    st.none() | names,
    st.sampled_from(["", "x", "y"]),
    st.none() | st.integers(0, 2) | st.just("1"),
    st.sampled_from(["prompter", "assistant", "cat"]),
    st.sampled_from(["t", "u"]),
)
wild_tree = st.recursive(
    st.builds(answer, names, st.sampled_from(["x", "y", ""]), st.none() | st.integers(0, 2)),
    lambda inner: st.builds(lambda n, t, r: ask(n, t, *r), names, st.just("Q"), st.lists(inner)),
    max_leaves=6,
).map(tree)


@settings(max_examples=50, deadline=None)
@given(st.lists(wild | wild_tree | st.none() | st.integers(), max_size=9))
def test_whatever_the_input_the_books_balance(rows):
    groups, intake = run(*rows)
    ranked = sum(len(g.candidates) for g in groups)
    assert intake.votes.used == ranked
    ids = Counter(c.id for g in groups for c in g.candidates)
    assert not ids or max(ids.values()) <= 2  # once in each of the two trees
    assert intake.rows.used >= bool(groups)


def test_matching_says_what_it_saw():
    assert matches(TREE) == "message_tree_id and a prompt with replies (trees)"
    assert matches(ROOT) == "message_tree_id, message_id, role, text and rank (flat messages)"
    for other in ({"message_tree_id": "t"}, {"message_id": "m", "role": "assistant"}, ["t"]):
        assert matches(other) is None
