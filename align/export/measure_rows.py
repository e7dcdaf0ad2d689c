"""What quantised forms are measured on and calibrated with, from options or the run itself.

Perplexity: --eval_data, else the run's held-out answers, else rows it was trained on, else a small
built-in sample, and the report says which. Reading is torch-free; `encode` needs the tokenizer.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.checkpoints import run_dir_of
from align.config_errors import NO_VALUE, UserError
from align.data.corpus import TEXT_SUFFIXES, iter_texts, readable
from align.data.pairs import load_preferences
from align.data.prompts import load_prompts
from align.data.rows import rows as rows_of
from align.data.sft import load_sft
from align.data.splits import split_by_key
from align.evaluation.history import config_value
from align.records import Message, Prompt, prompt_key

BUILT_IN = "the built-in sample"
# (question, answer) pairs: only a last resort, so that a figure is shown for every form.
_SAMPLE = (
    ("What is the capital of France?", "The capital of France is Paris, a city on the Seine."),
    ("Why is the sky blue?", "Air scatters the short waves of sunlight, which are blue, more than "
     "the long ones, so blue light reaches the eye from all over the sky."),
    ("How do I boil an egg?", "Put the egg into boiling water for seven to ten minutes, then into "
     "cold water, and peel it."),
    ("Name three primary colours.", "Red, yellow and blue."),
    ("请介绍一下北京。", "北京是中国的首都，历史悠久，有故宫、长城和许多公园。"),
    ("怎样才能睡得更好？", "每天按时睡觉，睡前少看手机，晚上不要喝咖啡，房间保持安静。"),
    ("一年有几个季节？", "一年有四个季节：春天、夏天、秋天和冬天。"),
    ("写一句对酒店的评价。", "房间很干净，服务员很热情，早餐也不错，下次还会来。"),
)  # fmt: skip
Row = tuple[tuple[Message, ...], Any] | str  # a prompt and its answer, or a document


@dataclass(frozen=True)
class Data:
    """Rows and where they are from. held_out: None where nobody knows."""

    rows: Sequence[Row]
    source: str
    held_out: bool | None


def run_of(model: str | Path) -> Path:
    """The run directory that a model belongs to, whether or not it has a config.yaml."""
    return run_dir_of(model)


def eval_data(args: argparse.Namespace) -> Data:
    """Rows for perplexity. UserError for a file without answers or texts, and for a limit alone."""
    if args.eval_data is not None:
        return Data(_some(args.eval_data, args.num_eval), args.eval_data, None)
    run = run_of(args.model or args.checkpoint)
    found = _of_run(run, args.num_eval, held_out=True)
    if found is None and args.max_ppl_increase is not None:
        raise UserError(
            "--eval_data", NO_VALUE, "is needed by --max_ppl_increase: the model's run names no "
            "held-out answers", "Give a file of conversations, preferences or texts",
        )  # fmt: skip
    found = found or _of_run(run, args.num_eval, held_out=False)
    if found is not None:
        return found
    sample = [((Message("user", q),), a) for q, a in _SAMPLE]
    return Data(list(sample), BUILT_IN, None)


def calibration_data(args: argparse.Namespace, form: str) -> Data:
    """Rows that a form looks at while it rounds. UserError where there are none."""
    if args.calibration is not None:
        found = _some(args.calibration, args.num_calibration, "--calibration")
        return Data(found, args.calibration, None)
    run = run_of(args.model or args.checkpoint)
    found = _of_run(run, args.num_calibration, held_out=False)
    if found is None:
        raise UserError(
            "--calibration", NO_VALUE, f"is needed by {form}: the model's run names no answers",
            "Give a file of conversations, preferences or texts like those the model will see",
        )  # fmt: skip
    return found


def prompts(args: argparse.Namespace, found: Data) -> tuple[list[Prompt], str]:
    """Prompts to answer, and their file: --prompts, the run's held-out ones, those of the rows."""
    path, field = args.prompts, "--prompts"
    run = run_of(args.model or args.checkpoint)
    for key in ("eval.prompts", "data.validation", "data.prompts"):
        value = config_value(run, key)
        if path is None and isinstance(value, str) and Path(value).is_file():
            path, field = value, key
    if path is not None:
        return load_prompts(path, field)[: args.num_prompts], path
    asked = [Prompt(row[0]) for row in found.rows if not isinstance(row, str)]
    asked = list({p.prompt_id: p for p in asked}.values())
    return asked[: args.num_prompts], found.source if asked else ""


def encode(
    tokenizer: Any, found: Sequence[Row], positions: int | None
) -> list[tuple[list[int], list[int]]]:
    """(context ids, scored ids) of rows: answers after their prompts, documents in windows.

    Answers that do not fit the model's positions are left out. Empty where nothing is left.
    """
    from align.chat import render_completion
    from align.evaluation.perplexity import windows

    room = positions or math.inf
    window = int(min(1024, room))
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    pairs: list[tuple[list[int], list[int]]] = []
    for row in found:
        if isinstance(row, str):
            ids = start + tokenizer(row, add_special_tokens=False)["input_ids"]
            pairs += windows(ids, window, max(1, window // 2)) if len(ids) > 1 else []
            continue
        prompt, completion, _ = render_completion(tokenizer, row[0], row[1])
        if len(prompt) + len(completion) <= room:
            pairs.append((prompt, completion))
    return pairs


def _of_run(run: Path, limit: int, *, held_out: bool) -> Data | None:
    """The run's own answers: of data.validation, else the held-out or the trained-on share."""
    validation = config_value(run, "data.validation")
    if held_out and isinstance(validation, str) and Path(validation).is_file():
        try:
            return Data(_some(validation, limit, "data.validation"), validation, True)
        except UserError:
            pass  # prompts without answers, as PPO's are
    share = config_value(run, "data.validation_fraction") or 0
    seed = config_value(run, "train.seed")
    for key in ("data.sft", "data.preferences"):
        path = config_value(run, key)
        if not isinstance(path, str) or not Path(path).is_file():
            continue
        every = [row for row in read(path, key) if not isinstance(row, str)]
        keys = [prompt_key(row[0]) for row in every]
        parts = {"train": 1 - share, "validation": share}
        places = split_by_key(keys, parts, 42 if seed is None else seed) if share else {}
        chosen = places.get("validation" if held_out else "train", [])
        if not share and not held_out:
            chosen = range(len(every))
        if chosen:
            return Data([every[i] for i in chosen][:limit], path, held_out)
    return None


def _some(path: str, limit: int, field: str = "--eval_data") -> list[Row]:
    return read(path, field)[:limit]


def read(path: str, field: str) -> list[Row]:
    """Conversations, chosen answers, or texts of a file. UserError where it holds none."""
    if not Path(path).is_file():
        raise UserError(field, path, "is not a file", "Check the path")
    first = {} if _is_text(path) else next((row for _, row in rows_of(path, field)), {})
    if _is_text(path) or isinstance(first.get("text"), str):
        with readable(path, field):
            texts: list[Row] = [text for text in iter_texts(path) if text.strip()]
        if not texts:
            raise UserError(field, path, "holds no text", "Give one paragraph a line")
        return texts
    if "chosen" in first:
        groups, _ = load_preferences(path, field)
        return [
            (group.prompt, candidate.content)
            for group in groups for candidate in group.candidates if candidate.id == "chosen"
        ]  # fmt: skip
    examples, _ = load_sft(path, field)
    return [_last_answer(example.messages) for example in examples]


def _last_answer(messages: tuple[Message, ...]) -> Row:
    at = max(i for i, m in enumerate(messages) if m.role == "assistant")
    return messages[:at], messages[at].content


def _is_text(path: str) -> bool:
    return Path(path).suffix.lower() in TEXT_SUFFIXES
