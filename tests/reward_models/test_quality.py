"""Agreement, biases and findings of small sets, counted by hand."""

from __future__ import annotations

import pytest

from align.records import Candidate, Judgement, Message, PreferenceGroup
from reward_models.quality import Quality, advice, rate
from reward_models.quality_findings import EFFECTS


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
    found = figures["findings"]["contradiction"]
    assert (found["count"], found["group_ids"]) == (2, ["1", "3"])
    assert (found["of"], found["share"]) == ("pairs", 0.6667)


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


def test_a_prompt_in_two_splits_is_seen():
    quality = Quality()
    quality.observe(group(vote("x", "a")), "key", "train")
    quality.observe(group(vote("x", "a")), "key", "test")
    assert quality.report()["prompts_in_two_splits"] == 1


def test_the_two_kinds_of_contradiction():
    both_ways = group(vote("x", "a"), vote("x", "b"), vote("y", "a"), name="1")
    disagree = group(vote("x", "a"), vote("y", "b"), name="2")
    figures = report(both_ways, disagree)
    assert (figures["self_contradictions"], figures["contradictions"]) == (1, 1)
    assert figures["findings"]["self_contradiction"]["group_ids"] == ["1"]
    assert figures["findings"]["contradiction"]["group_ids"] == ["2"]
    # Two questions may have two answers, and a tie is not the other side.
    safer = Judgement("x", "pair", {"winner": "b", "loser": "a"}, source="safer")
    assert report(group(vote("x", "a"), safer))["self_contradictions"] == 0
    assert report(group(vote("x", "a"), tie("x")))["self_contradictions"] == 0


def test_circles_of_a_panel_and_of_one_annotator():
    def says(annotator, *pairs):
        return [Judgement(annotator, "pair", {"winner": p[0], "loser": p[1]}) for p in pairs]

    texts = ("one", "two and two", "three and three and three")
    figures = report(
        group(*says("x", "ab", "bc", "ca"), texts=texts, name="1"),
        group(*says("x", "ab", "bc", "ac"), texts=texts, name="2"),
        group(*says("x", "ab"), *says("y", "bc"), *says("z", "ca"), texts=texts, name="3"),
        group(*says("x", "ab"), *says("y", "ba"), texts=texts, name="4"),
    )
    assert figures["circles"] == 2
    assert figures["findings"]["circle"]["group_ids"] == ["1", "3"]
    assert figures["findings"]["own_circle"]["group_ids"] == ["1"]
    assert figures["findings"]["own_circle"]["share"] == 0.25


def test_length_bins_are_by_how_many_times_longer():
    def sized(winner, a, b):
        return group(vote("x", winner), texts=("x" * a, "y" * b))

    figures = report(
        sized("a", 10, 10), sized("a", 11, 10), sized("b", 10, 14), sized("a", 10, 14),
        sized("b", 10, 25), sized("a", 31, 10), sized("b", 31, 10), sized("a", 99, 1),
    )  # fmt: skip
    bins = {name: (b["n"], b["rate"]) for name, b in figures["length_bins"].items()}
    assert bins == {
        "≤ 1.1": (1, 1.0), "1.1–1.5": (2, 0.5), "1.5–2": (0, None), "2–3": (1, 1.0),
        "> 3": (3, 0.6667),
    }  # fmt: skip
    assert (figures["length_bias"]["n"], figures["length_bias"]["rate"]) == (7, 0.7143)


def test_votes_faster_than_skimming():
    # 300 + 300 words and a prompt of 0: 600 words, 60 seconds at 600 words a minute.
    texts = ("word " * 300, "other " * 299)
    slow = {"x": 61.0, "y": 59.0, "z": 3, "bad": "no", "none": None, "nan": float("nan")}
    shown = [group(vote("x", "a"), texts=texts, name="q", lead_time=slow)]
    quality = Quality()
    quality.observe_shown(shown[0], where="in.json:7")
    quality.observe(shown[0], "key", "train")
    figures = quality.report()
    assert figures["timed_votes"] == 3
    found = figures["findings"]["too_fast"]
    assert (found["count"], found["share"], found["rows"]) == (2, 0.6667, ["in.json:7"])
    annotators = figures["agreement"]["annotators"]
    assert (annotators["x"]["timed"], annotators["x"]["too_fast"]) == (1, 0)
    assert any("2 of 3 timed votes" in said for said in advice(figures))
    assert "too_fast" not in report(shown[0])["findings"]


def test_refusals_and_whether_they_win():
    refusal = "I’m sorry, but I can't help with that."
    figures = report(
        group(vote("x", "a"), vote("y", "a"), texts=(refusal, "Of course: first, …"), name="1"),
        group(vote("x", "a"), texts=("你可以这样做", "很抱歉，我无法回答这个问题。"), name="2"),
        group(vote("x", "a"), texts=(refusal, "As an AI language model, no."), name="3"),
        group(vote("x", "a"), tie("y"), texts=("fine", "good"), name="4"),
    )
    assert figures["findings"]["refusal"]["group_ids"] == ["1", "2", "3"]
    assert (figures["refusals_win"]["n"], figures["refusals_win"]["rate"]) == (3, 0.6667)


def test_escapes_languages_and_repeated_answers_have_their_rows():
    quality = Quality()
    rows = [
        group(vote("x", "a"), texts=("a &lt; b", "plain"), name="1"),
        group(vote("x", "a"), texts=("I don&#39;t know", "AT&T and R&D; fine"), name="2"),
        group(vote("x", "a"), texts=("好的，没问题", "Yes, no problem"), name="a question"),
        group(vote("x", "a"), texts=("plain", "another answer"), name="3"),
    ]
    for line, some in enumerate(rows, start=1):
        quality.observe(some, some.group_id, "train", where=f"in.jsonl:{line}")
    figures = quality.report()
    found = {k: (f["count"], f["rows"]) for k, f in figures["findings"].items()}
    assert found == {
        "html_escaped": (2, ["in.jsonl:1", "in.jsonl:2"]),
        "other_language": (1, ["in.jsonl:3"]),
        "repeated_answer": (1, ["in.jsonl:4"]),
    }
    assert figures["findings"]["repeated_answer"]["share"] == 0.125  # of 8 candidates
    assert figures["repeated_answers"] == [{"text": "plain", "times": 2}]
    assert figures["languages"] == {
        "prompts": {"other": 3, "en": 1}, "answers": {"en": 7, "zh": 1},
    }  # fmt: skip


def test_models_are_ranked_where_candidates_name_them():
    candidates = (Candidate("a", "one", "big"), Candidate("b", "two two", "small"))
    quality = Quality()
    for k, winner in enumerate("aaab"):
        some = PreferenceGroup("g", (Message("user", str(k)),), candidates, (vote("x", winner),))
        quality.observe(some, str(k), "train")
    rows = quality.report()["models"]["models"]
    assert [(r["model"], r["votes"], r["win_rate"]) for r in rows] == [
        ("big", 4, 0.75), ("small", 4, 0.25),
    ]  # fmt: skip


def test_every_finding_says_what_it_does_to_training():
    quality = Quality()
    for kind in EFFECTS:
        quality.findings.add(kind, "g")
    quality.findings.add("suspect: something new", "g", "f:1")
    found = quality.report()["findings"]
    assert all(len(f["effect"]) > 30 and f["of"] for f in found.values())
    assert found["suspect: something new"]["rows"] == ["f:1"]


def test_a_panel_that_does_not_agree_is_told():
    noise = [group(vote("x", "a"), vote("y", "ab"[i % 2]), name=str(i)) for i in range(60)]
    assert any("Krippendorff's alpha is" in said for said in advice(report(*noise)))
    sure = [group(vote("x", "a"), vote("y", "a"), name=str(i)) for i in range(60)]
    assert not any("alpha" in said for said in advice(report(*sure)))


def test_strengths_in_several_units_are_told():
    def scored(source, k):
        made = Judgement("x", "score", {"a": 1.0, "b": 3.0}, source=source)
        return group(made, name=str(k), texts=("same", "size"))

    one = report(scored("stars", 1), scored("stars", 2), group(vote("y", "a"), name="3"))
    assert one["strength_units"] == {"score:stars": 2}
    assert not any("units" in said for said in advice(one))
    two = report(scored("stars", 1), scored("percent", 2))
    assert any("2 units (score:percent, score:stars)" in said for said in advice(two))


def test_advice_is_given_where_a_figure_stands_out_only():
    even = [
        group(
            vote("x", "ab"[i % 2]), name=str(i), display_order=True,
            texts=(f"short {i}", f"a longer answer {i}"),
        )
        for i in range(40)
    ]  # fmt: skip
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


def test_one_is_not_told_as_many():
    def said(n):
        groups = [group(vote("x", "a"), vote("y", "b"), name=str(i)) for i in range(n)]
        return " ".join(advice(report(*groups)))

    assert "1 pair has votes for both sides" in said(1)
    assert "2 pairs have votes for both sides" in said(2)
