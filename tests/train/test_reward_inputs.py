"""Ratings and bootstrap counts on their way from a record to a group's extras."""

from __future__ import annotations

import functools
import statistics

import pytest

from align.config import build
from align.config_errors import UserError
from align.data.tokenizer import train_tokenizer
from align.groups import TokenGroup
from align.records import Candidate, Judgement, Message, PreferenceGroup
from align.train.batches import FILLER, GroupDataset
from align.train.examples import PairBuilder
from align.train.reward_inputs import RewardInputs, check_attributes, drawn, scale_of

NAMES = ["helpfulness", "verbosity"]


def config(**reward):
    return build("reward", {"reward": reward, "data": {"preferences": "p.jsonl"}, "train": {}})


def group(attributes=None, judged=True, group_id="g1"):
    candidates = (Candidate("a", "房间很干净。"), Candidate("b", "差"), Candidate("c", "The room."))
    vote = Judgement(None, "pair", {"winner": "a", "loser": "b"})
    meta = {} if attributes is None else {"attributes": attributes}
    return PreferenceGroup(
        group_id, (Message("user", "写一条评论"),), candidates, (vote,) if judged else (), meta
    )


@functools.cache
def words():
    texts = ["房间很干净。", "写一条评论", "The room was clean."] * 4
    return train_tokenizer(texts, 300, min_frequency=1, chat_template="chatml")


# Bootstrap counts


def test_counts_are_the_same_everywhere():
    # A run that is resumed, or shared by other ranks, must draw what it drew before.
    assert [drawn("g1", m, 42) for m in range(8)] == [1, 2, 2, 1, 0, 1, 1, 3]
    assert [drawn("评论", m, 7) for m in range(8)] == [1, 1, 1, 0, 0, 1, 4, 1]


def test_counts_are_poisson_and_independent_between_members():
    n = 4000
    first, second = ([drawn(f"g{i}", m, 1) for i in range(n)] for m in range(2))
    assert statistics.mean(first) == pytest.approx(1.0, abs=0.06)
    assert statistics.pvariance(first) == pytest.approx(1.0, abs=0.12)
    assert first.count(0.0) / n == pytest.approx(0.3679, abs=0.03)
    assert abs(statistics.correlation(first, second)) < 0.05


def test_a_group_has_a_count_for_each_member_where_there_are_several():
    made = RewardInputs(config(heads=3)).extras("g1", [0, 2], {})
    assert made == {"counted_0": [1.0, 1.0], "counted_1": [2.0, 2.0], "counted_2": [2.0, 2.0]}
    assert RewardInputs(config(heads=3, bootstrap=False)).extras("g1", [0, 2], {}) == {}
    assert RewardInputs(config()).extras("g1", [0, 2], {}) == {}
    members = RewardInputs(config(heads=4, attributes=NAMES)).members
    assert members == 2


# Ratings


def test_ratings_are_masked_where_they_are_missing():
    inputs = RewardInputs(config(attributes=NAMES))
    found = inputs.ratings(
        group(
            {"a": {"helpfulness": 4, "verbosity": None}, "b": {}, "c": {"verbosity": 1.5, "x": 9}}
        )
    )
    assert found == {0: [4.0, None], 2: [None, 1.5]}
    assert inputs.extras("g1", [0, 1, 2], found) == {
        "rated_0": [1.0, 0.0, 0.0],
        "rating_0": [4.0, 0.0, 0.0],
        "rated_1": [0.0, 0.0, 1.0],
        "rating_1": [0.0, 0.0, 1.5],
    }
    assert inputs.ratings(group()) == {}


def test_a_rated_group_keeps_what_is_rated_or_compared():
    tokenizer = words()
    build_pair = PairBuilder(tokenizer, config(attributes=NAMES), keep_end_token=True)
    rated = {"c": {"helpfulness": 2}}
    made, _ = build_pair(group(rated))
    assert len(made.completions) == 3
    assert [(p.a, p.b) for p in made.pairs] == [(0, 1)]
    made, _ = build_pair(group(rated, judged=False))
    assert len(made.completions) == 1
    assert made.pairs == []
    assert made.extras["rating_0"] == [2.0]
    assert build_pair(group({})) == "no_attribute"
    assert build_pair(group({"a": {"colour": 3}})) == "no_attribute"
    # With a weight of its own a comparison is enough.
    both = PairBuilder(tokenizer, config(attributes=NAMES, pair_coef=2.0), keep_end_token=True)
    made, _ = both(group({}))
    assert len(made.completions) == 2
    assert made.extras["rated_0"] == [0.0, 0.0]
    assert both(group({}, judged=False)) == "no_pair"
    plain = PairBuilder(tokenizer, config(), keep_end_token=True)
    assert plain(group(rated, judged=False)) == "no_pair"
    assert plain(group(rated))[0].extras == {}


@pytest.mark.parametrize(
    "attributes",
    [
        {"a": {"helpfulness": "4"}},
        {"a": {"helpfulness": True}},
        {"a": {"helpfulness": float("nan")}},
        {"a": 4},
        {"d": {"helpfulness": 4}},
        [4, 3],
    ],
)
def test_ratings_that_cannot_be_read_are_a_counted_reason(attributes):
    build_pair = PairBuilder(words(), config(attributes=NAMES), keep_end_token=True)
    assert build_pair(group(attributes)) == "bad_attributes"


def test_the_scale_by_hand():
    def one(rating, rated):
        columns = {
            f"{n}_{j}": v[j] for n, v in (("rating", rating), ("rated", rated)) for j in (0, 1)
        }
        return TokenGroup([5], [[6], [7]], extras=columns)

    groups = [
        one([[1.0, 5.0], [2.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]]),
        one([[0.0, 3.0], [2.0, 2.0]], [[0.0, 1.0], [1.0, 1.0]]),
    ]
    # 1, 5 and 3; three times 2, which has no spread.
    scale = scale_of(groups, 2)
    assert scale.mean == [3.0, 2.0]
    assert scale.std == [pytest.approx((8 / 3) ** 0.5), 1.0]
    filler = GroupDataset(groups)[FILLER]
    assert {name: filler.extras[name] for name in ("rated_0", "rated_1")} == {
        "rated_0": [0.0],
        "rated_1": [0.0],
    }


def test_an_attribute_that_nothing_rates_is_an_error_that_names_the_rated_ones():
    records = [group({"a": {"helpfulness": 4, "verbosity": None}}), group({"b": {"coherence": 1}})]
    check_attributes(records, config(attributes=["coherence", "helpfulness"]))
    with pytest.raises(UserError, match=r"'verbosity', which no group of p\.jsonl rates") as caught:
        check_attributes(records, config(attributes=NAMES))
    assert "coherence, helpfulness" in caught.value.fix
    with pytest.raises(UserError, match="Did you mean 'helpfulness'"):
        check_attributes(records, config(attributes=["helpfullness"]))
    with pytest.raises(UserError, match=r"need meta\.attributes"):
        check_attributes([group()], config(attributes=NAMES))


# The configuration


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"attribute_weights": [1.0]}, "attribute_weights.* no effect without reward.attributes"),
        ({"attributes": ["a", "a"]}, "names an attribute twice"),
        ({"attributes": [""]}, "or none"),
        ({"attributes": ["a", "b"], "heads": 3}, "heads=3 is no multiple of the 2 .*Use 2"),
        ({"attributes": ["a", "b"], "attribute_weights": [1]}, "one weight for each.*Give 2"),
        ({"attributes": ["a"], "attribute_weights": [0]}, "makes every score 0"),
        ({"pair_coef": 2}, "pair_coef=2.0 has no effect without reward.attributes.*Use 0"),
        ({"attributes": ["a"], "margin": True}, "reward.margin=true has no effect.*Use false, or"),
        ({"attributes": ["a"], "length_coef": -1}, "length_coef=-1.0 has no effect"),
    ],
)
def test_settings_that_make_no_score_are_refused(reward, message):
    from align.config_reward import check_reward

    with pytest.raises(UserError, match=message):
        check_reward(config(**reward))


def test_with_pairs_beside_the_ratings_the_options_of_pairs_have_an_effect():
    from align.config_reward import check_reward

    options = {"margin": True, "center_coef": 0.1, "length_coef": 0.2}
    check_reward(config(attributes=["a"], pair_coef=1.0, **options))
    check_reward(config(**options))


def test_the_centring_of_a_shared_configuration_does_not_stand_in_the_way_of_ratings():
    from align.config_reward import check_reward

    check_reward(config(attributes=["a"], center_coef=0.01))


def test_every_attribute_is_an_output_and_the_written_configuration_says_so():
    made = config(attributes=["a", "b", "c"])
    assert made.reward.heads == 3
    assert made.to_dict()["reward"]["heads"] == 3
    again = build("reward", {"reward": made.to_dict()["reward"]})
    assert (again.reward.heads, again.reward.members) == (3, 1)
    assert config(attributes=["a", "b"], heads=4).reward.members == 2
    assert config(heads=4).reward.members == 4
