"""The figures of one run of a comparison; keys as documented in docs/comparison.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from align.checkpoints import run_dir_of
from align.evaluation import metrics
from align.evaluation.compare_measure import Measured
from align.evaluation.compare_pairs import REWARD, against, at_equal_length
from align.evaluation.history import cost, trajectory
from align.evaluation.judges import Comparison
from align.evaluation.win_rates import matrix
from align.records import messages_json

WORST = 20  # regressions of a run that are listed


def summarise(
    m: Measured,
    base: Measured,
    pairs: dict[str, list[Comparison]],
    category_field: str = "category",
) -> dict[str, Any]:
    """All figures of one run against the baseline. pairs: what `all_pairs` found."""
    out = m.outputs
    reward, base_reward = out.grid(out.scores), out.grid(base.outputs.scores)
    gain = reward - base_reward
    spread = float(base_reward.std())
    mean = metrics.bootstrap(reward)
    lengths = out.grid(out.lengths)
    length_gap = lengths - out.grid(base.outputs.lengths)
    run_dir = run_dir_of(m.path)
    judged = {
        name: _judged(m, base, name, found, gain)
        for name, found in pairs.items()
        if name != REWARD
    }  # fmt: skip
    gold = next(iter(m.judges), None)
    means, shifts = _means(m, base)
    return {
        "name": m.name,
        "path": str(m.path),
        "samples": len(out.texts),
        "reward": {"mean": mean.value, "std": float(reward.std()), **mean.to_json()},
        "gain": {
            **metrics.bootstrap(gain).to_json(),
            "in_baseline_std": float(gain.mean()) / spread if spread > 0 else None,
        },
        "win_rate": metrics.win_rate(metrics.outcomes_from_scores(reward, base_reward)).to_json(),
        "length_controlled_win_rate": at_equal_length(against(pairs[REWARD], m.name, base.name)),
        "kl": _kl(m),
        "nll_baseline": _nll(m),
        "judge": judged[gold] if gold is not None else None,
        "judges": judged,
        "length_controlled": _equal_length(gain, length_gap),
        "length": float(lengths.mean()),
        **metrics.text_metrics(out.texts, out.finished),
        "intervals": means,
        "shifts": shifts,
        "categories": _categories(m, base, category_field),
        "regressions": _regressions(m, base, gain),
        **cost(run_dir),
        "trajectory": trajectory(run_dir),
    }


def _kl(m: Measured) -> dict[str, float] | None:
    if m.kl is None:
        return None
    per_token = float(m.kl.sum() / max(1.0, m.outputs.lengths.sum()))
    return {**metrics.bootstrap(m.outputs.grid(m.kl)).to_json(), "per_token": per_token}


def _equal_length(gain: np.ndarray, length_gap: np.ndarray) -> dict[str, float]:
    """The reward gain at equal length (least squares), with its interval."""

    def at_equal(rows: np.ndarray) -> float:
        return metrics.length_controlled(rows[..., 0], rows[..., 1]).gain

    interval = metrics.bootstrap(np.stack([gain, length_gap], axis=-1), at_equal).to_json()
    found = metrics.length_controlled(gain, length_gap).to_json()
    return {**found, "low": interval["low"], "high": interval["high"]}


def _nll(m: Measured) -> dict[str, float]:
    """Nats per token: a ratio of sums, resampled as such."""
    both = np.stack([m.outputs.grid(m.baseline_nll), m.outputs.grid(m.baseline_tokens)], axis=-1)

    def ratio(rows: np.ndarray) -> float:
        total = rows.sum(axis=(0, 1))
        return float(total[0] / max(1.0, total[1]))

    estimate = metrics.bootstrap(both, ratio)
    return {
        "per_token": estimate.value, "low": estimate.low, "high": estimate.high,
        "tokens": int(m.baseline_tokens.sum()),
    }  # fmt: skip


def _judged(
    m: Measured, base: Measured, name: str, found: Sequence[Comparison], gain: np.ndarray
) -> dict[str, Any]:
    """What one judge says of a run: its mean and gain where it scores texts, and win rates.

    agrees: whether the judge moves as the reward does. Prompts with a sample that the judge could
    not score are left out of its means and counted as `unscored`.
    """
    own = against(found, m.name, base.name)
    rates = matrix(own, [m.name, base.name]).get(m.name, {}).get(base.name)
    at_once = {"win_rate": rates, "length_controlled_win_rate": at_equal_length(own)}
    if name not in m.judges:
        direction = 0.0 if rates is None else rates["value"] - 0.5
        agrees = bool(np.sign(direction) == np.sign(gain.mean()))
        return {"mean": None, "gain": None, **at_once, "agrees": agrees, "pair_agreement": None}
    ours, theirs = m.outputs.grid(m.judges[name]), m.outputs.grid(base.judges[name])
    known = np.isfinite(ours).all(axis=1) & np.isfinite(theirs).all(axis=1)
    if not known.any():
        empty = {"mean": None, "gain": None, "agrees": True, "pair_agreement": None}
        return {**empty, **at_once, "unscored": len(ours)}
    difference, mean = ours[known] - theirs[known], metrics.bootstrap(ours[known])
    outcomes = metrics.outcomes_from_scores(ours[known], theirs[known])
    return {
        "mean": mean.value,
        **mean.to_json(),
        "gain": metrics.bootstrap(difference).to_json(),
        **at_once,
        "win_rate": metrics.win_rate(outcomes).to_json(),
        "agrees": bool(np.sign(difference.mean()) == np.sign(gain.mean())),
        "pair_agreement": metrics.direction_agreement(difference, gain[known]),
        "unscored": int((~known).sum()),
    }


def _means(m: Measured, base: Measured) -> tuple[dict[str, Any], dict[str, Any]]:
    """Means over samples with intervals, and their paired shifts from the baseline."""
    means, shifts = {}, {}
    for name, own, theirs in (
        ("length", m.outputs.lengths, base.outputs.lengths),
        *(
            (key, [f(t) for t in m.outputs.texts], [f(t) for t in base.outputs.texts])
            for key, f in (("length_chars", len), ("repetition_4", metrics.repetition))
        ),
        ("eos_rate", m.outputs.finished, base.outputs.finished),
    ):
        ours = m.outputs.grid(np.asarray(own, dtype=np.float64))
        interval = metrics.share if name == "eos_rate" else metrics.bootstrap
        means[name] = interval(ours).to_json()
        gap = ours - m.outputs.grid(np.asarray(theirs, dtype=np.float64))
        shifts[name] = metrics.bootstrap(gap).to_json()
    for n in (1, 2):
        own = metrics.distinct_n(m.outputs.texts, n)
        shifts[f"distinct_{n}"] = {"value": own - metrics.distinct_n(base.outputs.texts, n)}
    return means, shifts


def _categories(m: Measured, base: Measured, category_field: str) -> dict[str, dict[str, Any]]:
    """Figures by the category that prompts name in their meta; {} where none does."""
    rows: dict[str, list[int]] = {}
    for i, prompt in enumerate(m.outputs.prompts):
        if (value := prompt.meta.get(category_field)) is not None:
            rows.setdefault(str(value), []).append(i)
    reward, base_reward = m.outputs.grid(m.outputs.scores), m.outputs.grid(base.outputs.scores)
    out = {}
    for name in sorted(rows):
        ours, theirs = reward[rows[name]], base_reward[rows[name]]
        rate = metrics.win_rate(metrics.outcomes_from_scores(ours, theirs))
        out[name] = {
            "prompts": len(rows[name]),
            "reward": metrics.bootstrap(ours).to_json(),
            "gain": metrics.bootstrap(ours - theirs).to_json(),
            "win_rate": rate.to_json(),
        }
    return out


def _regressions(m: Measured, base: Measured, gain: np.ndarray) -> list[dict[str, Any]]:
    """The prompts on which the run lost most reward, worst first, each with its worst seed."""
    means = gain.mean(axis=1)
    found = []
    for p in np.argsort(means, kind="stable")[:WORST]:
        if means[p] >= 0:
            break
        s = int(np.argmin(gain[p]))
        row = int(p) * len(m.outputs.seeds) + s
        found.append({
            "prompt_id": m.outputs.prompts[p].prompt_id,
            "seed": m.outputs.seeds[s],
            "gain": float(means[p]),
            "judges": {
                k: float(v[row] - base.judges[k][row])
                for k, v in m.judges.items() if np.isfinite(v[row] - base.judges[k][row])
            },
            "prompt": messages_json(m.outputs.prompts[p].messages),
            "baseline": base.outputs.texts[row],
            "completion": m.outputs.texts[row],
        })  # fmt: skip
    return found
