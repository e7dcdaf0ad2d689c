"""Rows that are too long: where both cut alike, training runs are equal; where not, tokens tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import parity_runs as runs
import pytest

pytestmark = pytest.mark.parity

# What `equal_length_pairs` chooses from.
ANSWERS = {text for pair in runs.PAIRS for text in pair[1:]}


def trl_dpo(model: Path, rows: list[dict], run_dir: Path, **options) -> Any:
    trl = pytest.importorskip("trl")
    return trl.DPOTrainer(
        model=str(model),
        args=trl.DPOConfig(**runs.trl_arguments(run_dir, beta=0.5, **options)),
        train_dataset=runs.dataset(rows),
        processing_class=runs.load_tokenizer(model),
    )


def trl_rows(trainer: Any) -> list[tuple[list[int], list[int]]]:
    """(token ids, completion mask) in the order chosen, rejected, chosen, … as trl collates."""
    found = []
    for batch in trainer.get_train_dataloader():
        half = len(batch["input_ids"]) // 2
        for pair in range(half):
            for row in (pair, pair + half):
                kept = batch["attention_mask"][row].bool()
                ids, mask = batch["input_ids"][row][kept], batch["completion_mask"][row][kept]
                found.append((ids.tolist(), mask.tolist()))
    return found


def equal_length_pairs(model: Path) -> list[tuple[str, str, str]]:
    """Prompts of the data set with two answers of the same number of tokens."""
    tokenizer = runs.load_tokenizer(model)
    by_length: dict[int, list[str]] = {}
    for text in sorted(ANSWERS):
        by_length.setdefault(len(tokenizer(text)["input_ids"]), []).append(text)
    twins = [texts for n, texts in sorted(by_length.items()) if len(texts) > 1 and 9 <= n <= 24]
    answers = [(texts[0], texts[1]) for texts in twins]
    answers += [(texts[1], texts[0]) for texts in twins]
    prompts = [pair[0] for pair in runs.PAIRS]
    return [(p, *a) for p, a in zip(prompts, answers, strict=False)]


def test_keep_start_equals_trl(model: Path, tmp_path: Path) -> None:
    """Prompts fit: both cut the end of a completion, end-of-turn token included."""
    rows = runs.preference_rows()
    data = {"max_length": 42, "truncation": "keep_start"}
    trainer = trl_dpo(model, rows, tmp_path, max_length=42, truncation_mode="keep_start")
    found = runs.group_rows(runs.our_groups("dpo", model, rows, tmp_path / "rows", data=data))
    assert found == trl_rows(trainer)
    eos = runs.load_tokenizer(model).eos_token_id
    assert 3 < sum(ids[-1] != eos for ids, _ in found) < len(found) - 3  # some cut, some whole
    ours = runs.our_run("dpo", model, rows, tmp_path, data=data, dpo={"beta": 0.5})
    runs.assert_equal_runs(ours, runs.trl_run(trainer))


def test_keep_end_equals_trl_for_answers_of_one_length(model: Path, tmp_path: Path) -> None:
    pairs = equal_length_pairs(model)
    assert len(pairs) >= 6
    rows = runs.preference_rows(pairs)
    data = {"max_length": 38, "truncation": "keep_end"}
    trainer = trl_dpo(model, rows, tmp_path, max_length=38, truncation_mode="keep_end")
    found = runs.group_rows(runs.our_groups("dpo", model, rows, tmp_path / "rows", data=data))
    assert found == trl_rows(trainer)
    assert sum(len(ids) == 38 for ids, _ in found) >= 4
    ours = runs.our_run("dpo", model, rows, tmp_path, data=data, dpo={"beta": 0.5})
    runs.assert_equal_runs(ours, runs.trl_run(trainer))


def test_keep_end_differs_from_trl_for_answers_of_unlike_length(
    model: Path, tmp_path: Path
) -> None:
    """trl cuts each row alone: its two answers then follow different prompts. Ours share one."""
    rows = runs.preference_rows([("早餐怎么样？", "早餐不错，种类也多。", "不")])
    prompt = runs.group_rows(runs.our_groups("dpo", model, rows, tmp_path / "whole"))[0][0]
    data = {"max_length": 40, "truncation": "keep_end"}
    (group,) = runs.our_groups("dpo", model, rows, tmp_path, data=data)
    chosen, rejected = trl_rows(
        trl_dpo(model, rows, tmp_path, max_length=40, truncation_mode="keep_end")
    )
    long, short = map(len, group.completions)
    assert len(group.prompt_ids) == 40 - long
    assert chosen[0] == group.prompt_ids + group.completions[0]
    assert rejected[0] != group.prompt_ids + group.completions[1]
    their_prompt = rejected[0][:-short]
    assert len(their_prompt) > len(group.prompt_ids)
    assert their_prompt[-len(group.prompt_ids) :] == group.prompt_ids
    assert prompt[: len(prompt) - long][-len(their_prompt) :] == their_prompt


def test_keep_end_differs_from_trl_for_an_answer_that_fills_the_row(
    model: Path, tmp_path: Path
) -> None:
    """trl keeps the answer's end and no question; ours keeps the header and the answer's start."""
    rows = runs.preference_rows(runs.PAIRS[:1])
    full = runs.group_rows(runs.our_groups("dpo", model, rows, tmp_path / "whole"))[0][0]
    data = {"max_length": 30, "truncation": "keep_end"}
    (group,) = runs.our_groups("dpo", model, rows, tmp_path, data=data)
    chosen, _ = trl_rows(trl_dpo(model, rows, tmp_path, max_length=30, truncation_mode="keep_end"))
    assert chosen[0] == full[-30:]
    assert 0 not in chosen[1]
    header = runs.load_tokenizer(model)("<|im_start|>assistant\n")["input_ids"]
    assert group.prompt_ids[-len(header) :] == header
    start = 31  # tokens of this prompt
    assert group.completions[0] == full[start : start + 30 - len(group.prompt_ids)]


def test_keep_start_differs_from_trl_for_a_prompt_that_fills_the_row(
    model: Path, tmp_path: Path
) -> None:
    """trl drops the pair; ours cuts the prompt before the header and leaves room for a token."""
    rows = runs.preference_rows()
    long = [i for i, ids in enumerate(prompt_ids(model)) if len(ids) >= 28]
    assert 0 < len(long) < len(rows)
    trainer = trl_dpo(model, rows, tmp_path, max_length=28, truncation_mode="keep_start")
    assert len(trainer.train_dataset) == len(rows) - len(long)
    # A pair whose first tokens are equal would be identical after the cut, and is dropped.
    data = {"max_length": 28, "truncation": "keep_start"}
    groups = runs.our_groups("dpo", model, rows, tmp_path, data=data)
    assert len(groups) > len(trainer.train_dataset)
    assert all(len(g.prompt_ids) + len(c) <= 28 for g in groups for c in g.completions)
    header = runs.load_tokenizer(model)("<|im_start|>assistant\n")["input_ids"]
    assert all(g.prompt_ids[-len(header) :] == header for g in groups)


def prompt_ids(model: Path) -> list[list[int]]:
    """Prompts of the data set as the tokenizer's own template writes them."""
    tokenizer = runs.load_tokenizer(model)
    return [
        tokenizer.apply_chat_template(runs.chat("user", p), add_generation_prompt=True)["input_ids"]
        for p, _, _ in runs.PAIRS
    ]


def test_reward_pairs_that_are_too_long_are_cut_not_dropped(model: Path, tmp_path: Path) -> None:
    """trl's RewardTrainer drops the pair; ours cuts it and keeps the token that is scored."""
    trl = pytest.importorskip("trl")
    rows = runs.preference_rows()
    trainer = trl.RewardTrainer(
        model=str(model),
        args=trl.RewardConfig(**runs.trl_arguments(tmp_path, max_length=42)),
        train_dataset=runs.dataset(rows),
        processing_class=runs.load_tokenizer(model),
    )
    data = {"max_length": 42, "truncation": "keep_start"}
    groups = runs.our_groups("reward", model, rows, tmp_path, data=data)
    assert len(groups) == len(rows) > len(trainer.train_dataset)
    eos = runs.load_tokenizer(model).eos_token_id
    assert all(completion[-1] == eos for g in groups for completion in g.completions)
    assert max(len(ids) for ids, _ in runs.group_rows(groups)) == 42
