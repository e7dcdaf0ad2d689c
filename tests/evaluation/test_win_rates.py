"""Win rates among runs: numbers worked by hand, and a length bias that is known."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from align.evaluation import win_rates
from align.evaluation.judges import Comparison


def games(a: str, b: str, wins: int, losses: int, ties: int = 0) -> list[Comparison]:
    outcomes = [1.0] * wins + [0.0] * losses + [0.5] * ties
    return [Comparison(f"{a}{b}{i}", a, b, v) for i, v in enumerate(outcomes)]


def test_matrix_by_hand():
    found = win_rates.matrix([*games("ppo", "sft", 3, 1), *games("sft", "dpo", 0, 1, 1)],
                             ["sft", "ppo", "dpo"])  # fmt: skip
    assert found["ppo"]["sft"]["value"] == 0.75
    assert found["sft"]["ppo"]["value"] == 0.25
    assert found["dpo"]["sft"]["value"] == 0.75
    assert (found["dpo"]["sft"]["wins"], found["dpo"]["sft"]["ties"]) == (1, 1)
    assert "dpo" not in found["ppo"]  # they never met
    assert found["ppo"]["sft"]["low"] <= 0.75 <= found["ppo"]["sft"]["high"]


def test_comparisons_of_one_prompt_count_as_one_prompt():
    rows = [Comparison("p", "a", "b", 1.0)] * 9 + [Comparison("q", "a", "b", 0.0)]
    cell = win_rates.matrix(rows, ["a", "b"])["a"]["b"]
    assert (cell["value"], cell["wins"], cell["losses"]) == (0.5, 9, 1)
    assert (cell["low"], cell["high"]) == (0.0, 1.0)


def test_elo_of_two_runs_by_hand():
    rows = win_rates.ranking(games("ppo", "sft", 3, 1), ["sft", "ppo"], prior=0)["rows"]
    # Odds of 3 to 1: 400·log10(3) = 190.848 points over the anchor.
    assert [r["name"] for r in rows] == ["ppo", "sft"]
    assert rows[0]["elo"] == pytest.approx(1190.848, abs=0.01)
    assert (rows[1]["elo"], rows[1]["low"], rows[1]["high"]) == (1000, 1000, 1000)
    # Half a draw more: 3.25 to 1.25, 400·log10(2.6) = 165.989.
    rows = win_rates.ranking(games("ppo", "sft", 3, 1), ["sft", "ppo"])["rows"]
    assert rows[0]["elo"] == pytest.approx(1165.989, abs=0.01)


def test_strengths_are_recovered_and_inside_their_intervals():
    true = {"sft": 0.0, "dpo": 100.0, "ppo": 220.0, "bad": -150.0}
    rng = np.random.default_rng(0)
    rows = []
    for i in range(400):
        for a, b in [
            ("sft", "dpo"),
            ("sft", "ppo"),
            ("dpo", "ppo"),
            ("bad", "sft"),
            ("ppo", "bad"),
        ]:
            p = 1 / (1 + 10 ** ((true[b] - true[a]) / 400))
            rows.append(Comparison(str(i), a, b, float(rng.random() < p)))
    found = win_rates.ranking(rows, list(true), resamples=200)["rows"]
    assert [r["name"] for r in found] == ["ppo", "dpo", "sft", "bad"]
    for r in found:
        assert r["elo"] - 1000 == pytest.approx(true[r["name"]], abs=40)
        assert r["low"] <= r["elo"] <= r["high"]
    assert 20 < found[0]["high"] - found[0]["low"] < 150


def test_a_run_that_never_lost_has_a_finite_rank():
    rows = win_rates.ranking(games("ppo", "sft", 8, 0), ["sft", "ppo"])["rows"]
    # 8.25 to 0.25: 400·log10(33) = 607.4.
    assert rows[0]["elo"] == pytest.approx(1607.4, abs=0.1)


def test_order_of_names_and_sides_does_not_matter():
    rows = [*games("a", "b", 5, 2, 1), *games("b", "c", 4, 3)]
    turned = [Comparison(c.prompt_id, c.b, c.a, 1 - c.outcome) for c in rows]
    first = win_rates.ranking(rows, ["a", "b", "c"], anchor="b", resamples=20)["rows"]
    second = win_rates.ranking(turned, ["c", "a", "b"], anchor="b", resamples=20)["rows"]
    for x, y in zip(first, second, strict=True):
        assert x["name"] == y["name"]
        assert x["elo"] == pytest.approx(y["elo"], abs=1e-3)


def test_without_evalica_the_note_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "evalica", None)
    found = win_rates.ranking(games("a", "b", 1, 0), ["a", "b"])
    assert found["rows"] == []
    assert "pip install 'align[eval]'" in found["note"]
    assert win_rates.ranking([], ["a"])["note"] == "no two runs were compared"


def votes(n: int, theta: float, phi: float, shift: float = 60.0, seed: int = 0):
    """Votes with a known length bias; answers are 60 characters longer on average."""
    rng = np.random.default_rng(seed)
    gap = rng.normal(shift, 100.0, n)
    p = 1 / (1 + np.exp(-(theta + phi * np.tanh(gap / gap.std()))))
    return (rng.random(n) < p).astype(float), gap


@pytest.mark.parametrize(("theta", "phi"), [(0.0, 1.5), (0.4, 1.0), (-0.3, 0.8), (0.2, -1.2)])
def test_the_rate_at_equal_length_is_recovered(theta, phi):
    y, gap = votes(6000, theta, phi)
    found = win_rates.length_controlled(y, gap, resamples=50)
    assert found["value"] == pytest.approx(1 / (1 + math.exp(-theta)), abs=0.02)
    assert found["length_effect"] == pytest.approx(phi, abs=0.12)
    # What the bias alone made of the raw rate is larger than that margin.
    assert abs(found["raw"] - 1 / (1 + math.exp(-theta))) > 0.05
    assert found["low"] < found["value"] < found["high"]


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    hits = 0
    for seed in range(40):
        y, gap = votes(300, 0.3, 1.0, seed=seed)
        found = win_rates.length_controlled(y, gap, resamples=100)
        hits += found["low"] <= 1 / (1 + math.exp(-0.3)) <= found["high"]
    assert hits >= 34  # 38 expected


@pytest.mark.parametrize("gap", [0.0, 25.0])
def test_equal_lengths_leave_the_raw_rate(gap):
    y = np.array([1, 1, 1, 0, 0.5, 1, 0, 1.0])
    found = win_rates.length_controlled(y, np.full(8, gap))
    assert found["value"] == pytest.approx(y.mean(), abs=1e-6)
    assert found["length_effect"] == 0


def test_swapping_the_sides_mirrors_the_rate():
    y, gap = votes(500, 0.3, 1.0)
    one, other = (win_rates.length_controlled(*v, resamples=20) for v in ((y, gap), (1 - y, -gap)))
    assert one["value"] == pytest.approx(1 - other["value"], abs=1e-6)


def test_all_wins_stay_a_rate():
    found = win_rates.length_controlled(np.ones(20), np.arange(20.0), resamples=20)
    assert 0.95 < found["value"] <= 1


def test_a_known_difficulty_sharpens_theta():
    """Prompts that decide the vote by themselves hide θ = 0.5 behind σ's curvature."""
    rng = np.random.default_rng(3)
    gamma = rng.choice([-3.0, 3.0], 4000)
    y = (rng.random(4000) < 1 / (1 + np.exp(-(0.5 + gamma)))).astype(float)
    found = win_rates.length_controlled(y, rng.normal(0, 1, 4000), difficulty=gamma, resamples=20)
    # The mean of σ(0.5 ± 3): (0.97069 + 0.07586) / 2.
    assert found["value"] == pytest.approx(0.52327, abs=0.02)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="equally many"):
        win_rates.length_controlled([1.0], [1.0, 2.0])
