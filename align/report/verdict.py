"""One sentence about a run and the warnings a careful reader would give. Rules, not a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from align.report.charts import number

Curves = Mapping[str, Sequence[tuple[float, float]]]


@dataclass
class Verdict:
    """level: good, warn or bad (info while nothing can be said); findings: (level, text)."""

    headline: str
    level: str = "info"
    findings: list[tuple[str, str]] = field(default_factory=list)

    def add(self, level: str, text: str) -> None:
        """Add a finding and let the worst one colour the page."""
        self.findings.append((level, text))
        order = ("info", "good", "warn", "bad")
        self.level = max(self.level, level, key=order.index)


def judge(method: str, curves: Curves) -> Verdict:
    """Verdict on a run from its curves; names of the curves as in metrics.jsonl."""
    finite = {k: [p for p in v if math.isfinite(p[1])] for k, v in curves.items()}
    finite = {k: v for k, v in finite.items() if v}
    if not finite:
        return Verdict("Nothing was logged yet.")
    rules = {"ppo": _ppo, "dpo": _preference, "orpo": _preference, "reward": _reward}
    verdict = rules.get(method, _language)(finite)
    bad = sum(not math.isfinite(y) for v in curves.values() for _, y in v)
    if bad:
        verdict.add("bad", f"{bad} logged values are NaN or infinite.")
    _spike(verdict, finite.get("loss", []))
    return verdict


def ends(curve: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean of the first and of the last tenth of a curve (at least one point each)."""
    n = max(1, len(curve) // 10)
    return sum(p[1] for p in curve[:n]) / n, sum(p[1] for p in curve[-n:]) / n


def _pick(curves: Curves, *names: str) -> tuple[str, Sequence[tuple[float, float]]]:
    for name in names:
        if curves.get(name):
            return name, curves[name]
    return "", []


def _ppo(curves: Curves) -> Verdict:
    name, score = _pick(curves, "eval_score/mean", "score/mean")
    if not score:
        return Verdict("No reward was logged.", "warn")
    first, last = ends(score)
    where = "held-out prompts" if name.startswith("eval_") else "training prompts"
    std = ends(curves["score/std"])[0] if curves.get("score/std") else 0.0
    gain = f" ({(last - first) / std:+.2f} initial standard deviations)" if std > 0 else ""
    _, kl = _pick(curves, "eval_kl/sum", "kl/sum")
    cost = f", KL to the reference {number(ends(kl)[1])} nats" if kl else ""
    verb = "rose" if last > first else "fell"
    verdict = Verdict(
        f"Mean reward on {where} {verb} from {number(first)} to {number(last)}{gain}{cost}."
    )
    verdict.level = "good" if last > first else "bad"
    _, kl = _pick(curves, "kl/sum", "eval_kl/sum")
    if len(kl) >= 8:
        half, end = ends(kl[: len(kl) // 2])[1], ends(kl)[1]
        growing = end > 1.3 * max(half, 0.05)
        verdict.add(*(
            ("warn", f"KL still grows: {number(half)} at half time, {number(end)} at the end.")
            if growing else
            ("good", f"KL has flattened: {number(half)} at half time, {number(end)} at the end.")
        ))  # fmt: skip
    _completions(verdict, curves)
    gap, stale = curves.get("sampler_gap"), curves.get("staleness")
    # Of stale samples the gap is what the policy has learned since, and weighted for.
    if gap and not (stale and max(p[1] for p in stale) > 0) and max(abs(p[1]) for p in gap) > 0.01:
        verdict.add("warn", "Sampler and trainer disagree on log-probs (sampler_gap above 0.01).")
    ev = curves.get("explained_variance")
    if ev and ends(ev)[1] < 0:
        verdict.add("warn", "The critic explains nothing (explained_variance below 0 at the end).")
    return verdict


def _completions(verdict: Verdict, curves: Curves) -> None:
    _, eos = _pick(curves, "eval_eos_rate", "eos_rate")
    if eos and ends(eos)[1] < 0.5 <= ends(eos)[0]:
        verdict.add("warn", "Completions stopped ending by themselves (eos_rate fell below 0.5).")
    _, length = _pick(curves, "eval_length/mean", "length/mean")
    if length:
        first, last = ends(length)
        if first > 0 and not 0.5 <= last / first <= 2:
            verdict.add("warn", f"Length moved from {number(first)} to {number(last)} tokens: "
                                "check the length-controlled reward.")  # fmt: skip
    entropy = curves.get("entropy")
    if entropy and ends(entropy)[0] > 0 and ends(entropy)[1] < 0.3 * ends(entropy)[0]:
        verdict.add("warn", "Entropy fell by more than 70 %: the policy may have collapsed.")


def _preference(curves: Curves) -> Verdict:
    name, accuracy = _pick(
        curves, "eval_rewards/accuracies", "eval_accuracy", "rewards/accuracies", "accuracy"
    )
    _, margin = _pick(curves, "eval_rewards/margins", "rewards/margins")
    if not accuracy:
        return _language(curves)
    last = ends(accuracy)[1]
    where = "held-out" if name.startswith("eval_") else "training"
    tail = f", margin {number(ends(margin)[0])} to {number(ends(margin)[1])}" if margin else ""
    verdict = Verdict(f"Prefers the chosen completion in {last:.0%} of the {where} pairs{tail}.")
    verdict.level = "good"
    if last <= 0.55:
        verdict.add("warn", f"Pair accuracy {last:.3f} is close to chance (0.5).")
    _, chosen = _pick(curves, "eval_logps/chosen", "logps/chosen", "eval_rewards/chosen",
                      "rewards/chosen")  # fmt: skip
    if chosen and ends(chosen)[1] < ends(chosen)[0] - abs(0.1 * ends(chosen)[0]):
        verdict.add("warn", "The chosen completions became less likely too (common with DPO): "
                            "look at the samples.")  # fmt: skip
    _overfit(verdict, curves)
    return verdict


def _reward(curves: Curves) -> Verdict:
    name, accuracy = _pick(curves, "eval_accuracy", "eval_accuracy/mean", "accuracy")
    if not accuracy:
        return _language(curves)
    last = ends(accuracy)[1]
    where = "held-out" if name.startswith("eval_") else "training"
    verdict = Verdict(f"Orders {last:.1%} of the {where} pairs correctly.")
    verdict.level = "good"
    if last < 0.7:
        verdict.add("warn" if last > 0.55 else "bad", f"Accuracy {last:.3f}; chance is 0.5.")
    _overfit(verdict, curves)
    return verdict


def _language(curves: Curves) -> Verdict:
    name, loss = _pick(curves, "eval_loss", "loss", "train_loss")
    if not loss:
        return Verdict("No loss was logged.", "warn")
    first, last = ends(loss)
    where = "Held-out" if name.startswith("eval_") else "Training"
    perplexity = f" (perplexity {number(math.exp(last))})" if 0 < last < 20 else ""
    if len(loss) == 1:
        return Verdict(f"{where} loss {number(last)} nats per token{perplexity}.")
    verdict = Verdict(
        f"{where} loss went from {number(first)} to {number(last)} nats per token{perplexity}."
    )
    verdict.level = "good" if last < first else "bad"
    _overfit(verdict, curves)
    return verdict


def _overfit(verdict: Verdict, curves: Curves) -> None:
    losses = curves.get("eval_loss", [])
    if len(losses) >= 3:
        best = min(losses, key=lambda p: p[1])
        if losses[-1][1] > best[1] * 1.05 + 1e-3 and best[0] < losses[-1][0]:
            verdict.add("warn", f"Held-out loss was lowest at step {number(best[0])} "
                                f"({number(best[1])}) and rose since.")  # fmt: skip


def _spike(verdict: Verdict, losses: Sequence[tuple[float, float]]) -> None:
    if len(losses) < 10:
        return
    values = sorted(p[1] for p in losses)
    middle, top = values[len(values) // 2], max(losses[5:], key=lambda p: p[1])
    spread = values[int(0.9 * len(values))] - values[int(0.1 * len(values))]
    if top[1] > middle + max(6 * spread, 0.5 * abs(middle)):
        verdict.add("warn", f"Loss spike at step {number(top[0])}: {number(top[1])}.")
