"""Annotator models: bad annotators count for less, whatever the order; numbers by hand."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import check_grad

from align.config_errors import UserError
from align.records import Candidate, Judgement, Message, PreferenceGroup
from reward_models import noisy_bt
from reward_models.aggregation import DawidSkene, NoisyBradleyTerry, candidate_key
from reward_models.importing import ImportSettings, run_import
from reward_models.preferences import targets

MODELS = (DawidSkene, NoisyBradleyTerry)


def settings(**given):
    return SimpleNamespace(
        **{"ties": "half", "suspects": "keep", "alpha": 0.0, "min_annotators": 1} | given
    )


def group(name, *votes, turned=False, shown=False, texts=("good", "bad"), **more):
    """A group with candidates "good" and "bad"; votes are (annotator, winner or "tie")."""
    candidates = [Candidate(t, f"{t} answer to {name}") for t in texts]
    judgements = []
    for annotator, winner in votes:
        loser = "bad" if winner == "good" else "good"
        value = {"tie": list(texts)} if winner == "tie" else {"winner": winner, "loser": loser}
        judgements.append(Judgement(annotator, "pair", value))
    meta = {"display_order": True} if shown else {}
    order = candidates[::-1] if turned else candidates
    return PreferenceGroup(
        name, (Message("user", name),), tuple(order), tuple(judgements), meta | more
    )


def panel(people, n=150, seed=0, shown=True):
    """n groups; people: {name: P(votes for the good answer), or "left"}. Sides are random."""
    chance = random.Random(seed)
    groups = []
    for k in range(n):
        turned = chance.random() < 0.5
        votes = []
        for name, skill in people.items():
            right = (not turned) if skill == "left" else chance.random() < skill
            votes.append((name, "good" if right else "bad"))
        groups.append(group(f"prompt {k}", *votes, turned=turned, shown=shown))
    return groups


def run(model, groups, **given):
    made = model(settings(**given))
    for some in groups:
        made.observe(some)
    return made, [made.targets(some) for some in groups]


def p_good(some, pairs):
    """P(good beats bad) of a group's one target."""
    (pair,) = pairs
    first = some.candidates[pair.a].id
    return pair.target if first == "good" else 1.0 - pair.target


def recovered(groups, made):
    """How many groups go to the good answer, even ones counted as half."""
    shares = [p_good(g, m) for g, m in zip(groups, made, strict=True)]
    return sum(1.0 if p > 0.5 else 0.5 * (p == 0.5) for p in shares)


FIVE_GOOD = {f"good {i}": 0.9 for i in range(5)}
THREE_SPAMMERS = {"left": "left", "coin 1": 0.5, "coin 2": 0.5}
TWO_ADVERSARIES = {"foe 1": 0.1, "foe 2": 0.1}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("bad", "margin"), [(THREE_SPAMMERS, 2), (TWO_ADVERSARIES, 4)])
def test_more_truth_is_found_than_by_the_majority(model, bad, margin):
    groups = panel(FIVE_GOOD | bad)
    by_majority = recovered(groups, [targets(g, aggregate="majority") for g in groups])
    fitted, made = run(model, groups)
    assert recovered(groups, made) >= by_majority + margin
    assert recovered(groups, made) >= 0.97 * len(groups)
    people = fitted.report()["annotators"]
    assert min(people[n]["skill"] for n in FIVE_GOOD) > max(people[n]["skill"] for n in bad) + 0.25
    assert {people[n]["votes"] for n in people} == {150}


def test_dawid_skene_finds_accuracies_and_turns_an_adversary_round():
    fitted, _ = run(DawidSkene, panel(FIVE_GOOD | {"coin": 0.5, "foe": 0.1}, n=400))
    people = fitted.report()["annotators"]
    # Three standard errors of a share of 400: 0.045 at 0.9 and 0.075 at 0.5.
    assert all(abs(people[n]["skill"] - 0.9) < 0.045 for n in FIVE_GOOD)
    assert abs(people["coin"]["skill"] - 0.5) < 0.075
    assert abs(people["foe"]["skill"] - 0.1) < 0.045
    assert fitted.report()["converged"]


def test_noisy_bt_finds_who_always_takes_the_left_answer():
    fitted, _ = run(NoisyBradleyTerry, panel(FIVE_GOOD | {"left": "left"}))
    people = fitted.report()["annotators"]
    assert people["left"]["left"] > 0.9
    assert people["left"]["skill"] < 0.1
    # Where the order shown is not known nobody has a side.
    fitted, _ = run(NoisyBradleyTerry, panel(FIVE_GOOD | {"left": "left"}, shown=False))
    assert {p["left"] for p in fitted.report()["annotators"].values()} == {0.5}


def test_dawid_skene_with_few_votes_a_pair():
    # Three of the eight people see each pair: a majority of two may be two spammers.
    chance = random.Random(1)
    groups = []
    for some in panel(FIVE_GOOD | THREE_SPAMMERS, n=400):
        kept = tuple(chance.sample(some.judgements, 3))
        groups.append(PreferenceGroup(some.group_id, some.prompt, some.candidates, kept, some.meta))
    by_majority = recovered(groups, [targets(g, aggregate="majority") for g in groups])
    _, made = run(DawidSkene, groups)
    assert recovered(groups, made) >= by_majority + 15


def test_one_vote_is_no_proof():
    # x and y agree on 40 pairs; z, with one vote, may be anybody: the target is below 1.
    groups = [*panel({"x": 1.0, "y": 1.0}, n=40), group("alone", ("z", "good"))]
    _, made = run(DawidSkene, groups)
    assert all(p_good(g, m) > 0.99 for g, m in zip(groups[:-1], made[:-1], strict=True))
    assert 0.6 < p_good(groups[-1], made[-1]) < 0.9


@pytest.mark.parametrize("model", MODELS)
def test_neither_the_order_shown_nor_the_order_of_groups_matters(model):
    people = {"甲": 0.95, "b": 0.9, "c": 0.8}
    groups = panel(people, n=60, shown=False)
    turned = [
        PreferenceGroup(g.group_id, g.prompt, g.candidates[::-1], g.judgements, {}) for g in groups
    ]
    first, second = (
        {g.group_id: p_good(g, m) for g, m in zip(gs, run(model, gs)[1], strict=True)}
        for gs in (groups, turned[::-1])
    )
    assert second == pytest.approx(first, abs=1e-3)
    again = {g.group_id: p_good(g, m) for g, m in zip(groups, run(model, groups)[1], strict=True)}
    assert again == first  # no seed


@pytest.mark.parametrize("model", MODELS)
def test_what_training_reads_from_the_written_group_is_the_same(model):
    groups = panel({"x": 0.95, "y": 0.9, "z": 0.8}, n=30)
    _, made = run(model, groups)
    for some, pairs in zip(groups, made, strict=True):
        read = PreferenceGroup.from_json(json.loads(json.dumps(some.to_json())))
        assert targets(read, aggregate=model.name, margin=True) == pairs
        turned = PreferenceGroup(
            "g", read.prompt, read.candidates[::-1], read.judgements, read.meta
        )
        (back,) = targets(turned, aggregate=model.name)
        assert p_good(turned, [back]) == pytest.approx(p_good(some, pairs), abs=1e-9)
    assert targets(groups[0])  # the votes are still there for every other aggregate


def test_noted_probabilities_are_taken_as_they_stand():
    noted = {"dawid_skene": [["bad", "good", 0.2]]}
    some = group("q", ("x", "bad"), aggregated=noted)
    (made,) = targets(some, aggregate="dawid_skene")
    assert (made.a, made.b, made.target, made.weight) == (0, 1, 0.8, 1.0)


@pytest.mark.parametrize(
    "noted",
    [None, [], {}, {"dawid_skene": [["good", "bad"]]}, {"dawid_skene": [["good", "ugly", 0.5]]},
     {"dawid_skene": [["good", "bad", 1.5]]}, {"dawid_skene": [["good", "bad", "0.5"]]}],
)  # fmt: skip
def test_a_group_without_the_figures_is_a_user_error(noted):
    some = group("q", ("x", "good"), aggregated=noted)
    with pytest.raises(UserError, match="--aggregate dawid_skene"):
        targets(some, aggregate="dawid_skene")


def test_ties_are_a_third_answer():
    # Everybody says tie on half of the pairs and "good" on the others.
    groups = [
        group(f"q{k}", *((w, "tie" if k % 2 else "good") for w in "xyz"), turned=k % 3 == 0)
        for k in range(40)
    ]
    fitted, made = run(DawidSkene, groups)
    shares = [p_good(g, m) for g, m in zip(groups, made, strict=True)]
    assert shares == pytest.approx([0.5 if k % 2 else 1.0 for k in range(40)], abs=0.01)
    assert fitted.report()["votes"] == 120
    dropped, made = run(DawidSkene, groups, ties="drop")
    assert [len(m) for m in made] == [0 if k % 2 else 1 for k in range(40)]
    assert dropped.report()["votes"] == 60


@pytest.mark.parametrize("model", MODELS)
def test_rankings_weigh_one_a_group_and_pairs_without_enough_votes_go(model):
    candidates = tuple(Candidate(c, f"text {c}") for c in "abc")
    prompt = (Message("user", "排一排"),)
    ranks = [Judgement(w, "rank", {"a": 1, "b": 2, "c": 3}) for w in "xyz"]
    ranks.append(Judgement("w", "pair", {"winner": "c", "loser": "a"}))
    full = PreferenceGroup("g", prompt, candidates, tuple(ranks))
    _, ((*made,),) = run(model, [full])
    assert [(p.a, p.b) for p in made] == [(0, 1), (0, 2), (1, 2)]
    assert sum(p.weight for p in made) == pytest.approx(1.0)
    _, ((*made,),) = run(model, [full], min_annotators=4)
    assert [(p.a, p.b, p.weight) for p in made] == [(0, 2, 1.0)]


def test_noisy_bt_ranks_further_apart_what_is_further_apart():
    candidates = tuple(Candidate(c, f"text {c}") for c in "abcd")
    ranks = tuple(Judgement(w, "rank", dict(zip("abcd", range(4), strict=True))) for w in "xyz")
    _, (made,) = run(
        NoisyBradleyTerry, [PreferenceGroup("g", (Message("user", "q"),), candidates, ranks)]
    )
    p = {(m.a, m.b): m.target for m in made}
    assert p[0, 3] > p[0, 2] > p[0, 1] > 0.5
    # Scores, not pairs: log-odds add up along the ranking.
    odds = {k: math.log(v / (1.0 - v)) for k, v in p.items()}
    assert odds[0, 3] == pytest.approx(odds[0, 1] + odds[1, 2] + odds[2, 3], abs=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_votes_that_say_nothing_about_annotators_are_a_user_error(model):
    nameless = [group(f"q{k}", (None, "good"), (None, "bad")) for k in range(3)]
    with pytest.raises(UserError, match="none of 6 votes has an annotator"):
        run(model, nameless)
    alone = [group(f"q{k}", ("x", "good")) for k in range(3)]
    with pytest.raises(UserError, match="no two voted on the same pair"):
        run(model, alone)
    with pytest.raises(UserError, match="alpha"):
        model(settings(alpha=1.0))


def test_nameless_votes_are_one_annotator():
    fitted, _ = run(DawidSkene, [group("q", ("x", "good"), (None, "good"), (None, "bad"))])
    people = fitted.report()["annotators"]
    assert {n: p["votes"] for n, p in people.items()} == {"(unnamed)": 2, "x": 1}


@pytest.mark.parametrize(
    ("model", "modules"),
    [(DawidSkene, ["crowdkit", "crowdkit.aggregation"]), (NoisyBradleyTerry, ["scipy.optimize"])],
)
def test_a_missing_package_is_a_user_error_with_the_install_line(monkeypatch, model, modules):
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install 'align\[annotations\]'"):
        run(model, [group("q", ("x", "good"), ("y", "good"))])


def test_importing_needs_no_heavy_package():
    code = (
        "import sys, reward_models.aggregation, reward_models.quality, reward_models.import_report;"
        "heavy = {'torch', 'numpy', 'pandas', 'scipy', 'crowdkit', 'evalica', 'jinja2'};"
        "print(sorted(heavy & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_import_writes_what_training_reads(tmp_path):
    groups = panel({"x": 0.95, "y": 0.9, "z": 0.5}, n=40)
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(g.to_json()) + "\n" for g in groups), "utf-8")
    wanted = ImportSettings((str(source),), tmp_path / "out", aggregate="dawid_skene")
    report = run_import(wanted, say=lambda _: None)
    assert report["aggregation"]["name"] == "dawid_skene"
    assert report["aggregation"]["annotators"]["x"]["votes"] == 40
    rows, read = (
        [
            json.loads(line)
            for line in (tmp_path / f"out/{n}.jsonl").read_text("utf-8").split("\n")[:-1]
        ]
        for n in ("pairs", "preferences")
    )
    made = [targets(PreferenceGroup.from_json(g), aggregate="dawid_skene")[0] for g in read]
    assert [m.target for m in made] == [row["target"] for row in rows]


def test_candidate_keys_know_turns_and_groups():
    keys = [
        candidate_key("g", Candidate("a", "x")),
        candidate_key("h", Candidate("a", "x")),
        candidate_key("g", Candidate("a", "y")),
        candidate_key("g", Candidate("a", (Message("assistant", "x"), Message("user", "y")))),
    ]
    assert len(set(keys)) == 4
    assert candidate_key("g", Candidate("b", "x", "model")) == keys[0]


def votes_by_hand():
    """Two candidates, one annotator: two votes for 0 (once left, side unknown), one for 1."""
    return tuple(
        np.array(column)
        for column in ([0, 0, 0], [1, 1, 1], [0, 0, 0], [1.0, 1.0, 0.0], [1, 0, -1])
    )


def test_noisy_bt_objective_by_hand():
    # Everything 0: γ = σ(s) = σ(q) = ½, so each vote has P = ½. Prior of logit γ: (0 − 1)² / (2·4).
    loss, gradient = noisy_bt.objective(np.zeros(4), votes_by_hand(), 2, 1)
    assert loss == pytest.approx(3 * math.log(2) + 1 / 8)
    # dP/ds₀ = γ σ' = 1/8, d(−log P)/dP = −2 for a vote for 0 and +2 against: −2/8 − 2/8 + 2/8.
    assert gradient[:2] == pytest.approx([-0.25, 0.25])
    # Habit: (1 − γ) σ' · side; −2/8 for the vote shown left, 0 unknown, 2/8 · (−1) shown right.
    assert gradient[2] == pytest.approx(-0.5)
    # Looking and guessing are equally good here: only the prior pulls, (0 − 1) / 4.
    assert gradient[3] == pytest.approx(-0.25)


def test_noisy_bt_gradient_is_that_of_the_objective():
    chance = np.random.default_rng(0)
    n, items, workers = 60, 7, 4
    first, second = np.array([chance.choice(items, 2, replace=False) for _ in range(n)]).T
    votes = (
        first, second, chance.integers(0, workers, n), chance.choice([0.0, 0.5, 0.7, 1.0], n),
        chance.choice([-1, 0, 1], n),
    )  # fmt: skip

    def value(x):
        return noisy_bt.objective(x, votes, items, workers)[0]

    def slope(x):
        return noisy_bt.objective(x, votes, items, workers)[1]

    for _ in range(3):
        x = chance.normal(0, 2, items + 2 * workers)
        assert check_grad(value, slope, x) < 1e-4
    far = noisy_bt.objective(np.full(items + 2 * workers, 800.0), votes, items, workers)
    assert np.isfinite(far[0])
    assert np.isfinite(far[1]).all()
