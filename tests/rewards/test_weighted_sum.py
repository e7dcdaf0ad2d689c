"""Several rewards at once, and the `rewards` section that names them."""

from __future__ import annotations

import pytest

from align.config_errors import UserError
from align.config_schema import RewardSource
from align.records import Message
from align.rewards import RewardError, Scores, make_reward

PROMPTS = [[Message("user", "写一条好评")], [Message("user", "Write a review")]]
TEXTS, FINISHED = ["很好", "good"], [True, False]
SOURCE = """
def length(prompts, completions):
    return [len(text) for text in completions]
def ended(finished, **kwargs):
    return [1.0 if done else -1.0 for done in finished]
def first(completions):
    return [completions[0]] * 0
def broken(completions):
    return [1.0] * (len(completions) - 1)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_rewards.py"
    path.write_text(SOURCE)
    return path


def source(file, name: str, **more) -> dict:
    return {"kind": "function", "path": f"{file}:{name}", **more}


def test_weights(file):
    reward = make_reward([source(file, "length", weight=0.5), source(file, "ended", weight=-3)])
    # 0.5·2 − 3·1 and 0.5·4 − 3·(−1)
    expected = Scores([-2.0, 5.0], {"length": [2.0, 4.0], "ended": [1.0, -1.0]})
    assert reward.score(PROMPTS, TEXTS, FINISHED) == expected
    assert reward(PROMPTS, TEXTS, FINISHED) == [-2.0, 5.0]


def test_the_configurations_own_objects_and_the_default_weight(file):
    made = make_reward([RewardSource(kind="function", path=f"{file}:length", weight=2.0)])
    assert made(PROMPTS, TEXTS, FINISHED) == [4.0, 8.0]
    assert make_reward([source(file, "length")])(PROMPTS, TEXTS, FINISHED) == [2.0, 4.0]


def test_a_weight_of_zero_still_shows_the_component(file):
    scores = make_reward([source(file, "length", weight=0), source(file, "ended")]).score(
        PROMPTS, TEXTS, FINISHED
    )
    assert scores.total == [1.0, -1.0]
    assert scores.components["length"] == [2.0, 4.0]


def test_names_stay_apart(file, tmp_path):
    second = tmp_path / "more"
    second.mkdir()
    (second / "my_rewards.py").write_text("def length(completions):\n    return [0, 7]\n")
    third = source(second / "my_rewards.py", "length", weight=10)
    reward = make_reward([source(file, "length"), source(file, "length"), third])
    scores = reward.score(PROMPTS, TEXTS, FINISHED)
    assert scores.components == {"length": [2, 4], "length#2": [2, 4], "length#3": [0, 7]}
    assert scores.total == [4.0, 78.0]


def test_nothing_to_score(file):
    # Functions are not called: this one would ask for the first of no completions.
    scores = make_reward([source(file, "first"), source(file, "length")]).score([], [], [])
    assert scores == Scores([], {"first": [], "length": []})


def test_errors_name_the_term(file):
    reward = make_reward([source(file, "length"), source(file, "broken")])
    with pytest.raises(RewardError, match=r"my_rewards\.py:broken' returned 1 numbers for 2"):
        reward.score(PROMPTS, TEXTS, FINISHED)
    with pytest.raises(ValueError, match="2 prompts, 1 completions, 2 flags"):
        reward.score(PROMPTS, TEXTS[:1], FINISHED)


def refused(sources: list) -> str:
    with pytest.raises(UserError) as caught:
        make_reward(sources)
    return str(caught.value)


def test_the_section_is_checked(file, tmp_path):
    good = source(file, "length")
    assert refused([]) == "rewards=[] is empty: nothing to optimise. Add a reward."
    assert refused([good, good | {"weight": "2"}]) == (
        "rewards.1.weight='2' is not a number. Use e.g. 1.0."
    )
    assert refused([good | {"weight": True}]).startswith("rewards.0.weight=true is not a number")
    assert refused([good | {"weight": float("nan")}]).startswith("rewards.0.weight=nan must be fi")
    assert refused([good, good | {"kind": "fuction"}]) == (
        "rewards.1.kind='fuction' is not a kind of reward. "
        "Kinds are model, function and http; did you mean 'function'?"
    )
    assert refused([{"kind": "http", "path": "localhost:80"}]) == (
        "rewards.0.path='localhost:80' is not an http or https URL. "
        "Write http://host:port, as python -m reward_models serve prints it."
    )
    assert refused([{"kind": "function"}]).startswith("rewards.0.path=null is missing")
    assert refused([good | {"calibrated": True}]) == (
        "rewards.0.calibrated=true is for reward models: a function has no reference samples. "
        "Use false."
    )
    assert "rewards.0.path=" in refused([good | {"path": f"{file}:nothing"}])
    missing = refused([good, {"kind": "model", "path": str(tmp_path / "no")}])
    assert missing.startswith("rewards.1.path=")
    assert "is not a folder" in missing
