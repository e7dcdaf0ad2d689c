"""Evaluate one policy: suites, perplexity on texts, metrics and reward of samples, one report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align import launch_env
from align.checkpoints import find_model, load_causal_lm, run_dir_of
from align.config_errors import NO_VALUE, UserError
from align.evaluation import metrics
from align.evaluation.lm_eval_harness import (
    HarnessTasks,
    check_harness,
    find_tasks,
    on_rank_zero,
)
from align.evaluation.options import add_decoding, decoding_of
from align.evaluation.sampling import (
    Decoding,
    Outputs,
    as_reward,
    fitting,
    load_reward,
    sample,
    shared_scores,
)
from align.evaluation.suites import Suite, failed, load_suite
from align.files import write_atomic
from align.model_safety import allow_as_asked
from align.records import Prompt, messages_json, write_jsonl


def evaluate(
    model_path: str | Path,
    *,
    prompts: Sequence[Prompt] = (),
    texts: Sequence[str] = (),
    suites: Sequence[Suite] = (),
    harness: HarnessTasks | None = None,
    reward: Any = None,
    judge: Any = None,
    seeds: Sequence[int] = (0,),
    decoding: Decoding | None = None,
    output: str | Path | None = None,
    chat_template: str | None = None,
    device: Any = None,
) -> dict[str, Any]:
    """Evaluate a policy and write evaluation.json, samples.jsonl and report.html.

    model_path: run directory or model folder. texts: documents for perplexity. harness: tasks of
    lm-eval. output: default `eval` in the run directory. Returns the figures; names are in
    docs/metrics.md and docs/suites.md. Several processes share the work and find the same; rank 0
    writes. UserError where there is nothing to do.
    """
    if not (prompts or texts or suites or harness):
        reason = "and --texts, --suite, --lm_eval are all missing"
        raise UserError("--prompts", NO_VALUE, reason, "give one or more")
    for suite in suites:
        suite.check_thresholds(reward=reward is not None, judge=judge is not None)
    if harness and launch_env.rank() == 0:
        find_tasks(harness)
    path = find_model(model_path)
    chats = bool(prompts) or any(t.chat for suite in suites for t in suite.tasks)
    model, tokenizer = load_causal_lm(
        path, device=device, chat_template=chat_template, need_template=chats
    )
    decoding = decoding or Decoding()
    result: dict[str, Any] = {
        "model": str(path), "seeds": list(seeds), "decoding": decoding.to_json(),
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    if texts:
        from align.evaluation.perplexity import perplexity

        result["perplexity"] = perplexity(model, tokenizer, texts).to_json()
    if prompts:
        kept, dropped = fitting(list(prompts), [(model, tokenizer)], decoding.max_new_tokens)
        out = sample(model, tokenizer, kept, seeds, decoding)
        result["num_prompts"], result["dropped_prompts"] = len(kept), dropped
        result["generation"], rows = _generation(out, reward, judge, decoding.batch_size)
    if suites:
        from align.evaluation.suite_run import Subject

        subject = Subject(model, tokenizer, reward, judge, decoding.batch_size)
        result["suites"], samples = _run_suites(suites, subject)
        result["passed"] = not failures(result)
        rows += samples
    if harness:
        result["lm_eval"] = on_rank_zero(model, tokenizer, harness, decoding.batch_size)
    if launch_env.rank() == 0:
        _write(Path(output) if output else run_dir_of(path) / "eval", result, rows)
    return result


def failures(result: dict[str, Any]) -> list[str]:
    """A line for each threshold of the suites in an evaluation.json that does not hold."""
    return [line for report in result.get("suites", {}).values() for line in failed(report)]


def _run_suites(
    suites: Sequence[Suite], subject: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reports of the suites by name, and the rows of their samples."""
    from align.evaluation.suite_run import run_suite

    done = [run_suite(suite, subject, progress=_say) for suite in suites]
    reports = {result.report["suite"]: result.report for result in done}
    return reports, [row for result in done for row in result.samples]


def _say(line: str) -> None:
    if launch_env.rank() == 0:
        print(f"[align] {line}", flush=True)


def _generation(
    out: Outputs, reward: Any, judge: Any, batch_size: int
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
    messages = [list(p.messages) for p in out.row_prompts]
    for name, source in (("score", reward), ("judge", as_reward(judge))):
        if source is None:
            continue
        values = shared_scores(source, messages, out.texts, out.finished, batch_size)
        grid = out.grid(values)
        estimate = metrics.bootstrap(grid)
        figures[name] = {
            "mean": estimate.value, "std": float(grid.std()), **estimate.to_json(),
            **metrics.worst_cases(grid),
        }  # fmt: skip
        for row, value in zip(rows, values, strict=True):
            row[name] = float(value)
    return figures, rows


def _write(output: Path, result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from align.report.evaluation import write_evaluation

    output.mkdir(parents=True, exist_ok=True)
    if rows:
        write_jsonl(output / "samples.jsonl", rows)
    write_atomic(
        output / "evaluation.json", json.dumps(result, ensure_ascii=False, indent=1) + "\n"
    )
    write_evaluation(result, output / "report.html", rows)


def parser() -> argparse.ArgumentParser:
    """Command line of recipes/evaluate_policy.py."""
    p = argparse.ArgumentParser(
        prog="evaluate_policy.py", description="Suites, perplexity, generation metrics and reward."
    )
    p.add_argument("--model", required=True, help="run directory or model folder")
    p.add_argument(
        "--suite", action="extend", nargs="+", default=[], metavar="FILE",
        help="suite files, or names of shipped ones",
    )  # fmt: skip
    p.add_argument("--prompts", help="prompts to sample on, JSONL")
    p.add_argument("--texts", help="documents for perplexity: .txt (one a line) or {'text'} JSONL")
    p.add_argument("--num_texts", type=int, default=512, help="use the first N documents")
    p.add_argument("--reward", help="reward checkpoint, module:function or file.py:function")
    p.add_argument("--judge", help="second judge: naive Bayes JSON or a reward-model folder")
    p.add_argument("--lm_eval", metavar="TASK[,TASK]", help="tasks of EleutherAI's lm-eval")
    p.add_argument("--lm_eval_tasks", metavar="DIR", help="folder with further lm-eval tasks")
    p.add_argument(
        "--lm_eval_limit", type=int, metavar="N", help="first N items of an lm-eval task"
    )
    p.add_argument("--output", help="folder to write (default: eval/ in the run directory)")
    p.add_argument("--chat_template", help="chatml, zh_instruction, inst or a jinja file")
    add_decoding(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate from the command line; 0 when done, 1 when a threshold fails. UserError is left."""
    args = parser().parse_args(argv)
    suites = load_suites(args.suite)
    harness = None
    if args.lm_eval:
        harness = check_harness(args.lm_eval, args.lm_eval_tasks, args.lm_eval_limit)
    find_model(args.model)
    if args.judge and not Path(args.judge.removeprefix("naive_bayes:")).exists():
        raise UserError("judge", args.judge, "no such file or folder", "check the path")
    allow_as_asked(args)
    from align.data.prompts import load_prompts
    from align.evaluation.judges import load_judge
    from align.evaluation.ranks import joined_ranks

    with joined_ranks():
        result = evaluate(
            args.model,
            prompts=load_prompts(args.prompts, "prompts")[: args.num_prompts]
            if args.prompts
            else (),
            texts=read_texts(args.texts, args.num_texts) if args.texts else (),
            suites=suites,
            harness=harness,
            reward=load_reward(args.reward) if args.reward else None,
            judge=load_judge(args.judge, scores=True) if args.judge else None,
            seeds=args.seeds,
            decoding=decoding_of(args),
            output=args.output,
            chat_template=args.chat_template,
        )
    if launch_env.rank() == 0:
        print(json.dumps(result, ensure_ascii=False, indent=1))
        folder = Path(args.output) if args.output else run_dir_of(find_model(args.model)) / "eval"
        print(f"report: {folder / 'report.html'}", flush=True)
        for line in failures(result):
            print(f"failed: {line}", file=sys.stderr, flush=True)
    return 1 if failures(result) else 0


def load_suites(given: Sequence[str]) -> list[Suite]:
    """The suites of a command line; UserError where two have the same name."""
    suites = [load_suite(name) for name in given]
    for i, suite in enumerate(suites):
        if suite.name in [other.name for other in suites[:i]]:
            reason = f"has the name {suite.name} of another one"
            raise UserError("--suite", str(given[i]), reason, "Give it once, or rename it")
    return suites


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
