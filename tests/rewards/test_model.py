"""A reward checkpoint with a tokenizer and a template that no policy here has."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from align.chat import completion_text, render_completion
from align.config_errors import UserError
from align.data.tokenizer import train_tokenizer
from align.records import Message
from align.rewards import RewardError, make_reward
from align.rewards.model import ModelReward
from reward_models.contract import Contract, make_contract
from reward_models.model import init_head, save_reward_model

POLICY_TEXTS = ["房间很干净，服务很好。", "早餐不错。", "The room was clean.", "Terrible food."] * 3
REWARD_TEXTS = ["评论：差，太吵了。", "好评如潮，值得推荐。", "A quiet place, well worth it."] * 3
ASKED = [
    [Message("system", "你是酒店客人。"), Message("user", "写一条好评")],
    [Message("user", "Write a review")],
    [Message("user", "问"), Message("assistant", "答"), Message("user", "再问")],
]
ANSWERS = ["房间很干净，服务很好。", "The room was clean.", ""]
FINISHED = [True, False, True]


def body(cls, vocab: int):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256, num_labels=1,
        initializer_range=0.3, bos_token_id=None, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    return cls(config)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """runs/judge/final: Llama, 300 entries, template inst; reference scores of mean 2 and std 4."""
    folder = tmp_path_factory.mktemp("runs") / "judge" / "final"
    tokenizer = train_tokenizer(REWARD_TEXTS, 300, chat_template="inst")
    model = body(LlamaForSequenceClassification, 300)
    init_head(model)
    # −2 and 6: mean 2, population deviation 4.
    save_reward_model(folder, model, tokenizer, make_contract(tokenizer, scores=[-2.0, 6.0]))
    return folder


@pytest.fixture(scope="module")
def reward(checkpoint):
    return ModelReward(checkpoint)


def by_hand(folder, text: str) -> float:
    """Score of a rendered text, from the checkpoint's weights: the head at the last token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        return float(model.score.weight[0] @ hidden)


def test_item01_the_score_is_read_at_the_end_of_the_models_own_rendering(checkpoint, reward):
    rendered = [
        "[INST] <<SYS>>\n你是酒店客人。\n<</SYS>>\n\n写一条好评 [/INST] "
        "房间很干净，服务很好。<|endoftext|>",
        "[INST] Write a review [/INST] The room was clean.<|endoftext|>",
        "[INST] 问 [/INST] 答<|endoftext|>[INST] 再问 [/INST] <|endoftext|>",
    ]
    expected = [by_hand(checkpoint, text) for text in rendered]
    assert reward(ASKED, ANSWERS, FINISHED) == pytest.approx(expected, abs=1e-5)
    assert len({round(x, 3) for x in expected}) == 3


@pytest.mark.parametrize("template", ["chatml", "zh_instruction", "inst"])
@pytest.mark.parametrize("vocab", [290, 320])
def test_item01_the_policys_tokenizer_and_template_do_not_matter(reward, template, vocab):
    policy = train_tokenizer(POLICY_TEXTS, vocab, chat_template=template)
    sampled = [render_completion(policy, p, a)[1] for p, a in zip(ASKED, ANSWERS, strict=True)]
    texts = [completion_text(policy, ids) for ids in sampled]
    direct = reward(ASKED, ANSWERS, FINISHED)
    assert reward(ASKED, texts, FINISHED) == direct
    # Without their stop tokens, as when the length ran out: the text is the same.
    texts = [completion_text(policy, ids[:-1]) for ids in sampled]
    assert reward(ASKED, texts, [False] * 3) == direct


def test_item01_neither_batch_nor_neighbours_matter(checkpoint, reward):
    together = reward(ASKED, ANSWERS, FINISHED)
    alone = [reward([p], [a], [True])[0] for p, a in zip(ASKED, ANSWERS, strict=True)]
    pairs = ModelReward(checkpoint, batch_size=2)(ASKED[::-1], ANSWERS[::-1], FINISHED)[::-1]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(pairs, abs=1e-5)


def test_item12_calibrated_scores_use_the_contracts_constants(checkpoint, reward):
    raw = reward(ASKED, ANSWERS, FINISHED)
    source = {"kind": "model", "path": str(checkpoint), "calibrated": True}
    got = make_reward([source])(ASKED, ANSWERS, FINISHED)
    assert got == pytest.approx([(x - 2) / 4 for x in raw], abs=1e-6)


def test_model_and_function_at_once(checkpoint, reward, tmp_path):
    file = tmp_path / "my_rewards.py"
    file.write_text("def length(completions):\n    return [len(t) for t in completions]\n")
    both = make_reward(
        [
            {"kind": "model", "path": str(checkpoint), "weight": 2.0},
            {"kind": "function", "path": f"{file}:length", "weight": -0.01},
        ]
    )
    raw = reward(ASKED, ANSWERS, FINISHED)
    scores = both.score(ASKED, ANSWERS, FINISHED)
    assert list(scores.components) == ["judge", "length"]  # the stage, not "final"
    assert scores.components["judge"] == pytest.approx(raw, abs=1e-6)
    lengths = (11, 19, 0)
    assert scores.total == pytest.approx(
        [2 * x - 0.01 * n for x, n in zip(raw, lengths, strict=True)], abs=1e-6
    )


def test_names(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    assert ModelReward(".").name == "judge"
    monkeypatch.chdir(checkpoint.parent)
    assert ModelReward("final").name == "judge"


def test_a_prompt_that_cannot_be_rendered_names_the_reward_and_the_row(reward):
    with pytest.raises(RewardError, match=r"reward 'judge' cannot read row 1: no messages"):
        reward([ASKED[0], []], ["好", "good"], [True, True])


def refused(path) -> UserError:
    with pytest.raises(UserError) as caught:
        make_reward([{"kind": "model", "path": str(path)}])
    assert caught.value.field == "rewards.0.path"
    return caught.value


def test_checkpoints_that_are_no_reward_models(tmp_path, checkpoint):
    assert refused(tmp_path / "no").reason == "is not a folder"
    policy = tmp_path / "policy"
    body(LlamaForCausalLM, 300).save_pretrained(policy)
    assert "has no trained reward head" in refused(policy).reason
    other = tmp_path / "other"
    tokenizer = train_tokenizer(REWARD_TEXTS, 300, chat_template="inst")
    contract = make_contract(tokenizer)
    wrong = Contract("0" * 64, contract.tokenizer_hash)
    save_reward_model(other, body(LlamaForSequenceClassification, 300), tokenizer, wrong)
    assert refused(other).reason.startswith("contract.template_hash does not match ")


def test_under_zero3_the_weights_are_loaded_whole(checkpoint, reward):
    pytest.importorskip("deepspeed", reason="extra 'deepspeed'")
    from transformers.integrations import deepspeed as integration

    from align import distributed

    raw = reward(ASKED, ANSWERS, FINISHED)
    # What TrainingArguments register; from then on transformers partitions what it loads.
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    held = integration.HfDeepSpeedConfig(settings)
    try:
        assert distributed.zero3()
        loaded = ModelReward(checkpoint)
        assert distributed.zero3()
        assert loaded(ASKED, ANSWERS, FINISHED) == raw
    finally:
        integration.unset_hf_deepspeed_config()
        del held
