"""Held-out prompts: which they are, how they are sampled, and what is written down."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import ppo_models as tiny

from align.chat import render_prompt, stop_ids
from align.config import UserError
from align.policy_module import base_model
from align.records import Message
from align.train.ppo_prompts import load_prompt_items


def write(path, rows):
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def samples(made):
    text = (Path(made.args.output_dir) / "samples.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def said(items):
    return [item.messages[-1].content for item in items]


# 26. Which prompts


def test_item26_held_out_prompts_leave_training_and_are_counted(tmp_path):
    # Two of the training prompts, one under another id and with system = none, and a new one.
    held = write(tmp_path / "held.jsonl", [
        {"prompt": "早餐怎么样？"}, {"prompt": "Was the room clean?", "id": "x"},
        {"prompt": "停车方便吗？"},
    ])  # fmt: skip
    settings = tiny.config(tmp_path, eval={"prompts": held})
    train, held_out, counts = load_prompt_items(settings, tiny.tokenizer())
    assert said(held_out) == ["早餐怎么样？", "Was the room clean?", "停车方便吗？"]
    assert not set(said(train)) & set(said(held_out))
    assert len(train) == 6
    assert counts[0].dropped["held_out"] == 2
    assert (counts[0].used, counts[1].used) == (6, 3)
    assert counts[0].total == len(tiny.PROMPTS)


def test_item26_eval_prompts_come_before_the_validation_file_and_that_before_a_share(tmp_path):
    first = write(tmp_path / "a.jsonl", [{"prompt": "甲"}])
    second = write(tmp_path / "b.jsonl", [{"prompt": "乙"}])
    words = tiny.tokenizer()
    for sections, expected in (
        ({"eval": {"prompts": first}, "data": {"validation": second}}, ["甲"]),
        ({"data": {"validation": second, "validation_fraction": 0.5}}, ["乙"]),
        ({}, []),
    ):
        _, held_out, _ = load_prompt_items(tiny.config(tmp_path, **sections), words)
        assert said(held_out) == expected
    settings = tiny.config(tmp_path, data={"validation_fraction": 0.4})
    train, held_out, _ = load_prompt_items(settings, words)
    assert sorted(said(train) + said(held_out)) == sorted(row["prompt"] for row in tiny.PROMPTS)
    assert train
    assert held_out


def test_item26_nothing_left_to_train_on_is_an_error(tmp_path):
    settings = tiny.config(tmp_path, eval={"prompts": write(tmp_path / "h.jsonl", tiny.PROMPTS)})
    with pytest.raises(UserError, match="no prompt that is not held out"):
        load_prompt_items(settings, tiny.tokenizer())


def test_item26_num_samples_limits_evaluation_but_not_what_is_held_out(tmp_path):
    held = write(tmp_path / "held.jsonl", tiny.PROMPTS[:5])
    settings = tiny.config(tmp_path, eval={"prompts": held, "num_samples": 2})
    train, held_out, _ = load_prompt_items(settings, tiny.tokenizer())
    assert said(held_out) == [row["prompt"] for row in tiny.PROMPTS[:2]]
    assert said(train) == [row["prompt"] for row in tiny.PROMPTS[5:]]


# Prompts as tokens


def test_prompts_are_rendered_and_cut_to_leave_room(tmp_path):
    words = tiny.tokenizer()
    long = "房间很干净，" * 40
    file = write(tmp_path / "p.jsonl", [{"prompt": "早餐"}, {"prompt": long}])
    settings = tiny.config(tmp_path, data={"prompts": file, "max_length": 60})
    items, _, counts = load_prompt_items(settings, words)
    assert items[0].ids == render_prompt(words, [Message("user", "早餐")])
    # 60 tokens less 10 for the completion; the end of the prompt stays, with its header.
    assert len(items[1].ids) == 50
    assert items[1].ids[-8:] == render_prompt(words, [Message("user", long)])[-8:]
    assert said(items) == ["早餐", long]  # the reward sees the whole prompt
    assert counts[0].to_json()["truncated"] == 1
    settings = tiny.config(tmp_path, data={"prompts": file, "max_length": 60,
                                           "max_prompt_length": 30})  # fmt: skip
    assert len(load_prompt_items(settings, words)[0][1].ids) == 30


# 26. How they are sampled


@pytest.fixture
def held(tmp_path):
    rows = [{"prompt": text} for text in ("停车方便吗？", "Is it far?", "好", "So?", "钱？")]
    return write(tmp_path / "held.jsonl", rows)


def test_item26_validation_is_greedy_and_repeats(tmp_path, held):
    made = tiny.build(tmp_path, eval={"prompts": held})
    figures = made.evaluate()
    lm, stops = base_model(made.policy.module.lm), stop_ids(made.policy.tokenizer)
    rows = samples(made)
    for row, item in zip(rows, made.eval_prompts, strict=True):
        out = lm.generate(
            tiny.torch.tensor([item.ids]), do_sample=False, max_new_tokens=10,
            eos_token_id=list(stops), pad_token_id=1, use_cache=True,
        )[0, len(item.ids) :].tolist()  # fmt: skip
        assert row["tokens"] == len(out)
        assert row["finished"] == (out[-1] in stops)
        text = made.policy.tokenizer.decode(out, skip_special_tokens=True)
        assert row["completion"] == text
        assert row["score"] == pytest.approx(len(text) / 10)
    assert figures == pytest.approx(made.evaluate() | {"eval_runtime": figures["eval_runtime"]})
    scores = [row["score"] for row in rows]
    assert figures["eval_score/mean"] == pytest.approx(sum(scores) / 5)
    assert figures["eval_length/mean"] == pytest.approx(sum(r["tokens"] for r in rows) / 5)
    assert figures["eval_eos_rate"] == pytest.approx(sum(r["finished"] for r in rows) / 5)


def test_item26_validation_at_another_temperature(tmp_path, held):
    made = tiny.build(tmp_path, eval={"prompts": held, "temperature": 1.0, "seeds": [4]})
    made.evaluate()
    drawn = [row["completion"] for row in samples(made)]
    made.evaluate()
    assert [row["completion"] for row in samples(made)] == drawn  # the same seed
    other = tiny.build(tmp_path, eval={"prompts": held, "temperature": 1.0, "seeds": [5]})
    other.evaluate()
    assert [row["completion"] for row in samples(other)] != drawn


def test_item26_scores_are_raw_and_kl_is_the_log_ratio_of_the_samples(tmp_path, held):
    ppo = {"score_norm": "mean_std", "missing_eos": {"mode": "set", "value": -7.0},
           "length_penalty": 1.0}  # fmt: skip
    made = tiny.build(tmp_path, eval={"prompts": held}, ppo=ppo)
    tiny.move(made, 0.3)
    figures = made.evaluate()
    assert figures["eval_score/mean"] >= 0
    module, words = made.policy.module, made.policy.tokenizer
    made.args.per_device_eval_batch_size = 1
    assert made.evaluate()["eval_kl/sum"] == pytest.approx(figures["eval_kl/sum"], abs=1e-4)
    for row, item in zip(samples(made), made.eval_prompts, strict=True):
        ids = base_model(module.lm).generate(
            tiny.torch.tensor([item.ids]), do_sample=False, max_new_tokens=10,
            eos_token_id=list(stop_ids(words)), pad_token_id=1, use_cache=True,
        )[0, len(item.ids) :].tolist()  # fmt: skip
        policy, ref = (tiny.plain_logps(m, item.ids, ids) for m in (module.lm, module.reference))
        assert row["kl"] == pytest.approx(sum(policy) - sum(ref), abs=1e-4)
    assert made.collector.shaper.normaliser.moments.count == 0  # evaluation leaves no trace


def test_item26_evaluations_do_not_change_training(tmp_path, held):
    def weights(**train):
        made = tiny.build(tmp_path, eval={"prompts": held}, ppo={"ppo_epochs": 2},
                          train={"max_steps": 4, **train})  # fmt: skip
        made.train()
        return tiny.torch.cat([p.flatten() for p in made.policy.module.parameters()])

    assert tiny.torch.equal(weights(), weights(eval_strategy="steps", eval_steps=1))


def test_samples_of_a_lost_part_are_replaced(tmp_path, held):
    made = tiny.build(tmp_path, eval={"prompts": held})
    for step in (0, 2, 4):
        made.state.global_step = step
        made.evaluate()
    made.state.global_step = 2  # resumed from the checkpoint of step 2
    made.evaluate()
    assert [row["step"] for row in samples(made)] == [0] * 5 + [2] * 5
