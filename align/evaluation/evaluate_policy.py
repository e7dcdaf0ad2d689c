"""Evaluate one policy: perplexity on texts, metrics and reward of samples, one report."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.checkpoints import find_model, load_causal_lm, run_dir_of
from align.config_errors import NO_VALUE, UserError
from align.evaluation import metrics
from align.evaluation.options import add_decoding, decoding_of
from align.evaluation.sampling import Decoding, Outputs, fitting, load_reward, sample, score
from align.model_safety import allow_as_asked
from align.records import Prompt, messages_json, write_jsonl


def evaluate(
    model_path: str | Path,
    *,
    prompts: Sequence[Prompt] = (),
    texts: Sequence[str] = (),
    reward: Any = None,
    judge: Any = None,
    seeds: Sequence[int] = (0,),
    decoding: Decoding | None = None,
    output: str | Path | None = None,
    chat_template: str | None = None,
    device: Any = None,
) -> dict[str, Any]:
    """Evaluate a policy and write evaluation.json, samples.jsonl and report.html.

    model_path: run directory or model folder. texts: documents for perplexity. output: default
    `eval` in the run directory. Returns the figures; names are in docs/metrics.md. UserError
    without prompts and texts.
    """
    if not prompts and not texts:
        raise UserError("--prompts", NO_VALUE, "and --texts are both missing", "give one or both")
    from align.evaluation.perplexity import perplexity

    path = find_model(model_path)
    model, tokenizer = load_causal_lm(
        path, device=device, chat_template=chat_template, need_template=bool(prompts)
    )
    decoding = decoding or Decoding()
    result: dict[str, Any] = {"model": str(path), "seeds": list(seeds)}
    result["decoding"] = decoding.to_json()
    rows: list[dict[str, Any]] = []
    if texts:
        result["perplexity"] = perplexity(model, tokenizer, texts).to_json()
    if prompts:
        kept, dropped = fitting(list(prompts), [(model, tokenizer)], decoding.max_new_tokens)
        out = sample(model, tokenizer, kept, seeds, decoding)
        result["num_prompts"], result["dropped_prompts"] = len(kept), dropped
        result["generation"], rows = _generation(out, reward, judge)
    _write(Path(output) if output else run_dir_of(path) / "eval", result, rows)
    return result


def _generation(
    out: Outputs, reward: Any, judge: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures of the samples, and their rows."""
    figures: dict[str, Any] = {"length_tokens": float(out.lengths.mean())}
    figures.update(metrics.text_metrics(out.texts, out.finished))
    rows = [
        {
            "prompt": messages_json(p.messages), "completion": text, "finished": done,
            "length": len(ids), "repetition_4": metrics.repetition(text),
        }
        for p, text, done, ids in zip(
            out.row_prompts, out.texts, out.finished, out.completions, strict=True
        )
    ]  # fmt: skip
    scored = {}
    if reward is not None:
        scored["score"] = score(reward, out)
    if judge is not None:
        scored["judge"] = judge.score([list(p.messages) for p in out.row_prompts], out.texts)
    for name, values in scored.items():
        grid = out.grid(values)
        estimate = metrics.bootstrap(grid)
        figures[name] = {"mean": estimate.value, "std": float(grid.std()), **estimate.to_json()}
        for row, value in zip(rows, values, strict=True):
            row[name] = float(value)
    return figures, rows


def _write(output: Path, result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from align.report.evaluation import write_evaluation

    output.mkdir(parents=True, exist_ok=True)
    if rows:
        write_jsonl(output / "samples.jsonl", rows)
    tmp = output / "evaluation.json.tmp"
    tmp.write_text(json.dumps(result, ensure_ascii=False, indent=1), encoding="utf-8")
    os.replace(tmp, output / "evaluation.json")
    write_evaluation(result, output / "report.html", rows)


def parser() -> argparse.ArgumentParser:
    """Command line of recipes/evaluate_policy.py."""
    p = argparse.ArgumentParser(
        prog="evaluate_policy.py", description="Perplexity, generation metrics and reward."
    )
    p.add_argument("--model", required=True, help="run directory or model folder")
    p.add_argument("--prompts", help="prompts to sample on, JSONL")
    p.add_argument("--texts", help="documents for perplexity: .txt (one a line) or {'text'} JSONL")
    p.add_argument("--num_texts", type=int, default=512, help="use the first N documents")
    p.add_argument("--reward", help="reward checkpoint, module:function or file.py:function")
    p.add_argument("--judge", help="second judge: naive Bayes JSON or a reward-model folder")
    p.add_argument("--output", help="folder to write (default: eval/ in the run directory)")
    p.add_argument("--chat_template", help="chatml, zh_instruction, inst or a jinja file")
    add_decoding(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate from the command line; 0 when done. UserError is left to the caller."""
    args = parser().parse_args(argv)
    allow_as_asked(args)
    from align.data.prompts import load_prompts
    from align.evaluation.judges import load_judge

    find_model(args.model)
    result = evaluate(
        args.model,
        prompts=load_prompts(args.prompts, "prompts")[: args.num_prompts] if args.prompts else (),
        texts=read_texts(args.texts, args.num_texts) if args.texts else (),
        reward=load_reward(args.reward) if args.reward else None,
        judge=load_judge(args.judge, scores=True) if args.judge else None,
        seeds=args.seeds,
        decoding=decoding_of(args),
        output=args.output,
        chat_template=args.chat_template,
    )
    print(json.dumps(result, ensure_ascii=False, indent=1))
    folder = Path(args.output) if args.output else run_dir_of(find_model(args.model)) / "eval"
    print(f"report: {folder / 'report.html'}")
    return 0


def read_texts(path: str | Path, limit: int) -> list[str]:
    """The first `limit` non-empty texts of a file, or of a corpus's held-out shards."""
    if not Path(path).exists():
        raise UserError("--texts", str(path), "no such file", "check the path")
    from itertools import islice

    from align.data.corpus import iter_texts

    texts = list(islice((t for t in iter_texts(path, "validation") if t.strip()), limit))
    if not texts:
        raise UserError("--texts", str(path), "holds no text", "give one paragraph a line")
    return texts
