"""A red-team campaign: ask, judge, count, write red_team.json, attempts.jsonl and report.html."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.config_errors import Failed, UserError
from align.evaluation.sampling import Decoding
from align.files import write_atomic
from align.records import write_jsonl
from align.redteam import rates
from align.redteam.attempts import Attempt, Skipped, again, ask_model, ask_server, build
from align.redteam.detectors import Detector, Rules
from align.redteam.probe_set import Probe


@dataclass
class Target:
    """What is attacked.

    name: for the report. load: gives (model, tokenizer), or None where `endpoint` (seed →
    Endpoint) is asked instead. A model is loaded when its turn comes and let go after it.
    """

    name: str
    load: Callable[[], tuple[Any, Any]] | None = None
    endpoint: Callable[[int], Any] | None = None


@dataclass
class Measured:
    """A target's answered attempts and what was found of them."""

    name: str
    attempts: list[Attempt]
    skipped: Skipped
    bias: dict[str, Any] | None = None
    cost: list[dict[str, Any]] = field(default_factory=list)


def red_team(
    target: Target,
    probes: Sequence[Probe],
    *,
    before: Target | None = None,
    every: Sequence[Probe] = (),
    mutators: Sequence[str] = ("none",),
    mutation_seed: int = 0,
    translate: Callable[[Sequence[str], str], list[str]] | None = None,
    detectors: Sequence[Detector] | None = None,
    seeds: Sequence[int] = (0,),
    decoding: Decoding | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Attack a model, and another (before alignment) with the very same requests.

    every: all probes that twins may be found among. detectors: the first one's verdicts count; the
    rules are always asked as well. Returns the figures (red_team.json, described in
    docs/red_team.md) and the rows of attempts.jsonl. Raises Failed where nothing was answered.
    """
    decoding = decoding or Decoding()
    asked: list[Detector] = list(detectors or [Rules()])
    if all(d.name != "rules" for d in asked):
        asked.append(Rules())
    primary = asked[0].name
    attempts, skipped = build(
        probes, mutators, seeds, every=every, mutation_seed=mutation_seed, translate=translate
    )
    if not attempts:
        reasons = "; ".join(sorted({r["reason"] for r in skipped.to_json()}))
        raise UserError("--mutators", list(mutators), f"can be applied to no probe: {reasons}",
                        "Add none")  # fmt: skip
    runs = []
    for place in (target, before):
        if place is not None:
            measured = _measure(place, again(attempts), probes, seeds, decoding)
            measured.skipped.counts.update(skipped.counts)
            _judge(measured.attempts, asked)
            runs.append(measured)
    result: dict[str, Any] = {
        "model": target.name,
        "before": before.name if before else None,
        "probes": len(probes),
        "mutators": list(mutators),
        "mutation_seed": mutation_seed,
        "detectors": [d.name for d in asked],
        "primary": primary,
        "seeds": list(seeds),
        "decoding": decoding.to_json(),
        "runs": {
            name: _figures(m, primary) for name, m in zip(("after", "before"), runs, strict=False)
        },
    }
    if before is not None:
        result["difference"] = rates.differences(runs[0].attempts, runs[1].attempts, primary)
    rows = [a.to_json(m.name, primary) for m in runs for a in m.attempts]
    return result, rows


def _measure(
    target: Target,
    attempts: list[Attempt],
    probes: Sequence[Probe],
    seeds: Sequence[int],
    decoding: Decoding,
) -> Measured:
    """Answers of a target to the attempts."""
    skipped = Skipped()
    if target.load is not None:
        from align.redteam.likelihood import likelihood_gaps

        loaded = target.load()
        answered = ask_model(attempts, loaded, seeds, decoding, skipped)
        return Measured(target.name, answered, skipped, likelihood_gaps(*loaded, probes))
    assert target.endpoint is not None
    served = {seed: target.endpoint(seed) for seed in seeds}
    answered = ask_server(attempts, lambda seed: served[seed], seeds)
    if all(a.completion is None for a in answered):
        raise Failed(f"{target.name} answered nothing; the first error: {answered[0].error}. "
                     "Check that the server runs and serves that model")  # fmt: skip
    return Measured(target.name, answered, skipped, cost=[e.to_json() for e in served.values()])


def _judge(attempts: Sequence[Attempt], detectors: Sequence[Detector]) -> None:
    """Put every detector's verdicts on the attempts that have an answer."""
    answered = [a for a in attempts if a.completion is not None]
    for detector in detectors:
        for attempt, verdict in zip(answered, detector.judge(answered), strict=True):
            if verdict is not None:
                attempt.verdicts[detector.name] = verdict


def _figures(m: Measured, primary: str) -> dict[str, Any]:
    found = {
        "name": m.name,
        "attempts": len(m.attempts),
        **rates.summarise(m.attempts, primary),
        "disagreement": rates.disagreement(m.attempts),
        "likelihood_gap": m.bias,
        "classifier_gap": rates.group_gap(m.attempts, "classifier"),
        "skipped": m.skipped.to_json(),
    }
    return {**found, **({"server": m.cost} if m.cost else {})}


def thresholds(
    result: dict[str, Any], max_attack_success: float | None, max_over_refusal: float | None
) -> list[str]:
    """Put `thresholds` into the result; the sentences about those that the attacked model fails.

    A threshold is held against `value`, the rate itself. A rate that was not measured fails it.
    """
    after, failed, checks = result["runs"]["after"], [], []
    for name, limit in (
        ("attack_success", max_attack_success), ("over_refusal", max_over_refusal)
    ):  # fmt: skip
        if limit is None:
            continue
        found = after[name]
        passed = found is not None and found["value"] <= limit
        checks.append(
            {"name": name, "max": limit, "value": found and found["value"], "passed": passed}
        )
        if passed:
            continue
        if found is None:
            failed.append(f"{name} was not measured, and --max_{name} {limit:g} is asked for")
        else:
            interval = f"[{found['low']:.3f}, {found['high']:.3f}]"
            failed.append(f"{name} {found['value']:.3f} {interval} is above --max_{name} {limit:g}")
    result["thresholds"] = checks
    return failed


def write(output: Path, result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write red_team.json, attempts.jsonl and report.html."""
    from align.report.redteam import write_red_team

    output.mkdir(parents=True, exist_ok=True)
    write_jsonl(output / "attempts.jsonl", rows)
    write_atomic(output / "red_team.json", json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    write_red_team(result, output / "report.html", rows)


def table(result: dict[str, Any]) -> str:
    """The short table that the recipe prints."""
    runs = result["runs"]
    head = ["", *(f"{name}: {run['name']}" for name, run in runs.items())]
    lines = [head]
    for name in ("attack_success", "over_refusal"):
        lines.append([name, *(_cell(run[name]) for run in runs.values())])
    for category in runs["after"]["by_category"]:
        cells = [_cell(run["by_category"].get(category)) for run in runs.values()]
        lines.append([f"  {category}", *cells])
    widths = [max(len(row[i]) for row in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in lines
    )


def _cell(rate: dict[str, Any] | None) -> str:
    if rate is None:
        return "-"
    unclear = f", {rate['unclear']} unclear" if rate["unclear"] else ""
    return f"{rate['value']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}] of {rate['n']}{unclear}"
