"""Judgements → targets, with numbers worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.config_errors import UserError
from align.records import Candidate, Judgement, Message, PreferenceGroup, RecordError
from reward_models.preferences import pair_value, targets, votes

SETTINGS = ("soft", "majority", "per_annotator")


def group(*judgements, k=2):
    ids = "abcdefgh"[:k]
    candidates = tuple(Candidate(i, f"text {i}") for i in ids)
    return PreferenceGroup("g", (Message("user", "q"),), candidates, tuple(judgements))


def win(winner, loser="", annotator=None, p=None, **more):
    loser = loser or ("b" if winner == "a" else "a")
    value = {"winner": winner, "loser": loser} | ({} if p is None else {"p": p})
    return Judgement(annotator, "pair", value, **more)


def tie(annotator=None):
    return Judgement(annotator, "pair", {"tie": ["a", "b"]})


def rank(annotator=None, **ranks):
    return Judgement(annotator, "rank", ranks)


def score(annotator=None, source="", **scores):
    return Judgement(annotator, "score", scores, source=source)


def short(made):
    return [(p.a, p.b, round(p.target, 6), round(p.weight, 6)) for p in made]


def test_a_single_vote_is_the_plain_bradley_terry_target():
    assert short(targets(group(win("b")))) == [(1, 0, 1.0, 1.0)]


def test_soft_votes():
    votes = group(win("a"), win("a"), win("b"))
    assert short(targets(votes)) == [(0, 1, 0.666667, 1.0)]
    assert short(targets(votes, alpha=1.0)) == [(0, 1, 0.6, 1.0)]
    assert short(targets(group(win("a")), alpha=1.0)) == [(0, 1, 0.666667, 1.0)]


def test_a_tie_is_half_a_vote_or_none():
    votes = group(win("b"), tie())
    assert short(targets(votes)) == [(1, 0, 0.75, 1.0)]
    assert short(targets(votes, ties="drop")) == [(1, 0, 1.0, 1.0)]
    assert short(targets(group(tie()))) == [(0, 1, 0.5, 1.0)]
    assert targets(group(tie()), ties="drop") == []


def test_an_annotator_who_said_both_is_a_tie():
    votes = group(win("a", annotator="x"), win("b", annotator="x"), win("b", annotator="y"))
    assert short(targets(votes)) == [(1, 0, 0.75, 1.0)]
    assert short(targets(votes, ties="drop")) == [(1, 0, 1.0, 1.0)]
    # Two who disagree are no tie.
    assert short(targets(group(win("a"), win("b")), ties="drop")) == [(0, 1, 0.5, 1.0)]


def test_majority():
    assert short(targets(group(win("b"), win("b"), win("a")), aggregate="majority")) == [
        (1, 0, 1.0, 1.0)
    ]
    split = group(win("b"), win("a"))
    assert short(targets(split, aggregate="majority")) == [(0, 1, 0.5, 1.0)]
    assert targets(split, aggregate="majority", ties="drop") == []


def test_per_annotator_gives_one_pair_each():
    votes = group(win("a", annotator="x"), win("b", annotator="y"), tie("z"))
    assert short(targets(votes, aggregate="per_annotator")) == [
        (0, 1, 1.0, 1.0), (1, 0, 1.0, 1.0), (0, 1, 0.5, 1.0),
    ]  # fmt: skip


def test_one_annotator_has_one_vote_however_often_they_say_it():
    votes = group(*[win("a", annotator="x")] * 4, win("b", annotator="y"))
    assert short(targets(votes)) == [(0, 1, 0.5, 1.0)]


def test_full_ranking_of_four_makes_six_pairs_of_one_sixth():
    made = targets(group(rank(a=2, b=1, c=4, d=3), k=4))
    assert len(made) == 6
    assert {round(p.weight, 6) for p in made} == {0.166667}
    assert {(p.a, p.b) for p in made} == {(1, 0), (0, 2), (0, 3), (1, 2), (1, 3), (3, 2)}


def test_null_rank_makes_no_pair_and_equal_ranks_a_tie():
    made = targets(group(rank(a=1, b=None, c=1, d=2), k=4))
    assert short(made) == [(0, 2, 0.5, 0.333333), (0, 3, 1.0, 0.333333), (2, 3, 1.0, 0.333333)]


def test_scores_are_compared_and_equal_scores_tie():
    assert short(targets(group(score(a=3.0, b=4.5)))) == [(1, 0, 1.0, 1.0)]
    assert short(targets(group(score(a=3.0, b=3.0)))) == [(0, 1, 0.5, 1.0)]


def test_margin_is_off_by_default_and_never_mixes_units():
    scored = group(score("x", a=1.0, b=4.0), score("y", a=2.0, b=3.0))
    assert targets(scored)[0].margin is None
    assert targets(scored, margin=True)[0].margin == 2.0
    mixed = group(score("x", "stars", a=1.0, b=4.0), score("y", "percent", a=20.0, b=90.0))
    assert targets(mixed, margin=True)[0].margin is None
    against = group(win("a", strength=3.0), win("a", strength=1.0), win("b", strength=9.0))
    assert targets(against, margin=True)[0].margin == 2.0
    assert targets(group(rank(a=1, b=2)), margin=True)[0].margin is None


def test_min_annotators_and_suspects():
    assert targets(group(win("a")), min_annotators=2) == []
    assert len(targets(group(win("a"), win("a")), min_annotators=2)) == 1
    flagged = group(win("a", suspect="display_order"), win("b"))
    assert short(targets(flagged)) == [(0, 1, 0.5, 1.0)]
    assert short(targets(flagged, suspects="drop")) == [(1, 0, 1.0, 1.0)]


def test_a_probable_winner_is_a_share_of_a_vote():
    # AlpacaEval's preference 1.3: output 1 is better with probability 0.7.
    sure = win("a", annotator="j", p=0.7)
    assert short(targets(group(sure))) == [(0, 1, 0.7, 1.0)]
    assert short(targets(group(sure, win("b")))) == [(1, 0, 0.65, 1.0)]
    assert short(targets(group(sure), aggregate="majority")) == [(0, 1, 1.0, 1.0)]
    assert short(targets(group(sure), aggregate="per_annotator")) == [(0, 1, 0.7, 1.0)]
    assert short(targets(group(win("b", p=0.7)), ties="drop")) == [(1, 0, 0.7, 1.0)]
    # (0.7 + 1) / (1 + 2)
    assert short(targets(group(sure), alpha=1.0)) == [(0, 1, 0.566667, 1.0)]


@pytest.mark.parametrize(
    ("p", "value"),
    [
        (1, {"winner": "x", "loser": "y"}),
        (0.0, {"winner": "y", "loser": "x"}),
        (0.5, {"tie": ["x", "y"]}),
        (2 - 1.3, {"winner": "x", "loser": "y", "p": 0.7}),
        (2 - 1.4, {"winner": "x", "loser": "y", "p": 0.6}),
        (0.3, {"winner": "y", "loser": "x", "p": 0.7}),
    ],
)
def test_pair_value(p, value):
    assert pair_value("x", "y", p) == value
    assert Judgement(None, "pair", value).value == value


@given(st.floats(0, 1))
def test_pair_value_is_read_back_as_the_probability(p):
    vote = Judgement(None, "pair", pair_value("a", "b", p))
    (made,) = targets(group(vote))
    read = made.target if made.a == 0 else 1.0 - made.target
    assert read == pytest.approx(p, abs=1e-11)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), True, "0.5", None])
def test_pair_value_of_no_probability(p):
    with pytest.raises(RecordError, match="probability"):
        pair_value("a", "b", p)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"aggregate": "mean"}, "aggregate"), ({"ties": "keep"}, "ties"), ({"alpha": -1.0}, "alpha")],
)
def test_unknown_settings_are_user_errors(options, field):
    with pytest.raises(UserError, match=field):
        targets(group(win("a")), **options)


names = st.sampled_from(["a", "b", "c", "d"])
judgement = st.one_of(
    st.permutations("abcd").map(lambda p: win(p[0], p[1])),
    st.dictionaries(names, st.one_of(st.none(), st.integers(1, 4)), min_size=1).map(
        lambda r: Judgement(None, "rank", r)
    ),
    st.dictionaries(names, st.floats(-5, 5), min_size=1).map(lambda s: Judgement(None, "score", s)),
)


@given(st.lists(judgement, max_size=5), st.sampled_from(SETTINGS))
def test_candidate_order_does_not_change_what_is_trained(judgements, aggregate):
    first = group(*judgements, k=4)
    turned = PreferenceGroup("g", first.prompt, first.candidates[::-1], first.judgements)

    def by_name(g):
        rows = []
        for p in targets(g, aggregate=aggregate):
            a, b = g.candidates[p.a].id, g.candidates[p.b].id
            a, b = sorted((a, b)) if p.target == 0.5 else (a, b)
            rows.append((a, b, round(p.target, 9), round(p.weight, 9)))
        return sorted(rows)

    assert by_name(first) == by_name(turned)


@given(st.lists(judgement, max_size=5), st.sampled_from(["half", "drop"]))
def test_weights_of_a_group_sum_to_one(judgements, ties):
    made = targets(group(*judgements, k=4), ties=ties)
    assert not made or sum(p.weight for p in made) == pytest.approx(1.0)
    assert all(p.target >= 0.5 for p in made)


def test_two_rankings_are_counted_pair_by_pair():
    # x: a > b > c, y: b > a > c. They differ on one of three pairs.
    both = group(rank("x", a=1, b=2, c=3), rank("y", a=2, b=1, c=3), k=3)
    third = 0.333333
    assert short(targets(both)) == [(0, 1, 0.5, third), (0, 2, 1.0, third), (1, 2, 1.0, third)]
    # α = 1: (1 + 1) / (2 + 2) and (2 + 1) / (2 + 2).
    assert short(targets(both, alpha=1.0)) == [
        (0, 1, 0.5, third), (0, 2, 0.75, third), (1, 2, 0.75, third),
    ]  # fmt: skip
    # An even split is no majority; the other two pairs then weigh one half each.
    assert short(targets(both, aggregate="majority", ties="drop")) == [
        (0, 2, 1.0, 0.5), (1, 2, 1.0, 0.5),
    ]  # fmt: skip
    assert short(targets(both, aggregate="per_annotator")) == [
        (0, 1, 1.0, third), (1, 0, 1.0, third), (0, 2, 1.0, third), (0, 2, 1.0, third),
        (1, 2, 1.0, third), (1, 2, 1.0, third),
    ]  # fmt: skip


def test_pairs_that_only_some_ranked_have_fewer_votes():
    # y left c unranked: (a, b) has two votes, (a, c) and (b, c) one.
    some = group(rank("x", a=1, b=2, c=3), rank("y", a=2, b=1, c=None), k=3)
    assert [p.weight for p in targets(some)] == pytest.approx([1 / 3] * 3)
    assert short(targets(some, min_annotators=2)) == [(0, 1, 0.5, 1.0)]


def test_equal_ranks_and_the_weights_that_are_left():
    # a > b = c > d makes six pairs, of which (b, c) is a tie.
    ranked = group(rank("x", a=1, b=2, c=2, d=3), k=4)
    made = targets(ranked)
    assert [(p.a, p.b) for p in made if p.target == 0.5] == [(1, 2)]
    assert {round(p.weight, 6) for p in made} == {0.166667}
    assert {(p.a, p.b, round(p.weight, 6)) for p in targets(ranked, ties="drop")} == {
        (0, 1, 0.2), (0, 2, 0.2), (0, 3, 0.2), (1, 3, 0.2), (2, 3, 0.2),
    }  # fmt: skip


def test_margins_of_one_annotator_in_two_units_are_not_averaged():
    stars = score("x", "stars", a=5.0, b=3.0)
    percent = score("x", "percent", a=90.0, b=20.0)
    again = score("x", "stars", a=4.0, b=3.0)
    assert targets(group(stars, again), margin=True)[0].margin == 1.5
    assert targets(group(stars, percent), margin=True)[0].margin is None
    # Somebody else's vote in one unit counts alone.
    other = score("y", "stars", a=4.0, b=3.0)
    assert targets(group(stars, percent, other), margin=True)[0].margin == 1.0
    assert [
        p.margin for p in targets(group(stars, other), aggregate="per_annotator", margin=True)
    ] == [2.0, 1.0]
    # Negative strength is still a distance; a vote without strength adds nothing.
    sure = group(win("a", strength=-3.0), win("a"), win("a", strength=1.0))
    assert targets(sure, margin=True)[0].margin == 2.0


def test_an_annotator_with_several_kinds_of_judgement_has_the_mean():
    # Two votes for a (pair, scores), one for b (ranking): 2/3 for a, one vote.
    said = group(win("a", annotator="x"), score("x", a=2.0, b=1.0), rank("x", a=2, b=1))
    assert short(targets(said)) == [(0, 1, 0.666667, 1.0)]
    (vote,) = votes(said)[0, 1]
    assert (vote.annotator, round(vote.value, 6), vote.scale) == ("x", 0.666667, "mixed")


def test_votes_say_who_preferred_both_sides():
    said = group(
        win("a", annotator="x"), win("b", annotator="x"), win("a", annotator="y"), tie("z")
    )
    assert [(v.annotator, v.value, v.both) for v in votes(said)[0, 1]] == [
        ("x", 0.5, True), ("y", 1.0, False), ("z", 0.5, False),
    ]  # fmt: skip
