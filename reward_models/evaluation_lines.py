"""The figures of an evaluation or a comparison as the lines that are printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def lines(result: dict[str, Any]) -> Iterator[str]:
    """What was used, what to beware of, and the figures, one line each."""
    for name in ("rows", "groups"):
        counts = result.get(name)
        if isinstance(counts, dict):
            dropped = ", ".join(f"{n} {reason}" for reason, n in counts["dropped"].items())
            used = counts.get("used", counts.get("scored"))
            yield f"{name:<24}{used} used" + (f", dropped: {dropped}" if dropped else "")
    if result["truncated"] not in (0, [0, 0]):
        yield f"{'truncated':<24}{result['truncated']} of {result['answers']} answers"
    for text in result.get("warnings", []):
        yield f"warning: {text}"
    kind: Callable[[dict[str, Any]], Iterator[str]] = _pair_lines
    if "protocol" in result:
        kind = _benchmark_lines
    elif "pair_agreement" in result:
        kind = _compare_lines
    yield from kind(result)


def _pair_lines(result: dict[str, Any]) -> Iterator[str]:
    for name, value in result.items():
        if name.startswith("eval_") and result["eval_groups"]:
            yield f"{name:<24}{value:.4f}" if isinstance(value, float) else f"{name:<24}{value}"
    for name in ("gain_over_length", "slope", "slope_given_votes"):
        if found := (result.get("length_bias") or {}).get(name):
            yield _line(name, found)
    for curve in result["best_of_n"]:
        last = curve["curve"][-1]
        said = f"{last['gold']:.4f}, random {last['random']:.4f}, best {last['oracle']:.4f}"
        yield f"{'best of ' + str(last['n']):<24}{said} ({curve['unit']})"


def _benchmark_lines(result: dict[str, Any]) -> Iterator[str]:
    base = result["length_baseline"]
    for name, found in result["sections"].items():
        yield _line(name, found, base["sections"][name])
    yield _line("overall", result["overall"], base["overall"])
    if "overall_with_prior_sets" in result:
        yield _line("with prior sets", result["overall_with_prior_sets"])


def _compare_lines(result: dict[str, Any]) -> Iterator[str]:
    yield f"{'pairs':<24}{result['pairs']}"
    names = ("pair_agreement", "kappa", "spearman", "kendall")
    for name in names:
        yield _line(name, result[name])
    for name, found in (result["votes"] or {}).items():
        if name != "pairs":
            yield _line(name, found)


def _line(name: str, found: dict[str, Any], base: float | None = None) -> str:
    value = found.get("value", found.get("score"))
    missing = f", without {', '.join(found['missing'])}" if found.get("missing") else ""
    if value is None:
        return f"{name:<24}-{missing}"
    bounds = ""
    if found["low"] is not None:
        bounds = f" ({found['low']:.4f} to {found['high']:.4f})"
    return f"{name:<24}{value:.4f}{bounds}" + (
        "" if base is None else f", length alone {base:.4f}"
    ) + missing  # fmt: skip
