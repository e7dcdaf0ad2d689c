"""Reward model training: five steps of ours and of trl's RewardTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import parity_runs as runs
import pytest
import torch

pytestmark = pytest.mark.parity


def our_head(model: Path, rows: list[dict], run_dir: Path) -> dict[str, torch.Tensor]:
    """Weights of the score head that align starts from."""
    from align.heads import find_head
    from align.policy import Policy

    policy = Policy.load(runs.our_config("reward", model, rows, run_dir), role="reward")
    return {n: t.clone() for n, t in find_head(policy.module.lm)[1].state_dict().items()}


def trl_reward(
    model: Path, rows: list[dict], run_dir: Path, adapter: Path | None = None, **options
) -> Any:
    """trl's trainer on a classifier with our head; an adapter is trained together with it."""
    trl = pytest.importorskip("trl")
    from transformers import AutoModelForSequenceClassification

    classifier: Any = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=1, dtype=torch.float32
    )
    classifier.score.load_state_dict(our_head(model, rows, run_dir / "head"))
    if adapter is not None:
        classifier = runs.load_peft(model, adapter, classifier)
        classifier.base_model.model.score.requires_grad_(True)
    return trl.RewardTrainer(
        model=classifier,
        args=trl.RewardConfig(**runs.trl_arguments(run_dir, **options)),
        train_dataset=runs.dataset(rows),
        processing_class=runs.load_tokenizer(model),
    )


@pytest.mark.parametrize("case", ["plain", "margin", "centred", "margin and centred"])
def test_every_step_equals_trl(case: str, model: Path, tmp_path: Path) -> None:
    margin = "margin" in case
    rows = runs.preference_rows(margins=runs.STRENGTHS if margin else None)
    coef = 0.3 if "centred" in case else 0.0
    reward = {"margin": margin, "center_coef": coef}
    ours = runs.our_run("reward", model, rows, tmp_path, reward=reward)
    options = {"center_rewards_coefficient": coef} if coef else {}
    theirs = runs.trl_run(trl_reward(model, rows, tmp_path, **options))
    runs.assert_equal_runs(ours, theirs)
    assert [r["accuracy"] for r in ours] == pytest.approx([r["accuracy"] for r in theirs])


def test_a_margin_that_is_not_asked_for_is_not_used(model: Path, tmp_path: Path) -> None:
    """trl uses a margin column wherever there is one; ours only with reward.margin."""
    rows = runs.preference_rows(margins=runs.STRENGTHS)
    ours = runs.our_run("reward", model, rows, tmp_path / "with")
    without = runs.trl_run(trl_reward(model, runs.preference_rows(), tmp_path))
    runs.assert_equal_runs(ours, without)
    theirs = runs.trl_run(trl_reward(model, rows, tmp_path))
    assert abs(theirs[0]["loss"] / ours[0]["loss"] - 1) > 0.05


def test_lora_equals_trl(model: Path, adapter: Path, tmp_path: Path) -> None:
    rows = runs.preference_rows()
    policy = {"lora": {"r": 4, "alpha": 8, "path": str(adapter)}}
    ours = runs.our_run("reward", model, rows, tmp_path, policy=policy)
    runs.assert_equal_runs(ours, runs.trl_run(trl_reward(model, rows, tmp_path, adapter)))


def test_accumulated_micro_batches_equal_trl(model: Path, tmp_path: Path) -> None:
    rows = runs.preference_rows(runs.PAIRS * 2)
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    ours = runs.our_run("reward", model, rows, tmp_path, train=batch)
    runs.assert_equal_runs(ours, runs.trl_run(trl_reward(model, rows, tmp_path, **batch)))


def test_a_ragged_last_micro_batch_differs_from_trl(model: Path, tmp_path: Path) -> None:
    """Three pairs by two: trl's loss is (l1 + l2) / 4 + l3 / 2, ours the mean of the three."""
    rows = runs.preference_rows(runs.PAIRS[:3])
    alone = [
        runs.trl_run(
            trl_reward(model, [row], tmp_path / str(i), max_steps=1, per_device_train_batch_size=1)
        )[0]["loss"]
        for i, row in enumerate(rows)
    ]
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 1}
    ours = runs.our_run("reward", model, rows, tmp_path, train=batch)
    theirs = runs.trl_run(trl_reward(model, rows, tmp_path, **batch))
    assert ours[0]["loss"] == pytest.approx(sum(alone) / 3, rel=1e-4)
    weighted = (alone[0] + alone[1]) / 4 + alone[2] / 2
    assert theirs[0]["loss"] == pytest.approx(weighted, rel=1e-4)
    assert abs(weighted / ours[0]["loss"] - 1) > 0.01
