"""Compare runs: same held-out prompts, seeds and decoding for all of them and for the baseline.

One pass a run: sample, log-probs under itself and under the baseline, reward, judge. Everything is
paired by (prompt, seed), and intervals resample prompts. Definitions: docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from align.checkpoints import default_device, find_model, load_causal_lm, run_dir_of
from align.config_errors import UserError
from align.evaluation import metrics
from align.evaluation.history import cost, trajectory
from align.evaluation.options import add_decoding, decoding_of, from_runs
from align.evaluation.sampling import Decoding, Outputs, fitting, load_reward, sample, score
from align.model_safety import allow_as_asked
from align.records import Prompt, messages_json, write_jsonl


@dataclass
class Measured:
    """What one run gave: its samples, and a number or None for each row."""

    name: str
    path: Path
    outputs: Outputs
    kl: np.ndarray | None
    baseline_nll: np.ndarray
    baseline_tokens: np.ndarray
    judge: np.ndarray | None


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
    device: Any = None,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure every run against the baseline; write summary.json, samples.jsonl, report.html.

    runs: run directories or model folders; the baseline is put first if it is not among them.
    reward: `align.rewards.Reward`. judge: `align.evaluation.judges.Judge`, scoring single texts,
    or None. Returns the summary. UserError when a model or the prompts cannot be used.
    """
    decoding, device = decoding or Decoding(), device or default_device()
    base_path = find_model(baseline, "baseline")
    paths = [find_model(r, "runs") for r in runs]
    if base_path.resolve() not in [p.resolve() for p in paths]:
        paths.insert(0, base_path)
    paths.sort(key=lambda p: p.resolve() != base_path.resolve())
    names = run_names(paths)
    base = load_causal_lm(base_path, device=device, field="baseline")
    kept, dropped = fitting(list(prompts), [base], decoding.max_new_tokens)
    measured = []
    for i, (name, path) in enumerate(zip(names, paths, strict=True)):
        progress(f"compare: {name} ({i + 1}/{len(names)}), {len(kept)} prompts, {len(seeds)} seeds")
        own = base if i == 0 else load_causal_lm(path, device=device, field="runs")
        measured.append(_measure(name, path, own, base, kept, seeds, decoding, reward, judge))
        del own
    summary = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "baseline": names[0],
        "num_prompts": len(kept),
        "dropped": {"prompt_too_long": dropped} if dropped else {},
        "seeds": list(seeds),
        "decoding": decoding.to_json(),
        "reward": _reward_name(reward),
        "judge": judge.name if judge is not None else None,
        "runs": [summarise(m, measured[0]) for m in measured],
        "notes": _notes(measured, decoding, dropped),
    }
    _write(Path(output), summary, measured)
    return summary


def _measure(
    name: str, path: Path, own: tuple, base: tuple, prompts: list[Prompt], seeds: Sequence[int],
    decoding: Decoding, reward: Any, judge: Any,
) -> Measured:  # fmt: skip
    """Sample one run and score its samples."""
    from align.evaluation.perplexity import completion_logps

    model, tokenizer = own
    out = sample(model, tokenizer, prompts, seeds, decoding)
    out.scores = score(reward, out)
    kl = None
    if same_tokens(tokenizer, base[1]):
        reference = completion_logps(base[0], out.prompt_ids, out.completions)
        ours = reference
        if model is not base[0]:
            ours = completion_logps(model, out.prompt_ids, out.completions)
        kl = np.array([sum(a) - sum(b) for a, b in zip(ours, reference, strict=True)])
    else:
        reference = _foreign_logps(base, out)
    judged = None
    if judge is not None:
        messages = [list(p.messages) for p in out.row_prompts]
        judged = np.asarray(judge.score(messages, out.texts), dtype=np.float64)
    nll = np.array([-sum(row) for row in reference])
    return Measured(name, path, out, kl, nll, np.array([len(r) for r in reference]), judged)


def _foreign_logps(base: tuple, out: Outputs) -> list[list[float]]:
    """Log-probs under a baseline with another tokenizer: the texts are rendered again for it."""
    from align.chat import render_completion
    from align.evaluation.perplexity import completion_logps

    model, tokenizer = base
    rows = []
    for prompt, text, done in zip(out.row_prompts, out.texts, out.finished, strict=True):
        ids, completion, _ = render_completion(tokenizer, list(prompt.messages), text)
        # A completion that was cut off did not choose the end token.
        rows.append((ids, completion if done else completion[:-1]))
    return completion_logps(model, [r[0] for r in rows], [r[1] for r in rows])


def same_tokens(a: Any, b: Any) -> bool:
    """Whether two tokenizers and their templates give the same ids, so that log-probs compare."""
    from align.chat import template_hash

    return a.get_vocab() == b.get_vocab() and template_hash(a) == template_hash(b)


def summarise(m: Measured, base: Measured) -> dict[str, Any]:
    """All figures of one run; keys as documented in docs/evaluation.md."""
    out = m.outputs
    reward, base_reward = out.grid(out.scores), out.grid(base.outputs.scores)
    gain = reward - base_reward
    spread = float(base_reward.std())
    mean = metrics.bootstrap(reward)
    lengths = out.grid(out.lengths)
    length_gap = lengths - out.grid(base.outputs.lengths)
    text = metrics.text_metrics(out.texts, out.finished)
    run_dir = run_dir_of(m.path)
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
        "kl": _kl(m),
        "nll_baseline": {
            "per_token": float(m.baseline_nll.sum() / max(1, m.baseline_tokens.sum())),
            "tokens": int(m.baseline_tokens.sum()),
        },
        "judge": _judged(m, base, gain),
        "length_controlled": metrics.length_controlled(gain, length_gap).to_json(),
        "length": float(lengths.mean()),
        **text,
        **cost(run_dir),
        "trajectory": trajectory(run_dir),
    }


def _kl(m: Measured) -> dict[str, float] | None:
    if m.kl is None:
        return None
    per_token = float(m.kl.sum() / max(1.0, m.outputs.lengths.sum()))
    return {**metrics.bootstrap(m.outputs.grid(m.kl)).to_json(), "per_token": per_token}


def _judged(m: Measured, base: Measured, gain: np.ndarray) -> dict[str, Any] | None:
    """The judge's mean, its gain over the baseline, and whether it moves as the reward does."""
    if m.judge is None or base.judge is None:
        return None
    own, theirs = m.outputs.grid(m.judge), m.outputs.grid(base.judge)
    difference, mean = own - theirs, metrics.bootstrap(own)
    return {
        "mean": mean.value,
        **mean.to_json(),
        "gain": metrics.bootstrap(difference).to_json(),
        "win_rate": metrics.win_rate(metrics.outcomes_from_scores(own, theirs)).to_json(),
        "agrees": bool(np.sign(difference.mean()) == np.sign(gain.mean())),
        "pair_agreement": metrics.direction_agreement(difference, gain),
    }


def run_names(paths: Sequence[Path]) -> list[str]:
    """Short distinct names: the run directory's, with as much of its parents as is needed."""
    dirs = [run_dir_of(p).resolve() for p in paths]
    if len(set(dirs)) < len(dirs):
        dirs = [p.resolve() for p in paths]
    for depth in range(1, max(len(d.parts) for d in dirs) + 1):
        names = ["/".join(d.parts[-depth:]) for d in dirs]
        if len(set(names)) == len(names):
            return names
    raise UserError("runs", [str(p) for p in paths], "names a run twice", "give each run once")


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


def _write(output: Path, summary: dict[str, Any], measured: list[Measured]) -> None:
    from align.report import write_comparison

    output.mkdir(parents=True, exist_ok=True)
    rows = [row for m in measured for row in sample_rows(m)]
    write_jsonl(output / "samples.jsonl", rows)
    tmp = output / "summary.json.tmp"
    tmp.write_text(json.dumps(summary, ensure_ascii=False, indent=1), encoding="utf-8")
    os.replace(tmp, output / "summary.json")
    write_comparison(summary, output / "report.html", rows)


def sample_rows(m: Measured) -> list[dict[str, Any]]:
    """One object for each sample of a run, for samples.jsonl."""
    out, rows = m.outputs, []
    for i, prompt in enumerate(out.row_prompts):
        rows.append({
            "prompt_id": prompt.prompt_id,
            "prompt": messages_json(prompt.messages),
            "seed": out.seeds[i % len(out.seeds)],
            "run": m.name,
            "completion": out.texts[i],
            "score": float(out.scores[i]),
            "kl": None if m.kl is None else float(m.kl[i]),
            "judge": None if m.judge is None else float(m.judge[i]),
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
            "-" if judge is None else f"{judge['mean']:.3f}", f"{r['length']:.1f}",
            f"{r['distinct_2']:.3f}", f"{r['eos_rate']:.2f}",
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
    p.add_argument("--judge", help="second judge: naive Bayes JSON or a reward-model folder")
    add_decoding(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Compare runs from the command line; 0 when done. UserError is left to the caller."""
    args = parser().parse_args(argv)
    allow_as_asked(args)
    from align.data.prompts import load_prompts
    from align.evaluation.judges import load_judge

    run_dirs = [run_dir_of(find_model(r, "runs")) for r in args.runs]
    prompts_file = args.prompts or from_runs(run_dirs, ("eval.prompts",), "prompts")
    reward_path = args.reward or from_runs(run_dirs, ("rewards",), "reward")
    summary = compare(
        args.runs,
        args.baseline or args.runs[0],
        load_prompts(prompts_file, "prompts")[: args.num_prompts],
        load_reward(reward_path),
        load_judge(args.judge) if args.judge else None,
        args.seeds,
        decoding_of(args),
        args.output,
    )
    print(table(summary))
    print(f"\nreport: {Path(args.output) / 'report.html'}")
    return 0
