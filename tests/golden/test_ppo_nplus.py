"""PPO against the N+ code's formulas: equations alone, a recorded step, and the trainer itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import nplus_ppo as nplus
import ppo_models as tiny

from align import advantages as adv
from align import losses
from align.heads import find_head
from align.logprobs import token_logps
from align.rewards.shaping import extended_offsets

HERE = Path(__file__).parent
SETTINGS = [
    nplus.Settings(),
    nplus.Settings(after_eos=False),
    nplus.Settings(whiten_rewards=True, kl_coef=0.3),
    nplus.Settings(after_eos=False, whiten_rewards=True, kl_estimator="k3"),
    nplus.Settings(gamma=0.9, lam=0.7, temperature=0.7, cliprange=0.1, cliprange_value=0.05),
]


def ours(inputs: dict, s: nplus.Settings) -> dict[str, object]:
    """The same step with align's functions, on flat tensors without padding, in float64."""
    lengths = torch.as_tensor(inputs["lengths"])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    tokens, valued = nplus.masks(inputs["lengths"], inputs["tokens"].shape[1], s.after_eos)
    tokens, valued = torch.as_tensor(tokens), torch.as_tensor(valued)
    labels = torch.as_tensor(inputs["tokens"])[tokens]

    def logps(name: str) -> torch.Tensor:
        # The head's input is the logits, and the head does nothing.
        rows = torch.as_tensor(inputs[f"{name}_logits"])[tokens]
        return token_logps(rows, labels, lambda x: x, temperature=s.temperature)[0]

    old, ref, new = logps("old"), logps("ref"), logps("new")
    rewards = adv.token_rewards(
        adv.KL_ESTIMATORS[s.kl_estimator](old, ref), torch.as_tensor(inputs["scores"]), offsets,
        kl_coef=s.kl_coef, score_at="after_eos" if s.after_eos else "eos",
    )  # fmt: skip
    if s.whiten_rewards:
        rewards = adv.whiten(rewards, shift_mean=False)
    old_values, new_values = (
        torch.as_tensor(inputs[f"{name}_values"])[valued] for name in ("old", "new")
    )
    bounds = extended_offsets(offsets) if s.after_eos else offsets
    advantages, returns = adv.gae(rewards, old_values, bounds, s.gamma, s.lam)
    acting = tokens[valued]  # the positions with a value that are tokens
    white = adv.whiten(advantages[acting])
    policy, stats = losses.ppo_policy(new, old, white, clip_range=s.cliprange)
    value, value_stats = losses.ppo_value(new_values, old_values, returns, clip=s.cliprange_value)
    return {
        "rewards": rewards, "advantages": white, "returns": returns,
        "pg_loss": policy.mean(), "vf_loss": value.mean(),
        "loss": policy.mean() + s.vf_coef * value.mean(),
        "pg_clipfrac": stats["clip_frac"].mean(),
        "vf_clipfrac": value_stats["value_clip_frac"].mean(),
        "approxkl_k3": stats["approx_kl"].mean(), "ratio_max": stats["ratio"].max(),
    }  # fmt: skip


def compare(inputs: dict, theirs: dict, s: nplus.Settings, tolerance: float = 1e-12) -> None:
    tokens, valued = nplus.masks(inputs["lengths"], inputs["tokens"].shape[1], s.after_eos)
    for name, value in ours(inputs, s).items():
        expected = np.asarray(theirs[name])
        if expected.ndim:
            expected = expected[tokens if name == "advantages" else valued]
        found = value.numpy()
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("s", SETTINGS)
@pytest.mark.parametrize("seed", range(4))
def test_item09_to_item20_a_step_equals_the_published_formulas(s, seed):
    inputs = nplus.random_inputs(seed)
    theirs = nplus.whole_step(inputs, s)
    assert theirs["pg_clipfrac"] > 0
    assert theirs["vf_clipfrac"] > 0
    compare(inputs, theirs, s)


def test_a_recorded_step():
    """The file, made by nplus_ppo.py, holds the oracle still too."""
    record = json.loads((HERE / "nplus_step.json").read_text(encoding="utf-8"))
    settings = nplus.Settings(**record["settings"])
    inputs = {name: np.array(x) for name, x in record["inputs"].items()}
    compare(inputs, record["outputs"], settings, 1e-9)
    # And a few of its figures written down here.
    out = record["outputs"]
    assert out["pg_loss"] == pytest.approx(0.18830900528)
    assert out["vf_loss"] == pytest.approx(2.17180872875)
    assert out["pg_clipfrac"] == pytest.approx(1 / 10)
    assert out["vf_clipfrac"] == pytest.approx(3 / 13)


def test_approx_kl_differs_from_theirs_in_third_order_and_by_their_padding():
    inputs = nplus.random_inputs(1)
    s = nplus.Settings()
    theirs = nplus.whole_step(inputs, s)
    mine = float(ours(inputs, s)["approxkl_k3"])
    tokens, _ = nplus.masks(inputs["lengths"], inputs["tokens"].shape[1], True)
    # The published figure is a mean over all columns: smaller by the share of tokens.
    assert theirs["approxkl_unmasked"] == pytest.approx(theirs["approxkl"] * tokens.mean())
    # e^x − 1 − x = x²/2 + x³/6 + …
    old, new = (
        nplus.token_logprobs(inputs[f"{n}_logits"], inputs["tokens"], 1.0)[tokens]
        for n in ("old", "new")
    )
    x = np.abs(new - old)
    assert abs(mine - theirs["approxkl"]) <= (x**3 / 6 * np.exp(x)).mean()
    assert mine == pytest.approx(theirs["approxkl"], rel=0.3)


# The trainer, fed by a real model whose logits the oracle is given too


def padded(rows: list[list[float]], width: int) -> np.ndarray:
    return np.array([list(row) + [0.0] * (width - len(row)) for row in rows])


def read(made, pairs, width: int) -> dict[str, np.ndarray]:
    """Logits of policy and reference and values of the critic, one plain forward a completion."""
    module, out = made.policy.module, {"new": [], "ref": [], "values": []}
    for prompt, ids in pairs:
        row = torch.tensor([prompt + ids])
        with torch.no_grad():
            for name, model in (("new", module.lm), ("ref", module.reference)):
                logits = model(row).logits[0, len(prompt) - 1 :].double().numpy()
                spare = np.zeros((width - len(logits), logits.shape[1]))
                out[name].append(np.concatenate([logits, spare]))
            hidden = module.critic.transformer(row).last_hidden_state[0, len(prompt) - 1 :]
            out["values"].append(find_head(module.critic)[1](hidden)[:, 0].double().tolist())
    return {
        "new": np.stack(out["new"]), "ref": np.stack(out["ref"]),
        "values": padded(out["values"], width),
    }  # fmt: skip


@pytest.mark.parametrize("after_eos", [True, False])
@pytest.mark.parametrize("whiten", [False, True])
def test_the_trainer_equals_the_published_formulas(tmp_path, after_eos, whiten):
    s = nplus.Settings(
        kl_coef=0.2, gamma=0.97, lam=0.9, temperature=0.7, after_eos=after_eos,
        whiten_rewards=whiten, kl_estimator="k1", vf_coef=0.3,
    )  # fmt: skip
    made = tiny.build(
        tmp_path,
        ppo={
            "kl_coef": s.kl_coef, "gamma": s.gamma, "lam": s.lam, "vf_coef": s.vf_coef,
            "whiten_rewards": whiten, "score_at": "after_eos" if after_eos else "eos",
            "missing_eos": {"mode": "set", "value": -1.0},
        },
        rollout={"temperature": s.temperature, "n": 4},
        train={"per_device_train_batch_size": 16},
    )  # fmt: skip
    tiny.move(made, 0.3)
    collected = made.collector.collect(0)
    pairs = tiny.completions(collected)
    words = made.policy.tokenizer
    stops = set(tiny.stop_ids(words))
    lengths = np.array([len(ids) for _, ids in pairs])
    width = lengths.max() + 1
    tokens = padded([ids for _, ids in pairs], width).astype(int)
    texts = [words.decode(ids, skip_special_tokens=True) for _, ids in pairs]
    scores = np.array([
        len(text) / 10 if ids[-1] in stops else -1.0
        for text, (_, ids) in zip(texts, pairs, strict=True)
    ])  # fmt: skip

    before = read(made, pairs, width)
    old = nplus.token_logprobs(before["new"], tokens, s.temperature)
    ref = nplus.token_logprobs(before["ref"], tokens, s.temperature)
    theirs = nplus.rollout(old, ref, before["values"], scores, lengths, s)
    is_token, _ = nplus.masks(lengths, width, after_eos)
    for name, extra in (("advantages", "advantages"), ("returns", "returns")):
        found = tiny.flat(collected, extra).numpy()
        np.testing.assert_allclose(found, theirs[name][is_token], atol=2e-4, err_msg=name)
    if after_eos:
        ends = [x for g in collected.groups for x in g.extras["end_returns"]]
        expected = theirs["returns"][np.arange(len(lengths)), lengths]
        np.testing.assert_allclose(ends, expected, atol=2e-4)

    tiny.move(made, 0.4, seed=1)  # an update's worth of difference
    after = read(made, pairs, width)
    new = nplus.token_logprobs(after["new"], tokens, s.temperature)
    step = nplus.step(new, old, after["values"], before["values"], theirs, lengths, s)
    made.meter.flush()
    result = made.objective(made.policy.module, made.policy.collate(collected.groups))
    means = {n: float(total) / float(count) for n, (total, count) in result.stats.items()}
    assert means["policy_loss"] == pytest.approx(step["pg_loss"], abs=2e-4)
    assert means["clip_frac"] == pytest.approx(step["pg_clipfrac"])
    assert means["approx_kl"] == pytest.approx(step["approxkl_k3"], rel=1e-3)
    assert made.meter.flush()["ratio/max"] == pytest.approx(step["ratio_max"], rel=1e-3)
    # Ours divides by tokens; theirs by positions with a value, one more for each completion.
    positions = lengths.sum() + (len(lengths) if after_eos else 0)
    assert means["value_loss"] == pytest.approx(
        step["vf_loss"] * positions / lengths.sum(), rel=2e-3
    )
    if not after_eos:
        assert means["value_clip_frac"] == pytest.approx(step["vf_clipfrac"])
        total = float(result.total.detach()) / lengths.sum()
        assert total == pytest.approx(step["loss"], abs=2e-4)
