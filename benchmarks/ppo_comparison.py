"""PPO against trl 1.12, the last release that has it: whole updates, rollout and passes.

Both sides sample from the same model under the same prompts, and score with the same reward model.
Samples differ, so losses cannot be compared step by step. A row stands when both sides trained on
equally many tokens and agree on what the samples say about the model: the entropy of its choices,
nats a token, over all rollouts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from comparison import Side, alternate, row_of

# Of a mean over some thousand tokens of few prompts, in another order on either side.
ENTROPY_TOLERANCE = 0.15


def compare_ppo(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Prepare, run both sides in turn, return the table's row."""
    from floor import ppo_floor
    from prepare import model_folder, write_prompts
    from run import peer_python

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = model_folder(options.model, folder / "model", "ppo", options.lora)
    model_folder(options.reward_model or options.model, folder / "reward", "reward", False)
    updates = options.updates + 1  # the first warms up
    prompts = min(options.rows, 16) if options.rows == 128 else options.rows
    write_prompts(options, tokenizer, folder, prompts * updates)
    config = folder / "align.yaml"
    config.write_text(
        f"policy: {{path: null}}\nrewards: [{{kind: model, path: {folder}/reward}}]\n",
        encoding="utf-8",
    )
    steps = updates * options.ppo_epochs
    job = {
        "method": "ppo", "model": str(folder / "model"), "reward": str(folder / "reward"),
        "lora": options.lora, "batch": options.batch, "max_length": options.max_length,
        "prompts": prompts, "updates": updates, "new_tokens": options.new_tokens,
        "epochs": options.ppo_epochs, "learning_rate": options.learning_rate,
        "dtype": options.dtype, "steps_a_unit": 1,
    }  # fmt: skip
    ours = Side("align", sys.executable, "ours.py", {
        **job, "data": str(folder / "ours.jsonl"), "config": str(config),
        "steps": steps, "steps_a_unit": options.ppo_epochs,
        "options": dict(word.split("=", 1) for word in options.option),
    })  # fmt: skip
    peer = Side("trl", peer_python(options), "trl_ppo_side.py", {
        **job, "data": str(folder / "peer.jsonl"),
    })  # fmt: skip
    alternate([ours, peer], folder, options.repeats, options.threads)
    useful = prompts * options.new_tokens
    label = options.label or f"ppo {'LoRA' if options.lora else 'full'}, {Path(options.model).name}"
    critic = ours.job["options"].get("ppo.critic") or ("adapter" if options.lora else "separate")
    floor = ppo_floor(options, folder / "model", prompts, critic)
    row = row_of(label, "ppo", ours, peer, useful, floor)
    row["losses"], row["valid"] = _agreement(ours, peer, options.new_tokens)
    print(json.dumps({"our last log": ours.runs[-1]["logs"][-1:]}), file=sys.stderr)
    return row


def _agreement(ours: Side, peer: Side, new_tokens: int) -> tuple[str, bool]:
    """What both sides say of all their rollouts, and whether it is the same."""
    mine = [log for log in ours.figures if "length/mean" in log]
    theirs = [log for log in peer.figures if "objective/entropy" in log]
    length = statistics.mean(log["length/mean"] for log in mine)
    # trl's is −log p of what was sampled, which has the entropy as its mean.
    a = statistics.mean(log["entropy"] for log in mine)
    b = statistics.mean(log["objective/entropy"] for log in theirs) / new_tokens
    text = f"entropy {a:.3f} / {b:.3f} nats a token, {length:.1f} tokens a completion"
    return text, abs(a - b) <= ENTROPY_TOLERANCE * b and length >= 0.95 * new_tokens
