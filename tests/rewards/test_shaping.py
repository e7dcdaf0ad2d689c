"""From raw scores to PPO's rewards, with numbers worked by hand."""

from __future__ import annotations

import json
import threading

import pytest
import torch

from align.advantages import gae
from align.config_errors import UserError
from align.config_schema import MissingEos, Ppo
from align.rewards.shaping import (
    ScoreNormaliser,
    ScoreShaper,
    extended_offsets,
    length_penalty,
    missing_eos,
    place_scores,
)


def t(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def near(numbers, abs_=1e-6):
    return pytest.approx(list(numbers), abs=abs_)


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("none", 5.0, [1.0, 2.0, -3.0]),
        ("set", -1.0, [1.0, -1.0, -1.0]),  # the N+ code
        ("subtract", 0.5, [1.0, 1.5, -3.5]),  # trl
        ("subtract", 0.0, [1.0, 2.0, -3.0]),
    ],
)
def test_item09_missing_eos(mode, value, expected):
    scores = t(1, 2, -3)
    assert missing_eos(scores, [True, False, False], mode, value).tolist() == expected
    flags = torch.tensor([True, False, False])
    assert missing_eos(scores, flags, mode, value).tolist() == expected
    assert scores.tolist() == [1, 2, -3]


@pytest.mark.parametrize(("mode", "expected"), [("none", 3.0), ("set", -1.0), ("subtract", 2.0)])
def test_item09_without_a_value_ending_is_still_worth_more(mode, expected):
    shaper = ScoreShaper.from_config(Ppo(missing_eos=MissingEos(mode)))
    assert shaper(t(3, 3), [True, False], [4, 4]).tolist() == [3.0, expected]


def test_item09_the_rule_comes_from_the_configuration():
    for mode, expected in (("none", [3.0, 3.0]), ("set", [3.0, -2.0]), ("subtract", [3.0, 5.0])):
        if mode == "subtract":
            with pytest.raises(UserError) as caught:
                ScoreShaper.from_config(Ppo(missing_eos=MissingEos(mode, -2.0)))
            assert str(caught.value).startswith(
                "ppo.missing_eos.value=-2.0 would reward completions that never end"
            )
            continue
        shaper = ScoreShaper.from_config(Ppo(missing_eos=MissingEos(mode, -2.0)))
        assert shaper(t(3, 3), [True, False], [4, 4]).tolist() == expected


def test_item11_score_at_eos_and_after_it():
    rewards, offsets, scores = t(-0.1, -0.2, -0.3, -0.4), torch.tensor([0, 3, 4]), t(1, 2)
    at = place_scores(rewards, offsets, scores, "eos")
    after = place_scores(rewards, offsets, scores, "after_eos")
    assert at.tolist() == near([-0.1, -0.2, 0.7, 1.6])
    assert after.tolist() == near([-0.1, -0.2, -0.3, 1, -0.4, 2])
    assert extended_offsets(offsets).tolist() == [0, 4, 6]
    assert rewards.tolist() == [-0.1, -0.2, -0.3, -0.4]
    # With values 0 and λ = 1 an advantage is the discounted sum of what follows.
    none = torch.zeros(4, dtype=torch.float64)
    assert gae(at, none, offsets, 1.0, 1.0)[0].tolist() == near([0.4, 0.5, 0.7, 1.6])
    assert gae(after, none, offsets, 1.0, 1.0)[0].tolist() == near([0.4, 0.5, 0.7, 1.6])
    # One step later is one more discount: −0.3 + ½·1 = 0.2, −0.2 + ½·0.2 = −0.1, …
    assert gae(at, none, offsets, 0.5, 1.0)[0].tolist() == near([-0.025, 0.15, 0.7, 1.6])
    assert gae(after, none, offsets, 0.5, 1.0)[0].tolist() == near([-0.15, -0.1, 0.2, 0.6])


def test_item11_empty_completions_and_unknown_places():
    rewards, offsets = t(0.5), torch.tensor([0, 0, 1])
    assert place_scores(rewards, offsets, t(9, 2), "eos").tolist() == [2.5]
    assert place_scores(rewards, offsets, t(9, 2), "after_eos").tolist() == [9, 0.5, 2]
    with pytest.raises(ValueError, match="score_at='end'"):
        place_scores(rewards, offsets, t(9, 2), "end")


def test_item12_running_deviation_by_hand():
    normalise = ScoreNormaliser("std")
    # {1, 3}: unbiased variance 2. {1, 3, 5, 7}: 20/3.
    assert normalise(t(1, 3)).tolist() == near([0.7071068, 2.1213203])
    assert normalise(t(5, 7)).tolist() == near([1.9364917, 2.7110883])


def test_item12_running_mean_and_deviation_by_hand():
    normalise = ScoreNormaliser("mean_std")
    assert normalise(t(1, 3)).tolist() == near([-0.7071068, 0.7071068])
    assert normalise(t(5, 7)).tolist() == near([0.3872983, 1.1618950])


def test_item12_std_keeps_the_sign_and_mean_std_does_not():
    assert (ScoreNormaliser("std")(t(2, 4, 9)) > 0).all()
    assert ScoreNormaliser("mean_std")(t(2, 4, 9)).sum().item() == pytest.approx(0, abs=1e-12)


def test_item12_first_batches_without_any_spread():
    normalise = ScoreNormaliser("std")
    assert normalise(t(4)).tolist() == [4]
    assert normalise(t(4, 4)).tolist() == [4, 4]
    assert ScoreNormaliser("mean_std")(t(4), update=False).tolist() == [4]


@pytest.mark.parametrize("mode", ["none", "std"])
def test_item12_clip(mode):
    # std of {−30, 30, 0}: 30.
    clipped = ScoreNormaliser(mode, clip=0.5)(t(-30, 30, 0, 0.3)[:3])
    assert clipped.tolist() == [-0.5, 0.5, 0]
    ten = ScoreShaper.from_config(Ppo())
    assert ten(t(-99, 3, 11), [True] * 3, [1] * 3).tolist() == [-10, 3, 10]
    off = ScoreShaper.from_config(Ppo(score_clip=None))
    assert off(t(-99, 3, 11), [True] * 3, [1] * 3).tolist() == [-99, 3, 11]


def test_item12_state_round_trip():
    first = ScoreShaper.from_config(Ppo(score_norm="mean_std"))
    first(t(1, 3), [True] * 2, [1] * 2)
    second = ScoreShaper.from_config(Ppo(score_norm="mean_std"))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    args = (t(5, 7), [True] * 2, [1] * 2)
    assert first(*args).tolist() == second(*args).tolist() == near([0.3872983, 1.1618950])
    assert first.state_dict() == second.state_dict()


def test_item12_evaluation_reads_the_statistics_and_leaves_them():
    shaper = ScoreShaper.from_config(Ppo(score_norm="std"))
    shaper(t(1, 3), [True] * 2, [1] * 2)
    before = shaper.state_dict()
    got = shaper(t(100, 2), [True] * 2, [1] * 2, update=False)
    assert got.tolist() == near([10, 1.4142136])  # 2/√2; 100/√2 is clipped
    assert shaper.state_dict() == before


def in_ranks(*shares: torch.Tensor) -> list[list[float]]:
    """Shape one share per rank; the ranks are threads and their sum is a real one."""
    barrier = threading.Barrier(len(shares))
    posted: dict[int, torch.Tensor] = {}
    results: list[list[float]] = [[] for _ in shares]

    def run(rank: int) -> None:
        def reduce(x: torch.Tensor) -> torch.Tensor:
            posted[rank] = x
            barrier.wait(timeout=10)
            total = torch.stack([posted[r] for r in range(len(shares))]).sum(0)
            barrier.wait(timeout=10)
            return total

        shaper = ScoreShaper.from_config(Ppo(score_norm="mean_std"))
        n = len(shares[rank])
        results[rank] = shaper(shares[rank], [True] * n, [1] * n, reduce=reduce).tolist()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_item12_statistics_are_those_of_all_ranks():
    # Together {1, 3, 5, 7}: mean 4, deviation 2.5819889; a rank may have nothing.
    assert in_ranks(t(1, 3), t(), t(5, 7)) == [
        near([-1.1618950, -0.3872983]), [], near([0.3872983, 1.1618950]),
    ]  # fmt: skip


def test_item16_length_penalty():
    assert length_penalty(t(1, 1), [10, 200], 0.005).tolist() == near([0.95, 0])
    shaper = ScoreShaper.from_config(Ppo(length_penalty=0.01))
    assert shaper(t(1, -1), [True] * 2, torch.tensor([20, 50])).tolist() == near([0.8, -1.5])


def test_item09_item12_item16_order_of_the_rules():
    """Normalise, clip, missing EOS, length: each in the unit that the one before left."""
    ppo = Ppo(
        score_norm="std", score_clip=1.0, missing_eos=MissingEos("subtract", 2.0),
        length_penalty=0.01,
    )  # fmt: skip
    shaper = ScoreShaper.from_config(ppo)
    # {2, 6}: deviation √8. 2/√8 = 0.7071068; 6/√8 = 2.12 is clipped to 1, then 1 − 2 = −1.
    got = shaper(t(2, 6), [True, False], [10, 20])
    assert got.tolist() == near([0.6071068, -1.2])
    # A score that is set is not in the statistics and is not scaled by them.
    setter = ScoreShaper(score_norm="std", eos_mode="set", eos_value=-1.0)
    assert setter(t(2, 6), [True, False], [10, 20]).tolist() == near([0.7071068, -1])
    assert setter.state_dict()["mean"] == 4.0


def test_scores_keep_their_dtype_and_nothing_is_changed_in_place():
    scores = torch.tensor([1.0, 3.0])
    shaper = ScoreShaper(score_norm="mean_std", eos_mode="set", eos_value=0.0, per_token=0.1)
    assert shaper(scores, [True, False], [1, 2]).dtype == torch.float32
    assert scores.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score_norm": "mean"}, "ppo.score_norm='mean' is unknown. One of: none, std, mean_std."),
        ({"score_clip": 0.0}, "ppo.score_clip=0.0 is not above 0. Use null for no clip."),
        ({"eos_mode": "drop"}, "ppo.missing_eos.mode='drop' is unknown. One of: none, set, subtr"),
    ],
)
def test_settings_that_cannot_work(fields, message):
    with pytest.raises(UserError) as caught:
        ScoreShaper(**fields)
    assert str(caught.value).startswith(message)
