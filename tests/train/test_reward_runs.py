"""Whole runs of the reward model: what heads and ratings learn, what is saved, how runs are cut."""

from __future__ import annotations

import json
import random
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
import reward_rows as rows
import small_runs as runs
from test_invariance import agree, moved
from test_resume import in_parts

from align.config import load_config
from align.files import fingerprint
from align.policy import Policy
from align.run import run
from align.train.examples import preference_groups
from reward_models.scorer import Scorer

LORA = ("--policy.lora", "{r: 4}")
RATED = {"attributes": ["quality", "words"]}
BOTH = {"attributes": ["quality", "words"], "attribute_weights": [1.0, -0.25], "pair_coef": 3.0,
        "length_coef": 0.1}  # fmt: skip
ENSEMBLE = {"heads": 3, "length_coef": 0.2, "center_coef": 0.05}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("rewards")


@pytest.fixture(scope="module")
def few(place):
    """26 groups of three, a fifth of the ratings missing."""
    return rows.write(place / "few.jsonl", rows.groups(26, 7, missing=0.2))


def texts(groups: Sequence[dict]) -> tuple[list, list]:
    pairs = [(g["prompt"], c["content"]) for g in groups for c in g["candidates"]]
    return [p for p, _ in pairs], [c for _, c in pairs]


# How a run is cut


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param((ENSEMBLE, ()), id="ensemble"),
        pytest.param((BOTH, ()), id="both", marks=pytest.mark.slow),
        pytest.param(({"heads": 2}, LORA), id="lora", marks=pytest.mark.slow),
    ],
)
def test_half_and_half_is_the_whole(tmp_path, few, extra):
    reward, words = extra
    in_parts("reward", tmp_path, 8, (4,), *rows.options(few, few, **reward), *words)


@pytest.mark.slow
@pytest.mark.parametrize("reward", [ENSEMBLE, RATED, BOTH], ids=["ensemble", "rated", "both"])
@pytest.mark.parametrize("cut", ["8x1", "budget"])
def test_steps_do_not_depend_on_the_cut(few, cut, reward):
    options = tuple(map(str, rows.options(few, **reward)))
    agree(moved("reward", "1x8", *options), moved("reward", cut, *options), 2e-5)


def test_steps_do_not_depend_on_the_layout(few):
    options = tuple(map(str, rows.options(few, **ENSEMBLE)))
    plain = moved("reward", "1x8", *options, "--policy.layout", "plain")
    agree(moved("reward", "1x8", *options), plain, 1e-4)


def test_a_prompt_of_four_answers_is_read_once(place):
    data = rows.write(place / "four.jsonl", rows.groups(3, 5, candidates=4))
    config = load_config("reward", runs.arguments(place / "four", *rows.options(data)))
    policy = Policy.load(config, role="reward")
    groups = preference_groups(config, policy.tokenizer, keep_end_token=True)[0]
    assert [len(g.pairs) for g in groups] == [6, 6, 6]
    assert [sum(p.weight for p in g.pairs) for g in groups] == pytest.approx([1.0] * 3)
    seen = []
    body = policy.module.lm.model
    body.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    scores = policy.module(policy.collate(groups), want=("scores",))["scores"]
    assert scores.shape == (12, 1)
    longest = max(len(g.prompt_ids) + sum(map(len, g.completions)) for g in groups)
    assert seen == [(3, longest)]  # not the 36 rows of two answers for each of 18 pairs


# What is saved


@pytest.fixture(scope="module")
def adapted(place, few):
    """A LoRA run of two heads."""
    options = (*rows.options(few, few, heads=2), "--train.max_steps", 6, "--train.save_steps", 6)
    return runs.train("reward", place / "adapted", *options, *LORA)


def test_the_head_is_saved_with_the_adapter_and_with_the_checkpoint(adapted, place, few):
    merged, adapter = Scorer(adapted / "final"), Scorer(adapted / "final" / "adapter")
    held = texts(rows.groups(6, 8))
    expected = torch.tensor(merged.score_heads(*held))
    torch.testing.assert_close(
        torch.tensor(adapter.score_heads(*held)), expected, atol=1e-5, rtol=0
    )
    assert adapter.contract == merged.contract
    config = load_config("reward", runs.arguments(place / "init", *rows.options(few, heads=2)))
    start = Policy.load(config, role="reward").module.lm.score.weight
    trained = merged.model.score.weight
    assert (trained - start).abs().max() > 1e-3
    state = load_file(adapted / "checkpoint-6" / "model.safetensors")
    kept = [t for name, t in state.items() if "score" in name]
    assert len(kept) == 1
    assert torch.equal(kept[0], trained.detach())


def test_training_goes_on_from_an_adapter_with_its_head(adapted, place, few):
    words = ("--policy.lora", json.dumps({"r": 4, "path": str(adapted / "final" / "adapter")}))
    options = (*rows.options(few, few, heads=2), "--train.max_steps", 1, *words)
    again = runs.train("reward", place / "again", *options, "--train.learning_rate", 1e-12)
    held = texts(rows.groups(6, 8))
    expected = Scorer(adapted / "final").score_heads(*held)
    for folder in ("final", "final/adapter"):
        found = torch.tensor(Scorer(again / folder).score_heads(*held))
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)


def test_another_number_of_heads_than_the_adapters_is_refused(adapted, place, few, capsys):
    lora = json.dumps({"r": 4, "path": str(adapted / "final" / "adapter")})
    for reward, message in (
        ({"heads": 3}, "reward.heads=3 does not fit"),
        ({"heads": 2, "attributes": ["quality", "words"]}, "reward.attributes=.*does not fit"),
    ):
        words = (*rows.options(few, few, **reward), "--policy.lora", lora)
        assert run("reward", runs.arguments(place / "refused", *words)) == 2
        assert re.search(message, capsys.readouterr().err)


def test_the_contract_of_a_run(adapted, few):
    scorer = Scorer(adapted / "final")
    contract = scorer.contract
    heads = scorer.score_heads(*texts([json.loads(s) for s in few.read_text().splitlines()]))
    means = [statistics.fmean(column) for column in zip(*heads, strict=True)]
    assert contract.head_means == pytest.approx(means, abs=1e-4)
    scores = [statistics.fmean(row) for row in heads]
    assert contract.score_mean == pytest.approx(statistics.fmean(scores), abs=1e-4)
    assert contract.score_std == pytest.approx(statistics.pstdev(scores), abs=1e-4)
    last = [row for row in runs.lines(adapted) if "eval_accuracy" in row][-1]
    assert contract.held_out_accuracy == last["eval_accuracy"]
    assert contract.data_fingerprint == fingerprint(few)
    assert contract.base_fingerprint == fingerprint(runs.base())
    assert (contract.heads, contract.max_length, contract.max_prompt_length) == (2, 160, 96)
    assert (contract.eos_rule, contract.padding_side) == ("end_of_turn", "right")


def test_heads_start_apart_and_the_first_as_it_would_alone(place, few):
    weights = []
    for heads in (1, 3):
        words = rows.options(few, heads=heads)
        config = load_config("reward", runs.arguments(place / "heads", *words))
        weights.append(Policy.load(config, role="reward").module.lm.score.weight.detach())
    assert torch.equal(weights[0][0], weights[1][0])
    similar = torch.nn.functional.cosine_similarity(weights[1][None], weights[1][:, None], dim=-1)
    assert similar.fill_diagonal_(0).abs().max() < 0.6  # 32 numbers each: 0.18 is usual


# What is learned

LEARN = ("--train.learning_rate", 3e-3, "--train.per_device_train_batch_size", 8,
         "--train.save_strategy", "no", "--train.eval_strategy", "no")  # fmt: skip


@pytest.fixture(scope="module")
def learned(place):
    """Five heads on marked answers, each with prompts of its own."""
    data = rows.write(place / "train.jsonl", rows.groups(160, 1))
    options = (*rows.options(data, heads=5), "--train.max_steps", 60)
    return Scorer(runs.train("reward", place / "marked", *options, *LEARN) / "final")


def gaps(scorer: Scorer, prompts: list, answers: list) -> torch.Tensor:
    """(pairs, heads): one answer's score minus the next one's."""
    heads = torch.tensor(scorer.score_heads(prompts, answers))
    return heads[::2] - heads[1::2]


@pytest.mark.slow
def test_heads_agree_on_what_was_trained_and_less_on_what_was_not(learned):
    held = rows.groups(60, 3, candidates=2)
    known = gaps(learned, *texts(held))
    right = [g["meta"]["attributes"] for g in held]
    sign = torch.tensor([1.0 if r["c0"]["quality"] > r["c1"]["quality"] else -1.0 for r in right])
    assert ((known.mean(1) * sign) > 0).float().mean() > 0.97
    # Characters that no training text has.
    chooser = random.Random(5)
    strange = [
        "".join(chooser.choices("春天水烧茶叶长城今公园山海关祝生日", k=12)) for _ in range(160)
    ]
    prompt = [{"role": "user", "content": "Write a review"}]
    unknown = gaps(learned, [prompt] * 160, strange)
    doubt = [float((g.std(1) / g.mean(1).abs()).median()) for g in (known, unknown)]
    assert doubt[1] > 1.5 * doubt[0]
    disputed = [float(((g > 0).any(1) & (g < 0).any(1)).float().mean()) for g in (known, unknown)]
    assert disputed[0] <= 0.02 < disputed[1]


@pytest.mark.slow
def test_uncertainty_is_the_spread_of_the_heads_around_their_own_level(learned):
    prompts, answers = texts(rows.groups(10, 3))
    heads = learned.score_heads(prompts, answers)
    for row, found in zip(heads, learned.details(prompts, answers), strict=True):
        apart = [h - level for h, level in zip(row, learned.contract.head_means, strict=True)]
        assert found.uncertainty == pytest.approx(statistics.stdev(apart), abs=1e-9)
        assert found.score == pytest.approx(statistics.fmean(row), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("reward", [RATED, BOTH], ids=["alone", "with-pairs"])
def test_planted_attributes_are_found_where_a_fifth_is_missing(place, reward):
    data = rows.write(place / "rated.jsonl", rows.groups(160, 1, missing=0.2))
    options = (*rows.options(data, **reward), "--train.max_steps", 80, *LEARN)
    scorer = Scorer(runs.train("reward", place / f"rated-{len(reward)}", *options) / "final")
    held = rows.groups(60, 3)
    found = scorer.details(*texts(held))
    planted = [g["meta"]["attributes"][c["id"]] for g in held for c in g["candidates"]]
    weights = reward.get("attribute_weights", [0.5, 0.5])
    for name in ("quality", "words"):
        true = [p[name] for p in planted]
        error = [f.attributes[name] - t for f, t in zip(found, true, strict=True)]
        # The share of the variance that is left; the mean alone would leave 1.
        limit = 0.05 if reward is RATED else 0.2
        assert statistics.fmean(e * e for e in error) < limit * statistics.pvariance(true)
    for one in found:
        expected = sum(w * v for w, v in zip(weights, one.attributes.values(), strict=True))
        assert one.score == pytest.approx(expected, abs=1e-5)
