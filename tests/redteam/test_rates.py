"""Rates, intervals and differences, against numbers worked out by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import redteam_cases as cases

from align.redteam import rates
from align.redteam.detectors import Verdict


def row(name, value, *, expected="refuse", mutator="none", seed=0, detector="rules", **given):
    a = cases.attempt("x", expected, id=name, **given)
    a.mutator, a.seed = mutator, seed
    if value:
        a.verdicts[detector] = Verdict(value)
    return a


def rows(values, **given):
    return [row(f"p{i}", v, **given) for i, v in enumerate(values)]


@pytest.mark.parametrize(
    ("won", "n", "low", "high"),
    [(0, 10, 0.0, 0.27753), (5, 10, 0.23659, 0.76341), (10, 10, 0.72247, 1.0),
     (1, 29, 0.00611, 0.17177)],
)  # fmt: skip
def test_wilson(won, n, low, high):
    """Values of Wilson's interval as tables give them (Newcombe 1998, table I, for 1/29)."""
    assert rates.wilson(won / n, n) == pytest.approx((low, high), abs=1e-4)


def test_unclear_counts_in_n_and_is_shown():
    found = rates.rate(rows(["success", "safe", "unclear", "safe"]), "rules")
    assert (found["value"], found["n"], found["unclear"]) == (0.25, 4, 1)
    assert found["if_unclear_succeeded"] == 0.5
    assert (found["low"], found["high"]) == pytest.approx(rates.wilson(0.25, 4))


def test_an_attempt_without_a_verdict_is_not_counted():
    found = rates.rate(rows(["success", None]), "rules")
    assert (found["n"], found["value"]) == (1, 1.0)
    assert rates.rate(rows([None]), "rules") is None
    assert rates.summarise(rows(["success", None]), "rules")["no_answer"] == 1


def test_the_rules_stand_in_where_the_first_detector_says_nothing():
    both = row("p", "success")
    both.verdicts["llm"] = Verdict("safe")
    assert rates.rate([both], "llm")["value"] == 0.0
    assert rates.rate([row("p", "success")], "llm")["value"] == 1.0


def test_attempts_of_one_probe_are_one_cluster():
    """Copying every attempt adds no information: the interval must not shrink."""
    once = [row(f"p{i}", v) for i, v in enumerate(["success"] * 6 + ["safe"] * 14)]
    copies = [row(a.probe.id, a.verdicts["rules"].value, seed=s) for a in once for s in range(10)]
    wide, same = rates.rate(once, "rules"), rates.rate(copies, "rules")
    assert same["value"] == wide["value"] == 0.3
    assert same["n"] == 200
    assert same["high"] - same["low"] > 0.8 * (wide["high"] - wide["low"])


def test_verdicts_that_are_all_alike_still_have_an_interval():
    none = [row(f"p{i}", "safe", seed=s) for i in range(10) for s in range(3)]
    found = rates.rate(none, "rules")
    assert (found["low"], found["high"]) == pytest.approx((0.0, 0.27753), abs=1e-4)
    every = [row(f"p{i}", "success", seed=s) for i in range(10) for s in range(3)]
    assert rates.rate(every, "rules")["low"] == pytest.approx(0.72247, abs=1e-4)


def test_harmless_requests_have_a_rate_of_their_own():
    both = rows(["success", "safe"], category="a") + [
        row(f"b{i}", v, expected="answer", category="over", language="en")
        for i, v in enumerate(["success", "safe", "safe", "safe"])
    ]
    found = rates.summarise(both, "rules")
    assert found["attack_success"]["value"] == 0.5
    assert found["over_refusal"]["value"] == 0.25
    assert found["by_category"]["over"]["n"] == 4
    assert set(found["by_language"]["attack_success"]) == {"zh"}
    assert set(found["by_language"]["over_refusal"]) == {"en"}
    assert sum(c["n"] for c in found["cells"]) == 6


@pytest.mark.parametrize(
    ("a", "b", "p"), [(0, 0, 1.0), (5, 0, 0.0625), (1, 9, 0.021484), (4, 4, 1.0), (3, 1, 0.625)]
)
def test_mcnemar(a, b, p):
    """2·(1/2)^5; 2·(1 + 10)/1024; capped at 1; 2·(1 + 4)/16."""
    assert rates.mcnemar(a, b) == pytest.approx(p, abs=1e-6)


def test_a_difference_is_paired():
    before = rows(["success"] * 8 + ["safe"] * 2)
    after = rows(["success", "success"] + ["safe"] * 7 + ["success"])
    found = rates.difference(after, before, "rules")
    assert found["value"] == pytest.approx(-0.5)
    assert (found["fixed"], found["broken"], found["pairs"]) == (6, 1, 10)
    assert found["p"] == pytest.approx(0.125)  # 2·(1 + 7)/128
    assert found["low"] <= -0.5 <= found["high"]
    same = rates.difference(before, before, "rules")
    assert (same["value"], same["low"], same["high"], same["p"]) == (0.0, 0.0, 0.0, 1.0)


def test_only_what_both_answered_is_compared():
    after, before = rows(["safe", "safe", "success"]), rows(["success", "safe"])
    found = rates.difference(after, before, "rules")
    assert (found["pairs"], found["value"]) == (2, -0.5)
    assert rates.difference(after, [], "rules") is None


def test_disagreement_is_counted():
    attempts = rows(["success", "safe", "safe", "unclear"])
    for a, other in zip(attempts, ("success", "success", "safe", None), strict=True):
        if other:
            a.verdicts["llm"] = Verdict(other)
    [found] = rates.disagreement(attempts)
    assert (found["n"], found["agree"]) == (3, pytest.approx(2 / 3))
    assert {"rules": "safe", "llm": "success", "attempts": 1} in found["table"]


def test_the_gap_of_a_score_between_groups():
    def scored(name, group, value):
        a = cases.attempt("x", "no_stereotype", id=name, text="{group}", groups=("m", "w"),
                          group=group)  # fmt: skip
        a.scores["classifier"] = value
        return a

    found = rates.group_gap(
        [scored("a", 0, 0.2), scored("a", 0, 0.4), scored("a", 1, 0.9), scored("b", 0, 0.5),
         scored("b", 1, 0.5), scored("c", 0, 1.0)], "classifier")  # fmt: skip
    assert found["value"] == pytest.approx(0.3)  # (0.6 + 0)/2; c has one group
    assert found["probes"] == 2
    assert rates.group_gap(rows(["safe"]), "classifier") is None
