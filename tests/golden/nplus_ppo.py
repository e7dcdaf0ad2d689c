"""PPO as the N+ code computes it, on padded arrays, written anew from the published equations.

Huang et al. 2024 (arXiv:2403.17031), sections on rewards, whitening, GAE and the loss; their code
is github.com/vwxyzjn/summarize_from_feedback_details (the version with padding_mask_p1), which
trl's experimental PPO (1.12 and before) follows. Nothing here imports align: it is what align is
held to. All arrays are float64, (C, T): C completions padded to T columns, where T is one more than
the longest completion, so that every completion has a column after its last token.

    python tests/golden/nplus_ppo.py > tests/golden/nplus_step.json      records a step
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np


@dataclass
class Settings:
    """Names as in the N+ code; after_eos False: the score on the last token."""

    kl_coef: float = 0.05
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    whiten_rewards: bool = False
    after_eos: bool = True
    kl_estimator: str = "k1"
    temperature: float = 1.0


def log_softmax(logits: np.ndarray) -> np.ndarray:
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def token_logprobs(logits: np.ndarray, tokens: np.ndarray, temperature: float) -> np.ndarray:
    """logits (C, T, V), tokens (C, T). Returns (C, T)."""
    return np.take_along_axis(log_softmax(logits / temperature), tokens[..., None], -1)[..., 0]


def entropy(logits: np.ndarray, temperature: float) -> np.ndarray:
    logp = log_softmax(logits / temperature)
    return -(np.exp(logp) * logp).sum(-1)


def masked_mean(x: np.ndarray, keep: np.ndarray) -> float:
    return float((x * keep).sum() / keep.sum())


def masked_whiten(x: np.ndarray, keep: np.ndarray, shift_mean: bool = True) -> np.ndarray:
    mean, count = masked_mean(x, keep), keep.sum()
    variance = masked_mean((x - mean) ** 2, keep) * count / (count - 1)
    scaled = (x - mean) / np.sqrt(variance + 1e-8)
    return scaled if shift_mean else scaled + mean


def masks(lengths: np.ndarray, width: int, after_eos: bool) -> tuple[np.ndarray, np.ndarray]:
    """Columns that are tokens, and columns with a value; lengths (C,)."""
    column = np.arange(width)[None, :]
    tokens = column < lengths[:, None]
    return tokens, column < (lengths + 1)[:, None] if after_eos else tokens


def rollout(logp, ref_logp, values, scores, lengths, s: Settings) -> dict[str, np.ndarray]:
    """Rewards, advantages and returns (C, T). scores (C,)."""
    tokens, valued = masks(lengths, logp.shape[1], s.after_eos)
    values = np.where(valued, values, 0.0)
    log_r = np.where(tokens, ref_logp - logp, 0.0)
    kl = -log_r if s.kl_estimator == "k1" else np.exp(log_r) - 1 - log_r
    rewards = -s.kl_coef * kl
    rewards[np.arange(len(lengths)), lengths if s.after_eos else lengths - 1] += scores
    if s.whiten_rewards:
        rewards = np.where(valued, masked_whiten(rewards, valued, shift_mean=False), 0.0)
    advantages, last = np.zeros_like(rewards), np.zeros(len(lengths))
    for t in reversed(range(rewards.shape[1])):
        ahead = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        last = rewards[:, t] + s.gamma * ahead - values[:, t] + s.gamma * s.lam * last
        advantages[:, t] = last
    returns = advantages + values
    white = np.where(tokens, masked_whiten(advantages, tokens), 0.0)
    return {"rewards": rewards, "advantages": white, "returns": returns}


def step(logp, old_logp, values, old_values, made, lengths, s: Settings) -> dict[str, float]:
    """Losses and figures of one minibatch that is one micro-batch."""
    tokens, valued = masks(lengths, logp.shape[1], s.after_eos)
    values, old_values = np.where(valued, values, 0.0), np.where(valued, old_values, 0.0)
    clipped = np.clip(values, old_values - s.cliprange_value, old_values + s.cliprange_value)
    one, two = (values - made["returns"]) ** 2, (clipped - made["returns"]) ** 2
    vf_loss = 0.5 * masked_mean(np.maximum(one, two), valued)
    difference = np.where(tokens, logp - old_logp, 0.0)
    ratio = np.exp(difference)
    losses = -made["advantages"] * ratio
    losses2 = -made["advantages"] * np.clip(ratio, 1 - s.cliprange, 1 + s.cliprange)
    pg_loss = masked_mean(np.maximum(losses, losses2), tokens)
    return {
        "pg_loss": pg_loss,
        "vf_loss": vf_loss,
        "loss": pg_loss + s.vf_coef * vf_loss,
        "pg_clipfrac": masked_mean((losses2 > losses).astype(float), tokens),
        "vf_clipfrac": masked_mean((two > one).astype(float), valued),
        # The N+ code and trl average this one over padding too.
        "approxkl_unmasked": float(0.5 * (difference**2).mean()),
        "approxkl": masked_mean(0.5 * difference**2, tokens),
        "approxkl_k3": masked_mean(ratio - 1 - difference, tokens),
        "ratio_max": float(ratio[tokens].max()),
    }


def random_inputs(seed: int, count: int = 4, longest: int = 6, vocabulary: int = 7) -> dict:
    """Logits of the policy that sampled, the reference and the updated policy, and all else."""
    drawn = np.random.default_rng(seed)
    width = longest + 1
    lengths = drawn.integers(1, longest + 1, count)
    lengths[0] = longest
    old = drawn.normal(size=(count, width, vocabulary))
    return {
        "tokens": drawn.integers(0, vocabulary, (count, width)),
        "lengths": lengths,
        "old_logits": old,
        "ref_logits": old + 0.4 * drawn.normal(size=old.shape),
        "new_logits": old + 0.3 * drawn.normal(size=old.shape),
        "old_values": 0.5 * drawn.normal(size=(count, width)),
        "new_values": 0.5 * drawn.normal(size=(count, width)),
        "scores": drawn.normal(size=count),
    }


def whole_step(inputs: dict, s: Settings) -> dict[str, object]:
    """From logits to the figures of the first minibatch over all completions."""
    tokens = inputs["tokens"]
    old, ref, new = (
        token_logprobs(inputs[f"{name}_logits"], tokens, s.temperature)
        for name in ("old", "ref", "new")
    )
    made = rollout(old, ref, inputs["old_values"], inputs["scores"], inputs["lengths"], s)
    figures = step(new, old, inputs["new_values"], inputs["old_values"], made, inputs["lengths"], s)
    return made | figures


def plain(value):
    return value.tolist() if isinstance(value, np.ndarray) else value


def main() -> None:
    settings = Settings(kl_coef=0.1, gamma=0.99, temperature=0.8, whiten_rewards=True)
    # Rounded first: the file then holds exactly what was computed from.
    inputs = {
        n: np.round(x, 6) if x.dtype.kind == "f" else x
        for n, x in random_inputs(2403, count=3, longest=4, vocabulary=5).items()
    }
    record = {"settings": asdict(settings)}
    record["inputs"] = {n: plain(x) for n, x in inputs.items()}
    record["outputs"] = {n: plain(x) for n, x in whole_step(inputs, settings).items()}
    parts = []
    for section, entries in record.items():
        rows = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in entries.items()]
        parts.append(f" {json.dumps(section)}: {{\n" + ",\n".join(rows) + "\n }")
    print("{\n" + ",\n".join(parts) + "\n}")


if __name__ == "__main__":
    main()
