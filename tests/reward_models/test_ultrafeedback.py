"""Literal UltraFeedback rows → the exact groups and targets."""

from __future__ import annotations

import pytest
from format_rows import fitting, run, trained
from hypothesis import given
from hypothesis import strategies as st

from reward_models.annotations.ultrafeedback import FORMAT
from reward_models.preferences import targets

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")


def completion(score, ratings=(), text="An answer.", model="m", **more):
    annotations = {
        aspect: {"Rating": rating, "Rationale": "Because."}
        for aspect, rating in zip(ASPECTS, ratings, strict=False)
    }
    made = {
        "model": model, "response": text, "overall_score": score, "annotations": annotations,
        "principle": "helpfulness", "custom_system_prompt": "Be helpful.", "critique": "Fine.",
    }  # fmt: skip
    return {**made, **more}


def row(*completions, **more):
    made = {
        "source": "sharegpt", "instruction": "Q", "models": [c["model"] for c in completions],
        "completions": list(completions), "correct_answers": ["None"],
    }  # fmt: skip
    return {**made, **more}


def texts(*scores):
    return [completion(s, text=f"answer {i}") for i, s in enumerate(scores)]


def score(value, suspect=None):
    return {
        "annotator": "gpt-4", "kind": "score", "value": value, "strength": None,
        "source": "ultrafeedback:overall_score", "suspect": suspect,
    }  # fmt: skip


def test_a_row_becomes_one_group():
    (group,), intake = run(
        FORMAT,
        row(
            completion(7.5, ("5", "4", "4", "N/A"), "甲", "gpt-4"),
            completion(8.0, ("5", "5", "5", "5"), "乙", "llama-2-7b-chat"),
            completion(3, ("1", "2", "1", "2"), "丙", "alpaca-7b"),
            instruction="写一首诗",
            source="flan_v2_niv2",
        ),
    )
    assert {**group.to_json(), "group_id": None} == {
        "group_id": None,
        "prompt": [{"role": "user", "content": "写一首诗"}],
        "candidates": [
            {"id": "1", "content": "甲", "model": "gpt-4"},
            {"id": "2", "content": "乙", "model": "llama-2-7b-chat"},
            {"id": "3", "content": "丙", "model": "alpaca-7b"},
        ],
        "judgements": [score({"1": 7.5, "2": 8.0, "3": 3.0})],
        "meta": {
            "source": "ultrafeedback",
            "subset": "flan_v2_niv2",
            "attributes": {
                "1": {"instruction_following": 5.0, "honesty": 4.0, "truthfulness": 4.0},
                "2": {"instruction_following": 5.0, "honesty": 5.0, "truthfulness": 5.0,
                      "helpfulness": 5.0},
                "3": {"instruction_following": 1.0, "honesty": 2.0, "truthfulness": 1.0,
                      "helpfulness": 2.0},
            },
        },
    }  # fmt: skip
    third = 0.333333
    assert trained(group) == [
        ("2", "1", 1.0, third),
        ("1", "3", 1.0, third),
        ("2", "3", 1.0, third),
    ]
    assert [p.margin for p in targets(group, margin=True)] == [0.5, 4.5, 5.0]
    assert (intake.votes.used, dict(intake.votes.dropped)) == (3, {})


def test_equal_scores_tie_and_fine_grained_ratings_do_not_break_the_tie():
    (group,), _ = run(FORMAT, row(completion(6, ("5",) * 4, "A"), completion(6.0, ("1",) * 4, "B")))
    assert trained(group) == [("1", "2", 0.5, 1.0)]


def test_a_score_of_10_beside_low_ratings_makes_its_own_pairs_suspect_and_no_others():
    (group,), _ = run(
        FORMAT,
        row(
            completion(8, ("4",) * 4, "Good."),
            completion(10, ("1", "2", "2", "2"), "Bad."),
            completion(5, ("3",) * 4, "Middling."),
        ),
    )
    fault = "overall_10_rated_2_or_less"
    assert [j.to_json() for j in group.judgements] == [
        score({"1": 8.0, "3": 5.0}),
        score({"1": 8.0, "2": 10.0}, fault),
        score({"2": 10.0, "3": 5.0}, fault),
    ]
    assert trained(group, suspects="drop") == [("1", "3", 1.0, 1.0)]
    assert [(a, b) for a, b, *_ in trained(group)] == [("2", "1"), ("1", "3"), ("2", "3")]


@pytest.mark.parametrize(
    ("overall", "ratings", "suspect"),
    [
        (10, ("2", "2", "2", "2"), "overall_10_rated_2_or_less"),
        (10, ("N/A", "3", "1", "2"), "overall_10_rated_2_or_less"),
        (10.0, ("2", "2", "2", "3"), "overall_10_rated_4_or_less"),
        (10, ("4", "4", "4", "4"), "overall_10_rated_4_or_less"),
        (10, ("4", "4", "4", "5"), None),
        (9.5, ("1", "1", "1", "1"), None),
        (10, (), None),
        ("10", ("1", "1", "1", "1"), "overall_10_rated_2_or_less"),
    ],
)
def test_where_a_10_is_doubted(overall, ratings, suspect):
    (group,), _ = run(FORMAT, row(completion(overall, ratings, "A"), completion(6, (), "B")))
    assert [j.suspect for j in group.judgements] == [suspect]


def test_the_published_mean_counts_where_the_ratings_are_missing():
    doubted = completion(10, (), "A", **{"fine-grained_score": 1.5})
    (group,), _ = run(FORMAT, row(doubted, completion(6, (), "B")))
    assert [j.suspect for j in group.judgements] == ["overall_10_rated_2_or_less"]
    assert "attributes" not in group.meta


def test_several_ratings_of_an_aspect_count_as_their_mean():
    rated = completion(6, (), "A")
    rated["annotations"] = {"honesty": [{"Rating": "4"}, {"Rating": "3"}, {"Rating": "N/A"}]}
    (group,), _ = run(FORMAT, row(rated, completion(5, (), "B")))
    assert group.meta["attributes"] == {"1": {"honesty": 3.5}}


def test_completions_without_text_or_score_are_counted():
    (group,), intake = run(
        FORMAT,
        row(
            completion(9, (), " "),
            completion(7, (), "A"),
            completion(None, (), "B"),
            completion("eight", (), "C"),
            completion(0, (), "D"),
            completion(5, (), "E"),
            completion(5, (), None),
        ),
    )
    assert [c.id for c in group.candidates] == ["2", "3", "4", "5", "6"]
    assert trained(group) == [("2", "6", 1.0, 1.0)]
    assert (intake.votes.used, dict(intake.votes.dropped)) == (
        2,
        {"empty_candidate": 1, "no_score": 2, "bad_score": 1, "not_text": 1},
    )


@pytest.mark.parametrize(
    ("bad", "reason", "votes"),
    [
        (row(*texts(5), instruction="x"), "one_candidate", {"one_candidate": 1}),
        (row(instruction="x"), "one_candidate", {}),
        (row(*texts(None, "N/A", 7)), "no_score", {"no_score": 3}),
        (row(*texts(1, 2), instruction=" "), "no_prompt", {"no_prompt": 2}),
        (row(*texts(1, 2), instruction=None), "not_text", {"not_text": 2}),
        (row(*texts(1, 2), completions="none"), "bad_record", {}),
        (row(completion(1), completion(2)), "identical_candidates", {"identical_candidates": 2}),
        (row(*texts(1, 2), source=float("nan")), "bad_value", {"bad_value": 2}),
        ({"instruction": "Q"}, "missing_field", {}),
        (None, "not_an_object", {}),
    ],
)
def test_bad_rows_are_dropped_by_name(bad, reason, votes):
    groups, intake = run(FORMAT, bad)
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}
    assert (intake.votes.used, dict(intake.votes.dropped)) == (0, votes)


def test_the_same_row_twice_counts_once():
    groups, intake = run(FORMAT, row(*texts(1, 2)), row(*texts(1, 2)))
    assert len(groups) == 1
    assert dict(intake.rows.dropped) == {"duplicate_row": 1}
    assert (intake.votes.used, dict(intake.votes.dropped)) == (2, {"duplicate_row": 2})


def test_detection_and_binarized_rows():
    assert fitting(row(*texts(1, 2))) == ["ultrafeedback"]
    binarized = {
        "prompt": "Q", "prompt_id": "1",
        "chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
        "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "B"}],
        "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
        "score_chosen": 8.5, "score_rejected": 8.0,
    }  # fmt: skip
    assert fitting(binarized) == ["pairs"]


@given(
    st.permutations(range(4)),
    st.lists(st.sampled_from([1, 5, 7.5, 10]), min_size=4, max_size=4),
    st.lists(st.sampled_from(["1", "3", "5", "N/A"]), min_size=4, max_size=4),
)
def test_the_order_of_completions_does_not_change_what_is_trained(order, scores, ratings):
    made = [
        completion(s, (r,), f"answer {i}", f"model {i}")
        for i, (s, r) in enumerate(zip(scores, ratings, strict=True))
    ]

    def by_model(completions):
        (group,), _ = run(FORMAT, row(*completions))
        model = {c.id: c.model for c in group.candidates}
        found = []
        for better, worse, target, weight in trained(group, suspects="drop"):
            pair = model[better], model[worse]
            found.append((tuple(sorted(pair)) if target == 0.5 else pair, target, weight))
        return sorted(found)

    assert by_model(made) == by_model([made[i] for i in order])
