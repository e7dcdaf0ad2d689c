"""export_model --checkpoint: a checkpoint becomes the folder that final/ is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))
import small_runs as runs

from align.config import UserError
from align.export.command import main

STEPS = ("--train.save_steps", 2, "--train.max_steps", 4, *runs.CONSTANT)
LORA = ("--policy.lora", "{r: 4}")
CASES = [
    ("sft", ()), ("dpo", LORA), ("orpo", ()), ("pretrain", ()),
    ("ppo", (*LORA, "--ppo.critic", "adapter")), ("ppo", ()),
]  # fmt: skip


def same(a: Path, b: Path, kind=AutoModelForCausalLM) -> bool:
    first, second = (kind.from_pretrained(folder).state_dict() for folder in (a, b))
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "extra"), CASES)
def test_the_last_checkpoint_is_final_and_an_earlier_one_is_not(method, extra, tmp_path, capsys):
    run = runs.train(method, tmp_path / "run", *STEPS, *extra)
    for step in (2, 4):
        words = ["--checkpoint", str(run / f"checkpoint-{step}"), "--output", str(tmp_path / "out")]
        assert main([*words, "--overwrite"]) == 0
        assert same(tmp_path / "out", run / "final") is (step == 4)
    assert "parameters" in capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} - {".cache"} == {"out", "run"}


def test_a_reward_models_checkpoint_is_a_scored_model_without_contract(tmp_path, capsys):
    run = runs.train("reward", tmp_path / "run", *STEPS)
    words = ["--checkpoint", str(run / "checkpoint-4"), "--output", str(tmp_path / "out")]
    assert main(words) == 0
    assert same(tmp_path / "out", run / "final", AutoModelForSequenceClassification)
    assert "without a contract" in capsys.readouterr().out
    with pytest.raises(UserError, match="dtype='bfloat16' is for causal models"):
        main([*words, "--overwrite", "--dtype", "bfloat16"])
    with pytest.raises(UserError, match="to='int8' is for causal models"):
        main([*words, "--overwrite", "--to", "int8"])


def test_what_is_no_checkpoint_is_refused(tmp_path):
    run = runs.train("sft", tmp_path / "run", *STEPS)
    out = ["--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"is no checkpoint: trainer_state.json or model.safetens"):
        main(["--checkpoint", str(run / "final"), *out])
    scheduler = run / "checkpoint-4" / "scheduler.pt"
    whole = scheduler.read_bytes()
    scheduler.write_bytes(whole[:-1] + b"x")
    with pytest.raises(UserError, match=r"is damaged: scheduler\.pt"):
        main(["--checkpoint", str(run / "checkpoint-4"), *out])
    scheduler.write_bytes(whole)
    (run / "checkpoint-2" / "complete.json").unlink()
    with pytest.raises(UserError, match="was not finished"):
        main(["--checkpoint", str(run / "checkpoint-2"), *out])
    moved = tmp_path / "elsewhere" / "checkpoint-4"
    moved.parent.mkdir()
    (run / "checkpoint-4").rename(moved)
    with pytest.raises(UserError, match="belongs to no run"):
        main(["--checkpoint", str(moved), *out])
    assert not (tmp_path / "out").exists()


def test_a_base_that_has_changed_is_refused(tmp_path):
    import shutil

    base = shutil.copytree(runs.base(), tmp_path / "base")
    run = runs.train("sft", tmp_path / "run", *STEPS, *LORA, "--policy.path", base)
    (base / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="has changed or is gone"):
        main(["--checkpoint", str(run / "checkpoint-4"), "--output", str(tmp_path / "out")])
