"""ORPO training: five steps of ours and of trl's experimental ORPOTrainer.

trl's NLL runs over prompt and answer, ours over the answer. `answer_nll` changes that one term of
trl's trainer, so that everything else is compared; the difference itself has its own tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import parity_runs as runs
import pytest

pytestmark = pytest.mark.parity

BETA = 0.7


def answer_nll(trainer_class: type) -> type:
    """trl's trainer with −(mean log-prob of a chosen answer), averaged over pairs, as NLL."""

    class AnswerNll(trainer_class):
        def concatenated_forward(self, model: Any, batch: Any) -> tuple:
            """The chosen log-probs are already per-token means of the answers."""
            chosen, rejected, *logits, _ = super().concatenated_forward(model, batch)
            return (chosen, rejected, *logits, -chosen.mean())

    return AnswerNll


def trl_orpo(
    model: Path, rows: list[dict], run_dir: Path, *, stock: bool = False, lm: Any = None, **options
) -> Any:
    """trl's trainer, as it is (stock) or with the NLL of the answer alone."""
    orpo = pytest.importorskip("trl.experimental.orpo")
    kind = orpo.ORPOTrainer if stock else answer_nll(orpo.ORPOTrainer)
    options = {"beta": BETA, **options}
    return kind(
        model=lm or runs.load_lm(model),
        args=orpo.ORPOConfig(**runs.trl_arguments(run_dir, **options)),
        train_dataset=runs.dataset(rows),
        processing_class=runs.load_tokenizer(model),
    )


def test_every_step_equals_trl(model: Path, tmp_path: Path) -> None:
    rows = runs.preference_rows()
    ours = runs.our_run("orpo", model, rows, tmp_path, orpo={"beta": BETA})
    theirs = runs.trl_run(trl_orpo(model, rows, tmp_path))
    runs.assert_equal_runs(ours, theirs)
    figures = {
        "loss/odds": lambda row: -row["log_odds_ratio"],
        "log_odds": lambda row: row["log_odds_chosen"],
        "loss/sft": lambda row: row["nll_loss"],
        "rewards/chosen": lambda row: row["rewards/chosen"],
        "rewards/accuracies": lambda row: row["rewards/accuracies"],
    }
    for name, read in figures.items():
        expected = pytest.approx([read(row) for row in theirs], rel=1e-4)
        assert [row[name] for row in ours] == expected, name


def test_lora_equals_trl(model: Path, adapter: Path, tmp_path: Path) -> None:
    rows = runs.preference_rows()
    policy = {"lora": {"r": 4, "alpha": 8, "path": str(adapter)}}
    ours = runs.our_run("orpo", model, rows, tmp_path, policy=policy, orpo={"beta": BETA})
    lm = runs.load_peft(model, adapter)
    runs.assert_equal_runs(ours, runs.trl_run(trl_orpo(model, rows, tmp_path, lm=lm)))


def test_accumulated_micro_batches_equal_trl(model: Path, tmp_path: Path) -> None:
    rows = runs.preference_rows(runs.PAIRS * 2)
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    ours = runs.our_run("orpo", model, rows, tmp_path, train=batch, orpo={"beta": BETA})
    runs.assert_equal_runs(ours, runs.trl_run(trl_orpo(model, rows, tmp_path, **batch)))


def test_answers_cut_at_their_end_equal_trl(model: Path, tmp_path: Path) -> None:
    rows = runs.preference_rows()
    data = {"max_length": 42, "truncation": "keep_start"}
    ours = runs.our_run("orpo", model, rows, tmp_path, data=data, orpo={"beta": BETA})
    runs.assert_equal_runs(ours, runs.trl_run(trl_orpo(model, rows, tmp_path, max_length=42)))


def test_odds_term_equals_stock_trl_and_its_nll_is_over_prompt_and_answer(
    model: Path, tmp_path: Path
) -> None:
    """trl's NLL is our SFT loss with loss_on: all; ours is the one with loss_on: completion."""
    rows = runs.preference_rows(runs.PAIRS[:1])
    one = {"per_device_train_batch_size": 1, "max_steps": 1}
    ours = runs.our_run("orpo", model, rows, tmp_path / "o", train=one, orpo={"beta": BETA})[0]
    theirs = runs.trl_run(trl_orpo(model, rows, tmp_path, stock=True, **one))[0]
    assert ours["loss/odds"] == pytest.approx(-theirs["log_odds_ratio"], rel=1e-4)
    conversations = [{"messages": rows[0]["prompt"] + rows[0]["chosen"]}]
    sft = {
        loss_on: runs.our_run(
            "sft", model, conversations, tmp_path / loss_on, train=one, sft={"loss_on": loss_on}
        )[0]["loss"]
        for loss_on in ("all", "completion")
    }
    assert theirs["nll_loss"] == pytest.approx(sft["all"], rel=1e-4)
    assert ours["loss/sft"] == pytest.approx(sft["completion"], rel=1e-4)
    assert abs(sft["all"] / sft["completion"] - 1) > 1e-3
    assert theirs["loss"] == pytest.approx(sft["all"] + BETA * ours["loss/odds"], rel=1e-4)
    assert ours["loss"] == pytest.approx(sft["completion"] + BETA * ours["loss/odds"], rel=1e-4)


def test_stock_nll_weighs_tokens_where_ours_weighs_pairs(model: Path, tmp_path: Path) -> None:
    """Two pairs: trl's NLL is the mean over all their tokens, ours the mean of two means."""
    rows = runs.preference_rows(runs.PAIRS[:2])
    two = {"max_steps": 1}
    theirs = runs.trl_run(trl_orpo(model, rows, tmp_path, stock=True, **two))[0]["nll_loss"]
    conversations = [{"messages": row["prompt"] + row["chosen"]} for row in rows]
    tokens = runs.our_run(
        "sft", model, conversations, tmp_path / "all", train=two, sft={"loss_on": "all"}
    )
    assert theirs == pytest.approx(tokens[0]["loss"], rel=1e-4)
    alone = [
        runs.our_run(
            "orpo", model, [row], tmp_path / str(i),
            train={"max_steps": 1, "per_device_train_batch_size": 1},
        )[0]["loss/sft"]
        for i, row in enumerate(rows)
    ]  # fmt: skip
    ours = runs.our_run("orpo", model, rows, tmp_path / "both", train=two)[0]["loss/sft"]
    assert ours == pytest.approx(sum(alone) / 2, rel=1e-4)
