"""Compare runs: same held-out prompts, seeds and decoding for all of them and for the baseline.

One pass a run: sample, log-probs under itself and under the baseline, reward, judges. Everything is
paired by (prompt, seed), and intervals resample prompts. Definitions: docs/comparison.md.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from align.checkpoints import default_device, find_model, load_causal_lm, run_dir_of
from align.evaluation.compare_figures import summarise
from align.evaluation.compare_frontier import (
    MEASURED,
    RECORDED,
    Point,
    measured_points,
    recorded_points,
    summarise_points,
)
from align.evaluation.compare_measure import (
    Measured,
    limits_of,
    measure,
    run_names,
    scores_texts,
    unlike_names,
)
from align.evaluation.compare_pairs import all_pairs, summarise_pairs
from align.evaluation.judges import LLMGrader
from align.evaluation.options import add_decoding, decoding_of, from_runs
from align.evaluation.sampling import Decoding, fitting, load_reward
from align.files import write_atomic
from align.model_safety import allow_as_asked
from align.records import Prompt, messages_json, write_jsonl


def compare(
    runs: Sequence[str | Path],
    baseline: str | Path,
    prompts: Sequence[Prompt],
    reward: Any,
    judge: Any = None,
    seeds: Sequence[int] = (0,),
    decoding: Decoding | None = None,
    output: str | Path = "runs/compare",
    *,
    checkpoints: bool = False,
    category_field: str = "category",
    device: Any = None,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure every run against the baseline; write summary.json, samples.jsonl, report.html.

    runs: run directories or model folders; the baseline is put first if it is not among them.
    reward: `align.rewards.Reward`. judge: one of `align.evaluation.judges`, a list of them, or
    None; the first that scores single texts is the gold judge of the frontier. checkpoints: sample
    every checkpoint of a run too. category_field: the name in a prompt's meta by which figures are
    split. Returns the summary. UserError when a model or the prompts cannot be used.
    """
    decoding, device = decoding or Decoding(), device or default_device()
    judges = unlike_names([judge] if judge is not None and not isinstance(judge, list) else judge)
    gold = next((j for j in judges if scores_texts(j)), None)
    names = run_names(paths := _baseline_first(runs, baseline))
    base = load_causal_lm(paths[0], device=device, field="baseline")
    readers = [base, *(limits_of(p, "runs") for p in paths[1:])]
    kept, dropped = fitting(list(prompts), readers, decoding.max_new_tokens)
    measured: list[Measured] = []
    frontiers: list[dict[str, Any] | None] = []
    for i, (name, path) in enumerate(zip(names, paths, strict=True)):
        progress(f"compare: {name} ({i + 1}/{len(names)}), {len(kept)} prompts, {len(seeds)} seeds")
        own = base if i == 0 else load_causal_lm(path, device=device, field="runs")
        measured.append(measure(name, path, own, base, kept, seeds, decoding, reward, judges))
        del own
        given = (base, measured[0], kept, seeds, decoding, reward, gold, device, progress)
        way = partial(measured_points, measured[-1], *given) if checkpoints else None
        frontiers.append(_frontier(run_dir_of(path), gold, way) if i else None)
    pairs = all_pairs(measured, judges)
    summary = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "baseline": names[0],
        "num_prompts": len(kept),
        "dropped": {"prompt_too_long": dropped} if dropped else {},
        "seeds": list(seeds),
        "decoding": decoding.to_json(),
        "reward": _reward_name(reward),
        "judge": gold.name if gold is not None else None,
        "judges": [j.name for j in judges],
        "runs": [
            {**summarise(m, measured[0], pairs, category_field), "frontier": frontier}
            for m, frontier in zip(measured, frontiers, strict=True)
        ],
        "pairwise": summarise_pairs(pairs, names, judges),
        "notes": _notes(measured, decoding, dropped),
    }
    _write(Path(output), summary, measured, category_field)
    return summary


def _baseline_first(runs: Sequence[str | Path], baseline: str | Path) -> list[Path]:
    """Model folders of the runs, the baseline's in front."""
    base = find_model(baseline, "baseline")
    paths = [find_model(r, "runs") for r in runs]
    if base.resolve() not in [p.resolve() for p in paths]:
        paths.insert(0, base)
    return sorted(paths, key=lambda p: p.resolve() != base.resolve())


def _frontier(
    run_dir: Path, gold: Any, sampled: Callable[[], list[Point]] | None
) -> dict[str, Any]:  # fmt: skip
    """The way of a run to its final model. sampled: samples its checkpoints; None: unasked."""
    points = sampled() if sampled is not None else []
    if points:
        return summarise_points(points, MEASURED)
    # What a run recorded is judged unasked only where that costs no call of a server.
    if sampled is not None or (gold is not None and not isinstance(gold, LLMGrader)):
        points = recorded_points(run_dir, gold)
    return summarise_points(points, RECORDED)


def _reward_name(reward: Any) -> str:
    return ", ".join(getattr(reward, "names", [])) or reward.name


def _notes(measured: list[Measured], decoding: Decoding, dropped: int) -> list[str]:
    notes = []
    if decoding.temperature != 1.0 or decoding.top_p < 1.0 or decoding.top_k > 0:
        notes.append(
            "The KL column is the mean log-ratio at temperature 1 on samples of this decoding; it "
            "estimates KL without bias only for temperature 1, top_p 1, top_k 0."
        )
    if foreign := [m.name for m in measured if m.kl is None]:
        notes.append(f"No KL for {', '.join(foreign)}: another tokenizer or chat template.")
    if dropped:
        notes.append(f"{dropped} prompts were too long for the model and left out.")
    return notes


def _write(
    output: Path, summary: dict[str, Any], measured: list[Measured], category_field: str
) -> None:
    from align.report import write_comparison

    rows = [row for m in measured for row in sample_rows(m, category_field)]
    write_jsonl(output / "samples.jsonl", rows)
    text = json.dumps(summary, ensure_ascii=False, indent=1, allow_nan=False)
    write_atomic(output / "summary.json", text + "\n")
    write_comparison(summary, output / "report.html", rows)


def sample_rows(m: Measured, category_field: str = "category") -> list[dict[str, Any]]:
    """One object for each sample of a run, for samples.jsonl."""
    out, rows = m.outputs, []
    for i, prompt in enumerate(out.row_prompts):
        judges = {
            name: float(values[i]) if math.isfinite(values[i]) else None
            for name, values in m.judges.items()
        }
        category = prompt.meta.get(category_field)
        rows.append({
            "prompt_id": prompt.prompt_id,
            "prompt": messages_json(prompt.messages),
            "category": None if category is None else str(category),
            "seed": out.seeds[i % len(out.seeds)],
            "run": m.name,
            "completion": out.texts[i],
            "score": float(out.scores[i]),
            "kl": None if m.kl is None else float(m.kl[i]),
            "judge": next(iter(judges.values()), None),
            "judges": judges,
            "length": len(out.completions[i]),
            "finished": out.finished[i],
        })  # fmt: skip
    return rows


def table(summary: dict[str, Any]) -> str:
    """The short table that the recipe prints."""
    head = ("run", "reward", "gain/std", "win", "KL", "NLL", "judge", "length", "dist-2", "EOS")
    rows: list[tuple[str, ...]] = [head]
    for r in summary["runs"]:
        std, kl, judge = r["gain"]["in_baseline_std"], r["kl"], r["judge"]
        rows.append((
            r["name"], f"{r['reward']['mean']:.3f}",
            "-" if std is None else f"{std:+.2f}", f"{r['win_rate']['value']:.2f}",
            "-" if kl is None else f"{kl['value']:.2f}", f"{r['nll_baseline']['per_token']:.2f}",
            "-" if not judge or judge["mean"] is None else f"{judge['mean']:.3f}",
            f"{r['length']:.1f}", f"{r['distinct_2']:.3f}", f"{r['eos_rate']:.2f}",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Command line of recipes/compare_runs.py."""
    p = argparse.ArgumentParser(
        prog="compare_runs.py", description="Compare runs with their SFT baseline, held out."
    )
    p.add_argument("runs", nargs="+", help="run directories or model folders; first: the baseline")
    p.add_argument("--baseline", help="SFT run or model (default: the first argument)")
    p.add_argument("--output", default="runs/compare", help="folder to write")
    p.add_argument("--prompts", help="held-out prompts, JSONL (default: eval.prompts of a run)")
    p.add_argument("--reward", help="reward checkpoint, module:function or file.py:function "
                                    "(default: the reward of a run)")  # fmt: skip
    p.add_argument("--judge", action="append", help="naive Bayes JSON, reward-model folder, "
                   "judge.yaml, votes as JSONL or llm:MODEL@URL; may be given again, and the first "
                   "that scores single texts is the gold judge")  # fmt: skip
    p.add_argument("--checkpoints", action="store_true",
                   help="sample every checkpoint of the runs too")  # fmt: skip
    p.add_argument("--category_field", default="category",
                   help="name in a prompt's meta by which figures are split")  # fmt: skip
    add_decoding(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Compare runs from the command line; 0 when done. UserError is left to the caller."""
    args = parser().parse_args(argv)
    allow_as_asked(args)
    from align.data.prompts import load_prompts
    from align.evaluation.judges import check_judge

    specs = [check_judge(j) for j in args.judge or ()]
    run_dirs = [run_dir_of(find_model(r, "runs")) for r in args.runs]
    prompts_file = args.prompts or from_runs(run_dirs, ("eval.prompts",), "prompts")
    reward_path = args.reward or from_runs(run_dirs, ("rewards",), "reward")
    prompts = load_prompts(prompts_file, "prompts")[: args.num_prompts]
    judges = [spec.load() for spec in specs]
    for judge in judges:
        if hasattr(judge, "check"):  # a server: better to know now than after hours of sampling
            judge.check()
    summary = compare(
        args.runs,
        args.baseline or args.runs[0],
        prompts,
        load_reward(reward_path),
        judges,
        args.seeds,
        decoding_of(args),
        args.output,
        checkpoints=args.checkpoints,
        category_field=args.category_field,
    )
    print(table(summary))
    print(f"\nreport: {Path(args.output) / 'report.html'}")
    return 0
