"""Running a suite: prompts rendered, answers drawn or scored, figures made. Ranks share the work.

The same function runs for `recipes/evaluate_policy.py` and at every evaluation of a training run.
What is computed together does not depend on the number of processes (`align.evaluation.ranks`), so
neither do the figures, which every rank has in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.config_errors import UserError
from align.evaluation import log_likelihood as ll
from align.evaluation import metrics as m
from align.evaluation import suite_metrics as figures_of
from align.evaluation.sampling import Decoding, as_reward, sample_ids, shared_scores
from align.evaluation.suite_rows import LETTERS, Row
from align.evaluation.suites import Suite, SuiteResult, Task
from align.records import Message, Prompt
from align.rollout.hf import eval_mode


@dataclass
class Subject:
    """What is evaluated, and by what. reward: `align.rewards.Reward`; judge: `judges.Judge`.

    batch_size: completions that are drawn at once.
    """

    model: Any
    tokenizer: Any
    reward: Any = None
    judge: Any = None
    batch_size: int = 32


def run_suite(
    suite: Suite, subject: Subject, *, intervals: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> SuiteResult:  # fmt: skip
    """Run every task; intervals: whether figures come with bootstrap intervals and categories.

    Raises UserError where the model cannot be asked: no template, no room for a prompt.
    """
    tasks: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    with eval_mode(subject.model):
        for task in suite.tasks:
            progress(f"{suite.name}/{task.name}: {len(task.rows)} rows")
            tasks[task.name], rows = _KINDS[task.kind](task, subject, intervals)
            tags = {"suite": suite.name, "task": task.name}
            samples += [{**tags, **row} for row in rows]
    result = SuiteResult({"suite": suite.name, "file": str(suite.path), "tasks": tasks}, samples)
    found = result.figures
    checked = [t.verdict(found.get(t.figure, float("nan"))) for t in suite.thresholds]
    result.report["thresholds"] = checked
    result.report["passed"] = all(t["passed"] for t in checked)
    return result


# Prompts


def _chat(task: Task, tokenizer: Any) -> bool:
    """Whether prompts go through the template; UserError where a task insists and there is none."""
    has = bool(getattr(tokenizer, "chat_template", None))
    if task.chat and not has:
        reason = "is asked for, and the model's tokenizer has no chat template"
        raise UserError(f"{task.name}.chat", True, reason, "Give --chat_template, or chat: false")
    return has if task.chat is None else task.chat


def prompt_messages(task: Task, row: Row) -> list[Message]:
    """System turn, examples, and the row's own messages."""
    turns = [Message("system", row.system)] if row.system.strip() else []
    for shot in task.shots:
        turns += [Message("user", shot.question), Message("assistant", shot.answer)]
    return [*turns, *row.messages]


def prompt_text(task: Task, row: Row) -> str:
    """The same as plain text, for a model without turns; parts are parted by an empty line."""
    shots = [_joined(s.question, s.answer) for s in task.shots]
    system = [row.system] if row.system.strip() else []
    return "\n\n".join([*system, *shots, *(message.content for message in row.messages)])


def _joined(question: str, answer: str) -> str:
    gap = " " if question[-1:].isascii() and not question[-1:].isspace() else ""
    return f"{question}{gap}{answer}"


def _prompt_ids(task: Task, tokenizer: Any, row: Row, chat: bool) -> list[int]:
    if chat:
        from align.chat import render_prompt

        return render_prompt(tokenizer, prompt_messages(task, row))
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return start + tokenizer(prompt_text(task, row), add_special_tokens=False)["input_ids"]


def _answer_room(asked: int, model: Any) -> int:
    """Tokens of an answer: what is asked, and no more than half of the model's positions."""
    from align.checkpoints import max_positions

    return min(asked, max(1, (max_positions(model) or 2 * asked) // 2))


def _room(task: Task, model: Any, lengths: Sequence[int]) -> list[int]:
    """Indices of the rows that fit into the model's positions; UserError where none does."""
    from align.checkpoints import max_positions

    limit = max_positions(model) or 10**9
    kept = [i for i, length in enumerate(lengths) if length <= limit]
    if not kept:
        field = f"{task.name}.decoding.max_new_tokens"
        reason = f"leaves no row of {task.data} room in the model's {limit} positions"
        raise UserError(field, task.decoding.max_new_tokens, reason, "Lower it")
    return kept


# Kinds of tasks


def _generate(
    task: Task, subject: Subject, intervals: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    how, tokenizer = task.decoding, subject.tokenizer
    chat = _chat(task, tokenizer)
    ids = [_prompt_ids(task, tokenizer, row, chat) for row in task.rows]
    limit = _answer_room(how.max_new_tokens, subject.model)
    kept = _room(task, subject.model, [len(i) + limit for i in ids])
    rows = [task.rows[i] for i in kept]
    prompts = [Prompt(tuple(prompt_messages(task, row))) for row in rows]
    decoding = Decoding(
        limit, min(how.min_new_tokens, limit), how.temperature, how.top_p, how.top_k,
        subject.batch_size,
    )  # fmt: skip
    out = sample_ids(
        subject.model, tokenizer, prompts, [ids[i] for i in kept],
        range(how.seed, how.seed + how.num_samples), decoding,
        None if chat else [tokenizer.eos_token_id], how.stop,
    )  # fmt: skip
    answers = figures_of.Answers(
        out.texts, out.finished, [len(c) for c in out.completions],
        [row.references for row in rows], [row.category for row in rows], {},
    )  # fmt: skip
    figures_of.fill_grids(answers, task.metrics, [row.checks for row in rows], task.tokenizer)
    _score(answers, task, subject, [list(p.messages) for p in out.row_prompts])
    chosen = task.metrics
    entry = _entry(
        task, rows, len(task.rows) - len(rows), figures_of.figures(answers, chosen,
                                                                   intervals=intervals),
        lambda which: _values(figures_of.figures(answers.part(which), chosen, intervals=False)),
    )  # fmt: skip
    given = {"reward": subject.reward, "judge": subject.judge}
    if missing := [name for name in chosen if name in given and given[name] is None]:
        entry["not_measured"] = missing
    entry["samples"] = how.num_samples
    if limit < how.max_new_tokens:
        entry["max_new_tokens_asked"] = how.max_new_tokens
    entry["decoding"] = {**decoding.to_json(), "seed": how.seed, "stop": list(how.stop)}
    return entry, _generated(rows, answers)


def _score(
    answers: figures_of.Answers, task: Task, subject: Subject, messages: list[list[Message]]
) -> None:
    """Reward and judge of every sample, where the task wants them and they are given."""
    for name, source in (("reward", subject.reward), ("judge", as_reward(subject.judge))):
        if name in task.metrics and source is not None:
            values = shared_scores(
                source, messages, answers.texts, answers.finished, subject.batch_size
            )
            shape = (len(answers.categories), answers.samples)
            answers.grids[name] = values.reshape(shape)


def _generated(rows: Sequence[Row], answers: figures_of.Answers) -> list[dict[str, Any]]:
    made = []
    for r, row in enumerate(rows):
        for s in range(answers.samples):
            i = r * answers.samples + s
            made.append({
                "category": row.category, "prompt": row.prompt_json, "completion": answers.texts[i],
                "finished": bool(answers.finished[i]), "length": answers.lengths[i],
                "references": list(row.references),
                **{name: float(grid[r, s]) for name, grid in answers.grids.items()},
            })  # fmt: skip
    return made


def _log_likelihood(
    task: Task, subject: Subject, intervals: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    chat = _chat(task, subject.tokenizer)
    choices = [
        LETTERS[: len(row.choices)] if task.answer_as == "letter" else row.choices
        for row in task.rows
    ]
    ids = []
    for row, texts in zip(task.rows, choices, strict=True):
        messages = prompt_messages(task, row)
        if not chat:
            messages = [Message("user", prompt_text(task, row))]
        ids.append(ll.choice_ids(subject.tokenizer, messages, list(texts), chat=chat))
    lengths = [max(len(a) + len(b) for a, b in zip(*pair, strict=True)) for pair in ids]
    kept = _room(task, subject.model, lengths)
    rows, texts = [task.rows[i] for i in kept], [list(choices[i]) for i in kept]
    size = max(1, subject.batch_size // 4)
    logps = ll.choice_logps(subject.model, [ids[i] for i in kept], batch_size=size)
    found = ll.accuracies(logps, texts, [row.answer for row in rows])
    found = {name: found[name] for name in task.metrics}
    entry = _means(task, rows, found, intervals)
    made = [
        {
            "category": row.category, "prompt": row.prompt_json,
            "completion": row.choices[int(np.argmax(logps[i]))], "choices": list(row.choices),
            "answer": row.answer, "logps": logps[i],
            **{name: float(values[i]) for name, values in found.items()},
        }
        for i, row in enumerate(rows)
    ]  # fmt: skip
    return entry, made


def _perplexity(
    task: Task, subject: Subject, intervals: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from align.evaluation.perplexity import text_likelihoods, together

    texts = [row.text for row in task.rows]
    try:
        rows = text_likelihoods(
            subject.model, subject.tokenizer, texts, window=task.window, stride=task.stride,
            packed=task.packed,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"{task.name}.stride", task.stride, str(error)) from None
    kept = [row for row in rows if row.tokens]
    if not kept:
        raise UserError(f"{task.name}.data", str(task.data), "has no text of two tokens")
    total = together(kept).to_json()
    sums = np.array([[row.nll, row.tokens, row.chars] for row in kept])
    below = {"perplexity": 1, "nll_per_token": 1, "nll_per_char": 2}

    def statistic(name: str) -> Callable[[np.ndarray], float]:
        def value(data: np.ndarray) -> float:
            ratio = data[:, 0].sum() / data[:, below[name]].sum()
            return float(np.exp(min(ratio, 700.0))) if name == "perplexity" else float(ratio)

        return value

    found = {
        name: {**m.bootstrap(sums, statistic(name)).to_json(), "value": float(total[name])}
        if intervals and len(kept) > 1 else {"value": float(total[name])}
        for name in task.metrics
    }  # fmt: skip
    entry = _entry(task, task.rows, 0, found, None)
    return entry | {"tokens": total["tokens"], "chars": total["chars"]}, []


def _means(
    task: Task, rows: Sequence[Row], found: dict[str, np.ndarray], intervals: bool
) -> dict[str, Any]:
    """The entry of a task whose figures are means over its rows."""
    figures = {name: figures_of.mean_of(name, v, intervals) for name, v in found.items()}
    return _entry(
        task, rows, len(task.rows) - len(rows), figures,
        lambda which: {name: float(values[which].mean()) for name, values in found.items()},
    )  # fmt: skip


def _entry(
    task: Task, rows: Sequence[Row], dropped: int, found: dict[str, dict[str, float]],
    measure: Callable[[list[int]], dict[str, float]] | None,
) -> dict[str, Any]:  # fmt: skip
    entry: dict[str, Any] = {"kind": task.kind, "data": str(task.data), "n": len(rows)}
    if dropped:
        entry["dropped"] = {"prompt_too_long": dropped}
    entry["metrics"] = found
    if measure is not None:
        entry["categories"] = figures_of.by_category([row.category for row in rows], measure)
    return entry


def _values(found: dict[str, dict[str, float]]) -> dict[str, float]:
    return {name: one["value"] for name, one in found.items()}


_KINDS = {
    "generate": _generate, "log_likelihood": _log_likelihood, "perplexity": _perplexity,
}  # fmt: skip
