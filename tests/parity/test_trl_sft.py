"""Supervised fine-tuning: five steps of ours and of trl's SFTTrainer, and the learned tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import parity_runs as runs
import pytest

from align.groups import collate

pytestmark = pytest.mark.parity

Rows = list[dict[str, Any]]


def completion_rows() -> Rows:
    """A prompt and its answer each."""
    return [
        {"prompt": runs.chat("user", p), "completion": runs.chat("assistant", c)}
        for p, c, _ in runs.PAIRS
    ]


def conversation_rows() -> Rows:
    """Conversations of one to three rounds, some with a system message."""
    rounds = [runs.chat("user", p) + runs.chat("assistant", c) for p, c, _ in runs.PAIRS]
    rows = []
    for i in range(len(rounds)):
        turns = [turn for part in (rounds * 2)[i : i + 1 + i % 3] for turn in part]
        system = runs.chat("system", "用一句话回答。") if i % 4 == 1 else []
        rows.append({"messages": system + turns})
    return rows


def trl_sft(model: Path, rows: Rows, run_dir: Path, lm: Any = None, **options) -> Any:
    trl = pytest.importorskip("trl")
    return trl.SFTTrainer(
        model=lm or str(model),
        args=trl.SFTConfig(**runs.trl_arguments(run_dir, **options)),
        train_dataset=runs.dataset(rows),
        processing_class=runs.load_tokenizer(model),
    )


def trl_rows(trainer: Any) -> list[tuple[list[int], list[int]]]:
    """(token ids, mask) of trl's prepared data; the first token is never predicted."""
    return [
        (row["input_ids"], [0] + [int(label != -100) for label in row["labels"][1:]])
        for row in trainer.train_dataset
    ]


CASES = {  # loss_on: rows, trl's options
    "completion": (completion_rows, {"completion_only_loss": True}),
    "assistant": (conversation_rows, {"assistant_only_loss": True}),
    "all": (conversation_rows, {}),
}


@pytest.mark.parametrize("loss_on", CASES)
def test_tokens_and_every_step_equal_trl(loss_on: str, model: Path, tmp_path: Path) -> None:
    make, options = CASES[loss_on]
    rows, sft = make(), {"loss_on": loss_on}
    trainer = trl_sft(model, rows, tmp_path, **options)
    groups = runs.our_groups("sft", model, rows, tmp_path / "rows", sft=sft)
    assert runs.group_rows(groups) == trl_rows(trainer)
    ours = runs.our_run("sft", model, rows, tmp_path, sft=sft)
    runs.assert_equal_runs(ours, runs.trl_run(trainer))


def test_the_learned_text_is_the_answers(model: Path, tmp_path: Path) -> None:
    """What both call learned tokens is, as text, each answer with its end-of-turn token."""
    rows = conversation_rows()
    tokenizer = runs.load_tokenizer(model)
    groups = runs.our_groups("sft", model, rows, tmp_path, sft={"loss_on": "assistant"})
    for row, (ids, mask) in zip(rows, runs.group_rows(groups), strict=True):
        learned = tokenizer.decode([t for t, m in zip(ids, mask, strict=True) if m])
        answers = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        assert learned == "".join(f"{answer}<|im_end|>" for answer in answers)


def test_completion_is_the_last_answer_alone(model: Path, tmp_path: Path) -> None:
    """A conversation with loss_on: completion is trl's prompt and completion columns."""
    rows = conversation_rows()
    split = [{"prompt": r["messages"][:-1], "completion": r["messages"][-1:]} for r in rows]
    trainer = trl_sft(model, split, tmp_path, completion_only_loss=True)
    sft = {"loss_on": "completion"}
    groups = runs.our_groups("sft", model, rows, tmp_path / "rows", sft=sft)
    assert runs.group_rows(groups) == trl_rows(trainer)
    ours = runs.our_run("sft", model, rows, tmp_path, sft=sft)
    runs.assert_equal_runs(ours, runs.trl_run(trainer))


def test_lora_equals_trl(model: Path, adapter: Path, tmp_path: Path) -> None:
    rows = completion_rows()
    policy = {"lora": {"r": 4, "alpha": 8, "path": str(adapter)}}
    ours = runs.our_run("sft", model, rows, tmp_path, policy=policy, sft={"loss_on": "completion"})
    trainer = trl_sft(model, rows, tmp_path, runs.load_peft(model, adapter))
    runs.assert_equal_runs(ours, runs.trl_run(trainer))


def test_accumulated_micro_batches_of_unlike_length_equal_trl(model: Path, tmp_path: Path) -> None:
    """Both divide by the tokens of the whole step, so unlike micro-batches change nothing."""
    rows = completion_rows()
    batch = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
    sft = {"loss_on": "completion"}
    ours = runs.our_run("sft", model, rows, tmp_path, train=batch, sft=sft)
    runs.assert_equal_runs(ours, runs.trl_run(trl_sft(model, rows, tmp_path, **batch)))
    # The same twelve rows without accumulation, four steps to the end of the epoch.
    whole = {"per_device_train_batch_size": 3, "max_steps": 4}
    theirs = runs.trl_run(trl_sft(model, rows, tmp_path, **whole))
    runs.assert_equal_runs(ours[:4], theirs, steps=4)


def test_packed_rows_equal_trls_padded_ones(model: Path, tmp_path: Path) -> None:
    """Several documents a row, isolated: the loss of the same documents each in a row."""
    rows = conversation_rows()
    batch = {"per_device_train_batch_size": 4}
    groups = runs.our_groups("sft", model, rows, tmp_path / "rows")
    packed = collate(groups[:4], pad_id=0, layout="packed", row_length=256)
    assert len(packed.input_ids) < 4
    ours = runs.our_run(
        "sft", model, rows, tmp_path, train=batch, data={"max_length": 256},
        sft={"loss_on": "assistant", "packing": True},
    )  # fmt: skip
    options = {"max_length": 256, "assistant_only_loss": True, **batch}
    runs.assert_equal_runs(ours, runs.trl_run(trl_sft(model, rows, tmp_path, **options)))


@pytest.mark.parametrize("truncation", ["keep_start", "keep_end"])
def test_cut_rows_equal_trl(truncation: str, model: Path, tmp_path: Path) -> None:
    """Where the prompt (keep_start), or header and answer (keep_end), fit, both cut alike."""
    room = {"keep_start": 44, "keep_end": 51}[truncation]
    rows, sft = completion_rows(), {"loss_on": "completion"}
    trainer = trl_sft(model, rows, tmp_path, max_length=room, truncation_mode=truncation)
    data = {"max_length": room, "truncation": truncation}
    found = runs.group_rows(
        runs.our_groups("sft", model, rows, tmp_path / "rows", data=data, sft=sft)
    )
    assert found == trl_rows(trainer)
    assert 3 <= sum(len(ids) == room for ids, _ in found) < len(found)
    ours = runs.our_run("sft", model, rows, tmp_path, data=data, sft=sft)
    runs.assert_equal_runs(ours, runs.trl_run(trainer))


def test_rows_without_a_learned_token_after_the_cut(model: Path, tmp_path: Path) -> None:
    """trl drops a prompt that fills the row; ours cuts it before the header and keeps a token."""
    rows, sft = completion_rows(), {"loss_on": "completion"}
    trainer = trl_sft(model, rows, tmp_path, max_length=28, truncation_mode="keep_start")
    data = {"max_length": 28, "truncation": "keep_start"}
    groups = runs.our_groups("sft", model, rows, tmp_path, data=data, sft=sft)
    assert len(groups) == len(rows) > len(trainer.train_dataset)
    header = runs.load_tokenizer(model)("<|im_start|>assistant\n")["input_ids"]
    assert all(group.prompt_ids[-len(header) :] == header for group in groups)
