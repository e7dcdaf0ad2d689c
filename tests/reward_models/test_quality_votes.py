"""Alpha by Krippendorff's own examples and by his package, circles, ranks of models."""

from __future__ import annotations

import sys
from collections import Counter

import krippendorff
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reward_models.preferences import Vote
from reward_models.quality_votes import (
    Agreement,
    Leaderboard,
    in_circle,
    majority_edges,
    nominal_alpha,
    own_circles,
)


def units_of(rows: list[str]) -> Counter[tuple[int, ...]]:
    """The value counts of each column of a table; "." is missing."""
    values = sorted({v for row in rows for v in row} - {"."})
    return Counter(tuple(column.count(v) for v in values) for column in zip(*rows, strict=True))


def test_alpha_of_krippendorffs_examples():
    # "Computing Krippendorff's alpha-reliability" (2011). Section A: two observers, ten units of 0
    # and 1, α = 0.095. Section C: four observers, twelve units, values missing, α = 0.743.
    assert nominal_alpha(units_of(["0100000010", "1110010000"])) == pytest.approx(0.095, abs=5e-4)
    table = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    assert nominal_alpha(units_of(table)) == pytest.approx(0.743, abs=5e-4)


def test_alpha_without_disagreement_to_expect_is_unknown():
    assert nominal_alpha({}) is None
    assert nominal_alpha({(1, 0): 5}) is None
    assert nominal_alpha({(3, 0): 5}) is None
    assert nominal_alpha({(2, 0): 1, (0, 2): 1}) == 1.0


counts = st.tuples(*[st.integers(0, 4)] * 3)


@settings(deadline=None)
@given(st.lists(counts, min_size=1, max_size=12))
def test_alpha_is_that_of_the_krippendorff_package(units):
    table = np.array(units)
    assume(len({c for unit in units if sum(unit) > 1 for c, n in enumerate(unit) if n}) > 1)
    wanted = krippendorff.alpha(value_counts=table, level_of_measurement="nominal")
    assert nominal_alpha(Counter(units)) == pytest.approx(float(wanted), abs=1e-9)


def cast(*values: float) -> list[Vote]:
    return [Vote(f"w{k}", value) for k, value in enumerate(values)]


def found(*pairs: list[Vote]) -> dict[tuple[int, int], list[Vote]]:
    """The votes of a group of two, or of several pairs (0, 1), (0, 2), …"""
    return {(0, k): votes for k, votes in enumerate(pairs, start=1)}


@settings(deadline=None, max_examples=40)
@given(st.lists(counts, min_size=1, max_size=12))
def test_agreement_is_alpha_of_the_votes_and_their_mirror_image(units):
    agreement = Agreement()
    for first, second, ties in units:
        agreement.observe(found(cast(*[1.0] * first, *[0.0] * second, *[0.5] * ties)))
    table = np.array([*units, *((b, a, t) for a, b, t in units)])
    pairable = [unit for unit in units if sum(unit) > 1]
    assert agreement.report()["pairs"] == len(pairable)
    if not any(a + b for a, b, _ in pairable):
        assert agreement.report()["alpha"] is None
        return
    wanted = krippendorff.alpha(value_counts=table, level_of_measurement="nominal")
    assert agreement.report()["alpha"] == pytest.approx(float(wanted), abs=1e-4)


def test_agreement_by_hand():
    # Three pairs of two votes: agreed, agreed, split. Mirrored: 12 values, 6 first and 6 second;
    # observed 2 · 2 · 1 · 1 / 1 = 4 of 12, expected 2 · 6 · 6 / (12 · 11) = 72 / 132:
    # α = 1 − (4 / 12) / (72 / 132) = 7 / 18.
    agreement = Agreement()
    for votes in (cast(1, 1), cast(0, 0), cast(1, 0), cast(1)):
        agreement.observe(found(votes))
    assert agreement.report()["alpha"] == pytest.approx(7 / 18, abs=1e-4)
    assert agreement.report()["pairs"] == 3
    assert sum(agreement.shares) == 3
    # In HH-RLHF the chosen answer always stands first: that is no chance agreement.
    first = Agreement()
    for votes in (cast(1, 1), cast(1, 1), cast(1, 0)):
        first.observe(found(votes))
    assert first.report()["alpha"] == agreement.report()["alpha"]


def test_the_interval_is_seeded_and_as_wide_as_theory_says():
    # 400 pairs of two votes, a share d = 0.1 split: α = 1 − d / ½ (799 / 800 aside), so its
    # standard error is that of d twice: 2 · √(0.1 · 0.9 / 400) = 0.03, the interval ±0.0588.
    agreement = Agreement()
    for k in range(400):
        agreement.observe(found(cast(1, float(k % 10 > 0))))
    report = agreement.report()
    assert report["alpha"] == pytest.approx(0.8, abs=2e-3)
    assert report["low"] == pytest.approx(0.8 - 0.0588, abs=0.01)
    assert report["high"] == pytest.approx(0.8 + 0.0588, abs=0.01)
    assert agreement.report() == report
    assert agreement.report(seed=1)["low"] != report["low"]


def test_the_interval_is_of_groups():
    # The same 400 pairs in 40 groups, split ones together: ten times fewer independent draws.
    apart, together = Agreement(), Agreement()
    for k in range(40):
        votes = [cast(1, float(k % 10 > 0))] * 10
        together.observe(found(*votes))
        for some in votes:
            apart.observe(found(some))
    narrow, wide = apart.report(), together.report()
    assert wide["alpha"] == narrow["alpha"]
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])
    lone = Agreement()
    lone.observe(found(cast(1, 0)))
    assert (lone.report()["low"], lone.report()["high"]) == (None, None)


def test_vote_shares_are_of_the_winning_side():
    agreement = Agreement()
    for votes in (
        cast(1, 0), cast(0.5, 0.5), cast(1, 1, 0, 0, 0), cast(1, 1, 0), cast(1, 1, 1, 0),
        cast(1, 1, 1, 1, 0), cast(*[1] * 9, 0), cast(*[1] * 19, 0), cast(0, 0), cast(1),
    ):  # fmt: skip
        agreement.observe(found(votes))
    # even 2; 60 % 1; 67 % 1; 75 % and 80 % 2; 90 % 1; 95 % 1; all 1; a lone vote has no share.
    assert agreement.shares == [2, 1, 1, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("edges", "circle"),
    [
        ([("a", "b"), ("b", "c"), ("c", "a")], True),
        ([("a", "b"), ("b", "c"), ("a", "c")], False),
        ([("a", "b"), ("c", "d"), ("d", "e"), ("e", "c")], True),
        ([("x", "a"), ("a", "b"), ("b", "c"), ("c", "d"), ("d", "b"), ("d", "y")], True),
        ([("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")], False),
        ([], False),
    ],
)
def test_circles(edges, circle):
    assert in_circle(edges) is circle
    assert in_circle([(b, a) for a, b in edges]) is circle


@given(st.permutations(range(6)))
def test_a_ranking_has_no_circle_until_its_last_beats_its_first(order):
    edges = [(order[i], order[j]) for i in range(6) for j in range(i + 1, 6)]
    assert not in_circle(edges)
    turned = [e if e != (order[0], order[5]) else (order[5], order[0]) for e in edges]
    assert in_circle(turned)


def test_majorities_and_single_annotators_can_go_round():
    # Condorcet: x says a > b > c, y says b > c > a, z says c > a > b. Nobody is inconsistent.
    panel = {(0, 1): cast(1, 0, 1), (1, 2): cast(1, 1, 0), (0, 2): cast(1, 0, 0)}
    assert sorted(majority_edges(panel)) == [(0, 1), (1, 2), (2, 0)]
    assert in_circle(majority_edges(panel))
    assert own_circles(panel) == []
    alone = {(0, 1): cast(1), (1, 2): cast(1), (0, 2): cast(0)}
    assert own_circles(alone) == ["w0"]
    even = {(0, 1): cast(1, 0), (1, 2): cast(1, 1), (0, 2): cast(0, 0)}
    assert sorted(majority_edges(even)) == [(1, 2), (2, 0)]


def board(*games: tuple[str, str, float, int]) -> Leaderboard:
    made = Leaderboard()
    for a, b, value, times in games:
        made.observe([a, b], {(0, 1): cast(*[value] * times)})
    return made


def test_leaderboard_of_two_models_by_hand():
    # x beats y 30 : 10. Strengths 3 : 1, so the ratings are 400 log₁₀ 3 = 190.8 apart round 1000.
    report = board(("x", "y", 1.0, 20), ("y", "x", 0.0, 10), ("x", "y", 0.0, 10)).report()
    assert report["note"] is None
    assert report["models"] == [
        {"model": "x", "votes": 40, "win_rate": 0.75, "average_win_rate": 0.75, "elo": 1095},
        {"model": "y", "votes": 40, "win_rate": 0.25, "average_win_rate": 0.25, "elo": 905},
    ]


def test_leaderboard_ranks_by_strength_of_opponents():
    # p wins 2 : 1 against strong q, which wins 2 : 1 against r, which wins 8 : 1 against weak s.
    # r wins 9 of 12 votes, p 2 of 3; by strength p (4) stands before r (1).
    games = [("p", "q", 2, 1), ("q", "r", 2, 1), ("r", "s", 8, 1)]
    made = board(
        *((a, b, 1.0, wins) for a, b, wins, _ in games),
        *((a, b, 0.0, losses) for a, b, _, losses in games),
    )
    report = made.report()["models"]
    assert [row["model"] for row in report] == ["p", "q", "r", "s"]
    elo = {row["model"]: row["elo"] for row in report}
    # 400 log₁₀ of 2, 2 and 8: 120.4, 120.4 and 361.2.
    assert elo["p"] - elo["q"] == pytest.approx(120.4, abs=1.1)
    assert elo["r"] - elo["s"] == pytest.approx(361.2, abs=1.1)
    rates = {row["model"]: row["win_rate"] for row in report}
    assert rates["r"] > rates["p"]


def test_ties_are_half_a_win_and_same_or_unnamed_models_do_not_play():
    made = board(("x", "y", 0.5, 3), ("x", "x", 1.0, 5))
    made.observe(["x", None], {(0, 1): cast(1)})
    rows = made.report()["models"]
    assert [(r["model"], r["votes"], r["win_rate"], r["elo"]) for r in rows] == [
        ("x", 3, 0.5, 1000), ("y", 3, 0.5, 1000),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "games",
    [
        [("x", "y", 1.0, 5)],  # y never won
        [("x", "y", 0.5, 2), ("p", "q", 0.5, 2)],  # two groups that never met
    ],
)
def test_strengths_without_a_finite_value_are_not_given(games):
    report = board(*games).report()
    assert "no Bradley–Terry ranks" in report["note"]
    assert {row["elo"] for row in report["models"]} == {None}
    assert all(row["win_rate"] is not None for row in report["models"])


def test_without_evalica_there_are_win_rates_and_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "evalica", None)
    report = board(("x", "y", 1.0, 3), ("x", "y", 0.0, 1)).report()
    assert "pip install 'align[annotations]'" in report["note"]
    assert [(r["model"], r["win_rate"], r["elo"]) for r in report["models"]] == [
        ("x", 0.75, None), ("y", 0.25, None),
    ]  # fmt: skip
    assert Leaderboard().report() == {"models": [], "note": None}
