"""DPO training runs: five steps of ours and of trl's DPOTrainer, loss and gradient norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import parity_runs as runs
import pytest

pytestmark = pytest.mark.parity

BETA = 0.5
NAMES = {"exo": "exo_pair", "sppo": "sppo_hard"}  # ours: trl's


def trl_dpo(model: Any, rows: list[dict], run_dir: Path, **options) -> Any:
    """trl's trainer. model: a folder, or a PeftModel."""
    trl = pytest.importorskip("trl")
    folder = options.pop("folder", model)
    arguments = runs.trl_arguments(run_dir, **{"beta": BETA, **options})
    return trl.DPOTrainer(
        model=str(model) if isinstance(model, Path) else model,
        args=trl.DPOConfig(**arguments),
        train_dataset=runs.dataset(rows),
        processing_class=runs.load_tokenizer(folder),
    )


@pytest.mark.parametrize(
    ("loss", "smoothing"),
    [
        ("sigmoid", 0.0),
        ("ipo", 0.0),
        ("hinge", 0.0),
        ("robust", 0.1),
        ("exo", 0.1),
        ("apo_zero", 0.0),
        ("apo_down", 0.0),
        ("sppo", 0.0),
        ("aot", 0.1),
        ("discopop", 0.0),
    ],
)
def test_every_step_equals_trl(loss: str, smoothing: float, model: Path, tmp_path: Path) -> None:
    rows = runs.preference_rows()
    dpo = {"beta": BETA, "loss_type": loss, "label_smoothing": smoothing}
    batch = {"per_device_train_batch_size": 4} if loss == "aot" else {}
    ours = runs.our_run("dpo", model, rows, tmp_path, dpo=dpo, train={**batch})
    trainer = trl_dpo(
        model, rows, tmp_path, loss_type=NAMES.get(loss, loss), label_smoothing=smoothing, **batch
    )
    runs.assert_equal_runs(ours, runs.trl_run(trainer))


def test_smoothed_sigmoid_equals_trls_aot_on_single_pairs(model: Path, tmp_path: Path) -> None:
    """trl's sigmoid has no label smoothing; its aot has, and sorting one row changes nothing."""
    rows = runs.preference_rows()
    dpo = {"beta": BETA, "loss_type": "sigmoid", "label_smoothing": 0.1}
    ours = runs.our_run("dpo", model, rows, tmp_path, dpo=dpo)
    single = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    trainer = trl_dpo(model, rows, tmp_path, loss_type="aot", label_smoothing=0.1, **single)
    runs.assert_equal_runs(ours, runs.trl_run(trainer))


def test_trls_sigmoid_ignores_label_smoothing(model: Path, tmp_path: Path) -> None:
    rows = runs.preference_rows()
    plain = runs.trl_run(trl_dpo(model, rows, tmp_path))
    smoothed = runs.trl_run(trl_dpo(model, rows, tmp_path, label_smoothing=0.1))
    assert [r["loss"] for r in smoothed] == [r["loss"] for r in plain]
    dpo = {"beta": BETA, "label_smoothing": 0.1}
    ours = runs.our_run("dpo", model, rows, tmp_path, dpo=dpo)
    # The gradient at βΔ = 0 is smaller by 1 − 2ε.
    assert ours[0]["grad_norm"] == pytest.approx(0.8 * plain[0]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "apo_zero"])
def test_lora_with_the_adapter_off_equals_trl(
    loss: str, model: Path, adapter: Path, tmp_path: Path
) -> None:
    rows = runs.preference_rows()
    lora = {"r": 4, "alpha": 8, "path": str(adapter)}
    policy = {"lora": lora, "reference": "adapter_off"}
    dpo = {"beta": BETA, "loss_type": loss}
    ours = runs.our_run("dpo", model, rows, tmp_path, policy=policy, dpo=dpo)
    trainer = trl_dpo(runs.load_peft(model, adapter), rows, tmp_path, folder=model, loss_type=loss)
    runs.assert_equal_runs(ours, runs.trl_run(trainer))


def test_a_trained_adapter_against_a_frozen_copy_equals_trl(
    model: Path, moved_adapter: Path, tmp_path: Path
) -> None:
    """trl keeps the adapter's start as a second adapter; reference: frozen is the same model."""
    rows = runs.preference_rows()
    lora = {"r": 4, "alpha": 8, "path": str(moved_adapter)}
    policy = {"lora": lora, "reference": "frozen"}
    ours = runs.our_run("dpo", model, rows, tmp_path, policy=policy, dpo={"beta": BETA})
    peft_model = runs.load_peft(model, moved_adapter)
    theirs = runs.trl_run(trl_dpo(peft_model, rows, tmp_path, folder=model))
    runs.assert_equal_runs(ours, theirs)


def test_a_trained_adapter_with_the_adapter_off_is_refused(
    model: Path, moved_adapter: Path, tmp_path: Path
) -> None:
    """trl has no such check: it would never compare with the base, ours must not either."""
    lora = {"r": 4, "alpha": 8, "path": str(moved_adapter)}
    policy = {"lora": lora, "reference": "adapter_off"}
    with pytest.raises(RuntimeError, match=r"is not 0 .*reference: frozen"):
        runs.our_run("dpo", model, runs.preference_rows(), tmp_path, policy=policy)


def test_cached_reference_equals_trls_precomputed_one(model: Path, tmp_path: Path) -> None:
    rows = runs.preference_rows()
    policy = {"reference": "cached"}
    ours = runs.our_run("dpo", model, rows, tmp_path, policy=policy, dpo={"beta": BETA})
    trainer = trl_dpo(model, rows, tmp_path, precompute_ref_log_probs=True)
    runs.assert_equal_runs(ours, runs.trl_run(trainer))


@pytest.mark.parametrize("layout", ["grouped", "plain"])
def test_accumulated_micro_batches_equal_trl(layout: str, model: Path, tmp_path: Path) -> None:
    """With as many pairs in each micro-batch, a mean of means is the mean."""
    rows = runs.preference_rows(runs.PAIRS * 2)
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    ours = runs.our_run(
        "dpo", model, rows, tmp_path, train=batch, policy={"layout": layout}, dpo={"beta": BETA}
    )
    runs.assert_equal_runs(ours, runs.trl_run(trl_dpo(model, rows, tmp_path, **batch)))


def test_a_ragged_last_micro_batch_differs_from_trl(model: Path, tmp_path: Path) -> None:
    """Three pairs in micro-batches of two: trl counts the third twice, ours counts all alike."""
    rows = runs.preference_rows(runs.PAIRS[:3])
    dpo = {"beta": BETA}
    whole = {"per_device_train_batch_size": 3, "max_steps": 1}
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 1}
    reference = runs.trl_run(trl_dpo(model, rows, tmp_path, **whole))
    runs.assert_equal_runs(
        runs.our_run("dpo", model, rows, tmp_path / "whole", train=whole, dpo=dpo), reference, 1
    )
    runs.assert_equal_runs(
        runs.our_run("dpo", model, rows, tmp_path / "cut", train=cut, dpo=dpo), reference, 1
    )
    theirs = runs.trl_run(trl_dpo(model, rows, tmp_path, **cut))
    gap = abs(theirs[0]["grad_norm"] / reference[0]["grad_norm"] - 1)
    assert gap > 3e-3  # thirty times what counts as equal
    # What trl computes is the batch in which the third pair stands twice.
    twice = runs.preference_rows([*runs.PAIRS[:3], runs.PAIRS[2]])
    four = {"per_device_train_batch_size": 4, "max_steps": 1}
    weighted = runs.our_run("dpo", model, twice, tmp_path / "twice", train=four, dpo=dpo)
    runs.assert_equal_runs(weighted, theirs, 1)
