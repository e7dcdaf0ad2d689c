"""SimPO and CPO, the losses without a reference: five steps of ours and of trl's CPOTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import parity_runs as runs
import pytest

pytestmark = pytest.mark.parity

BETA = 0.5


def trl_cpo(model: Path, rows: list[dict], run_dir: Path, **options) -> Any:
    cpo = pytest.importorskip("trl.experimental.cpo")
    return cpo.CPOTrainer(
        model=runs.load_lm(model),
        args=cpo.CPOConfig(**runs.trl_arguments(run_dir, beta=BETA, **options)),
        train_dataset=runs.dataset(rows),
        processing_class=runs.load_tokenizer(model),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_simpo_equals_trl(smoothing: float, model: Path, tmp_path: Path) -> None:
    rows = runs.preference_rows()
    dpo = {"beta": BETA, "loss_type": "simpo", "label_smoothing": smoothing}
    ours = runs.our_run("dpo", model, rows, tmp_path, dpo=dpo)
    options = {"loss_type": "simpo", "cpo_alpha": 0.0, "label_smoothing": smoothing}
    runs.assert_equal_runs(ours, runs.trl_run(trl_cpo(model, rows, tmp_path, **options)))


def test_cpo_equals_trl_one_pair_at_a_time(model: Path, tmp_path: Path) -> None:
    """One pair a micro-batch: trl's mean over tokens is then ours over the answer of each pair."""
    rows = runs.preference_rows()
    dpo = {"beta": BETA, "loss_type": "cpo"}
    ours = runs.our_run("dpo", model, rows, tmp_path, dpo=dpo)
    single = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    theirs = runs.trl_run(trl_cpo(model, rows, tmp_path, loss_type="sigmoid", **single))
    runs.assert_equal_runs(ours, theirs)


def test_cpo_nll_differs_from_trl_with_several_pairs(model: Path, tmp_path: Path) -> None:
    """trl's NLL weighs tokens, so its loss depends on how a batch is cut; ours does not."""
    rows = runs.preference_rows(runs.PAIRS[2:4])  # answers of 21 and 4 tokens
    dpo = {"beta": BETA, "loss_type": "cpo"}
    pair = {"per_device_train_batch_size": 2, "max_steps": 1}
    single = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 1}
    losses = {
        (side, name): run[0]["loss"]
        for name, batch in (("pair", pair), ("single", single))
        for side, run in (
            ("ours", runs.our_run("dpo", model, rows, tmp_path / name, dpo=dpo, train=batch)),
            ("trl", runs.trl_run(trl_cpo(model, rows, tmp_path, loss_type="sigmoid", **batch))),
        )
    }
    assert losses["ours", "pair"] == pytest.approx(losses["ours", "single"], rel=1e-4)
    assert losses["trl", "single"] == pytest.approx(losses["ours", "single"], rel=1e-4)
    assert abs(losses["trl", "pair"] / losses["trl", "single"] - 1) > 1e-3
