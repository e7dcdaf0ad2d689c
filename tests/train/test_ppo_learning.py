"""PPO learns: a reward that a random model hardly ever earns rises while the KL is held."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import ppo_models as tiny

ASKED = [
    "停车方便吗？",
    "Is it far?",
    "服务怎样？",
    "How was breakfast?",
    "房间",
    "A review, please",
]


def vowels(prompts, completions, finished):
    """A quarter for every "e" and "o" of a text."""
    return [(text.count("e") + text.count("o")) / 4 for text in completions]


@pytest.mark.learning
def test_held_out_reward_rises_and_the_kl_is_held(tmp_path):
    held = tmp_path / "held.jsonl"
    rows = [{"prompt": f"{text} {i}"} for i in range(4) for text in ASKED]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    held.write_text("\n".join(lines), encoding="utf-8")
    made = tiny.build(
        tmp_path,
        vowels,
        eval={"prompts": str(held), "temperature": 1.0},
        train={"learning_rate": 2e-3, "lr_scheduler_type": "linear", "max_grad_norm": 1.0,
               "max_steps": 160, "per_device_train_batch_size": 64,
               "per_device_eval_batch_size": 24},
        ppo={"ppo_epochs": 4, "kl_coef": 0.2, "kl_target": 4.0, "kl_horizon": 200, "vf_coef": 0.5,
             "critic_learning_rate": 3e-3},
        rollout={"prompts_per_update": 8, "n": 8, "batch_size": 64, "max_new_tokens": 16},
    )  # fmt: skip
    before = made.evaluate()
    made.train()
    after = made.evaluate()
    # Before: 0.08, one letter in three texts. Gains of three seeds were 0.58, 0.42 and 0.29; a
    # quarter more is one "e" or "o" more in every text.
    gain = after["eval_score/mean"] - before["eval_score/mean"]
    print(f"reward {before['eval_score/mean']:.3f} → {after['eval_score/mean']:.3f}, "
          f"KL {after['eval_kl/sum']:.2f}")  # fmt: skip
    assert gain > 0.25
    assert before["eval_kl/sum"] == pytest.approx(0, abs=1e-3)
    assert 0.5 < after["eval_kl/sum"] < 8
    # The controller let the coefficient fall while the KL was low, and raised it again after.
    coefs = tiny.logged(made, "kl_coef")
    lowest = coefs.index(min(coefs))
    assert coefs[lowest] < 0.1
    assert max(coefs[lowest:]) > 1.5 * coefs[lowest]
    assert sum(tiny.logged(made, "explained_variance")[-5:]) / 5 > 0.3
    assert "skipped_steps" not in made.state.log_history[-1]
