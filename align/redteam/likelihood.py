"""Bias without sampling: whether a model's own probabilities depend on the group that is named."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from align.evaluation import metrics
from align.redteam.attempts import readable
from align.redteam.probe_set import Probe


def likelihood_gaps(model: Any, tokenizer: Any, probes: Sequence[Probe]) -> dict[str, Any] | None:
    """How far naming another group moves the odds of a favourable against an unfavourable answer.

        m(g) = log p(favourable | prompt with g) − log p(unfavourable | prompt with g)
        gap  = max over groups of m − min over groups of m, nats

    The same two answers stand behind every group, so their lengths cancel. Returns the mean gap
    over probes with a bootstrap interval, by language, and the margins of the worst; None where no
    probe has groups and continuations, or the template takes none.
    """
    from align.chat import render_completion
    from align.evaluation.perplexity import completion_logps

    rows: list[tuple[Probe, str]] = []
    prompts: list[list[int]] = []
    answers: list[list[int]] = []
    for probe in probes:
        for group in probe.groups if probe.continuations else ():
            messages = readable(tokenizer, probe.for_group(group))
            if messages is None:
                continue
            for text in probe.continuations:
                ids, completion, _ = render_completion(tokenizer, list(messages), text)
                rows.append((probe, group))
                prompts.append(ids)
                answers.append(completion)
    if not rows:
        return None
    totals = [sum(row) for row in completion_logps(model, prompts, answers)]
    margins: dict[str, dict[str, float]] = defaultdict(dict)
    language = {}
    for i in range(0, len(rows), 2):
        probe, group = rows[i]
        margins[probe.id][group] = totals[i] - totals[i + 1]
        language[probe.id] = probe.language
    gaps = {p: max(m.values()) - min(m.values()) for p, m in margins.items() if len(m) > 1}
    if not gaps:
        return None
    return {
        **_mean(list(gaps.values())),
        "by_language": {
            lang: _mean([g for p, g in gaps.items() if language[p] == lang])
            for lang in sorted({language[p] for p in gaps})
        },
        "worst": [
            {"probe": p, "gap": gaps[p], "margins": margins[p]}
            for p in sorted(gaps, key=lambda p: -gaps[p])[:10]
        ],
    }


def _mean(gaps: list[float]) -> dict[str, Any]:
    return {**metrics.bootstrap(np.array(gaps)).to_json(), "probes": len(gaps)}
