"""Agreement, biases and findings of small sets, counted by hand."""

from __future__ import annotations

import pytest

from align.records import Candidate, Judgement, Message, PreferenceGroup
from reward_models.quality import Quality, advice, rate, similarity


def group(*judgements, texts=("short", "a longer answer"), name="g", **meta):
    candidates = tuple(Candidate("abcdef"[i], text) for i, text in enumerate(texts))
    return PreferenceGroup(name, (Message("user", name),), candidates, judgements, meta)


def vote(annotator, winner, suspect=None):
    loser = "b" if winner == "a" else "a"
    value = {"winner": winner, "loser": loser}
    return Judgement(annotator, "pair", value, suspect=suspect)


def tie(annotator):
    return Judgement(annotator, "pair", {"tie": ["a", "b"]})


def report(*groups, shown=()):
    quality = Quality()
    for some in shown:
        quality.observe_shown(some)
    for i, some in enumerate(groups):
        quality.observe(some, f"key {i}", "train")
    return quality.report()


def test_agreement_of_three_annotators_with_the_majority_of_the_others():
    # Pair 1: x, y say a, z says b. x's others (a, b) are even: not counted; the same for y. z
    # stands against two: wrong. Pair 2: all say a: three times right. Pair 3: x says b, y says a:
    # both wrong.
    figures = report(
        group(vote("x", "a"), vote("y", "a"), vote("z", "b"), name="1"),
        group(vote("x", "a"), vote("y", "a"), vote("z", "a"), name="2"),
        group(vote("x", "b"), vote("y", "a"), name="3"),
    )
    annotators = figures["agreement"]["annotators"]
    assert {n: (a["judgements"], a["n"], a["rate"]) for n, a in annotators.items()} == {
        "x": (3, 2, 0.5),
        "y": (3, 2, 0.5),
        "z": (2, 2, 0.5),
    }
    assert (figures["agreement"]["overall"]["n"], figures["agreement"]["overall"]["rate"]) == (
        6,
        0.5,
    )
    assert figures["contradictions"] == 2
    assert figures["findings"]["contradiction"] == {"count": 2, "group_ids": ["1", "3"]}


def test_ties_and_lone_votes_say_nothing_about_agreement():
    figures = report(
        group(vote("x", "a"), tie("y"), name="1"),
        group(vote("x", "a"), name="2"),
        group(vote(None, "a"), vote(None, "a"), name="3"),
    )
    assert figures["agreement"]["overall"] == {"rate": None, "low": None, "high": None, "n": 0}
    assert (figures["ties"], figures["judgements"], figures["pairs"]) == (1, 5, 3)
    assert figures["agreement"]["annotators"]["(unnamed)"]["judgements"] == 2


def test_unnamed_votes_are_others_for_a_named_annotator():
    figures = report(group(vote("x", "a"), vote(None, "a"), vote(None, "a")))
    assert figures["agreement"]["annotators"]["x"]["rate"] == 1.0


def test_wilson_interval():
    # Wilson 1927 for 8 of 10: 0.4902 to 0.9433.
    assert rate(8, 10) == {"rate": 0.8, "low": 0.4902, "high": 0.9433, "n": 10}
    assert rate(0, 10)["low"] == 0.0
    assert rate(10, 10)["high"] == 1.0


def test_position_bias_is_of_rows_shown_in_a_known_order():
    shown = [
        group(vote("x", "a"), vote("y", "a"), display_order=True),
        group(vote("x", "b"), tie("y"), display_order=True),
        group(vote("x", "b")),
        group(vote("x", "b"), display_order=False),
    ]
    figures = report(shown=shown)
    assert (figures["position_bias"]["n"], figures["position_bias"]["rate"]) == (3, 0.6667)


def test_length_bias_counts_votes_for_the_longer_answer():
    figures = report(
        group(vote("x", "b"), vote("y", "b"), vote("z", "a")),
        group(vote("x", "a"), texts=("same", "size"), name="2"),
    )
    assert (figures["length_bias"]["n"], figures["length_bias"]["rate"]) == (3, 0.6667)


def test_untouched_rankings_by_chance():
    def ranking(suspect=None, **ranks):
        return Judgement("x", "rank", ranks, suspect=suspect)

    texts = ("one", "two and two", "three and three and three")
    figures = report(
        group(ranking("display_order", a=1, b=2, c=3), texts=texts),  # 1/6
        group(ranking(a=2, b=1, c=None), texts=texts),  # two ranked: 1/2
        group(ranking(a=1, b=1, c=2), texts=texts),  # buckets: no order to leave untouched
    )
    assert figures["rankings"] == 3
    assert figures["untouched_rankings_by_chance"] == pytest.approx(0.667, abs=1e-3)
    assert figures["suspects"] == {"display_order": 1}
    assert any("1 of 3 rankings" in said and "0.7" in said for said in advice(figures))


def test_near_identical_answers_are_found():
    text = "The hotel was clean, quiet and close to the station, and we liked it a lot."
    assert similarity(text, text.upper().replace(" ", "  ")) == 1.0
    assert similarity("房间很干净，服务很好", "房间很干净，服务很差") < 0.9
    assert similarity("short", "a much longer and wholly different text") == 0.0
    # 4-grams of "abcde" and "abcdf": {abcd, bcde} and {abcd, bcdf}: one of three is shared.
    assert similarity("abcde", "abcdf") == pytest.approx(1 / 3)
    figures = report(group(vote("x", "a"), texts=(text, text + "!")))
    assert figures["near_identical"] == 1


def test_a_prompt_in_two_splits_is_seen():
    quality = Quality()
    quality.observe(group(vote("x", "a")), "key", "train")
    quality.observe(group(vote("x", "a")), "key", "test")
    assert quality.report()["prompts_in_two_splits"] == 1


def test_advice_is_given_where_a_figure_stands_out_only():
    even = [group(vote("x", "ab"[i % 2]), name=str(i), display_order=True) for i in range(40)]
    assert advice(report(*even, shown=even)) == []
    first = [group(vote("x", "a"), name=str(i), display_order=True) for i in range(40)]
    said = advice(report(*first, shown=first))
    assert len(said) == 1
    assert "first-shown answer wins 100% of 40 votes" in said[0]
    longer = [group(vote("x", "b"), name=str(i)) for i in range(40)]
    assert "longer answer wins 100% of 40 votes" in advice(report(*longer))[0]


def test_examples_are_few_and_counts_whole():
    groups = [group(vote("x", "a"), vote("y", "b"), name=str(i)) for i in range(50)]
    found = report(*groups)["findings"]["contradiction"]
    assert found["count"] == 50
    assert found["group_ids"] == [str(i) for i in range(20)]
