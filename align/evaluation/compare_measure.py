"""What one run gives in a comparison: samples, and numbers for every one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from align.checkpoints import (
    adapter_base,
    find_model,
    only_adapter,
    read_tokenizer,
    run_dir_of,
    tokenizer_folder,
)
from align.config_errors import UserError
from align.evaluation.sampling import Decoding, Outputs, sample, score
from align.model_safety import code_options
from align.records import Prompt


@dataclass
class Measured:
    """What one run gave: its samples, and a number or None for each row.

    judges: {name: (rows,) scores} of the judges that score single texts, NaN where one gave none.
    """

    name: str
    path: Path
    outputs: Outputs
    kl: np.ndarray | None
    baseline_nll: np.ndarray
    baseline_tokens: np.ndarray
    judges: dict[str, np.ndarray] = field(default_factory=dict)


def scores_texts(judge: Any) -> bool:
    """Whether a judge scores single texts; else it only compares."""
    return hasattr(judge, "score")


def measure(
    name: str, path: Path, own: tuple, base: tuple, prompts: list[Prompt], seeds: Sequence[int],
    decoding: Decoding, reward: Any, judges: Sequence[Any] = (),
) -> Measured:  # fmt: skip
    """Sample one run and score its samples. own, base: (model, tokenizer)."""
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
    messages = [list(p.messages) for p in out.row_prompts]
    judged = {
        judge.name: np.asarray(judge.score(messages, out.texts), dtype=np.float64)
        for judge in judges
        if scores_texts(judge)
    }
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


def limits_of(path: Path, field: str) -> tuple[Any, Any]:
    """What decides whether a prompt fits a model: (an object with its config, tokenizer)."""
    from transformers import AutoConfig

    from align.chat import prepare_tokenizer

    folder = find_model(path, field)
    source = adapter_base(folder) if only_adapter(folder) else folder
    config = AutoConfig.from_pretrained(str(source), **code_options(source, field))
    tokenizer = prepare_tokenizer(read_tokenizer(tokenizer_folder(folder), field))
    return SimpleNamespace(config=config), tokenizer


def unlike_names(judges: Sequence[Any] | None) -> list[Any]:
    """Judges whose names differ from each other and from "reward"; later ones get a number."""
    taken = {"reward"}
    for judge in judges or ():
        name, number = judge.name, 2
        while judge.name in taken:
            judge.name = f"{name} ({number})"
            number += 1
        taken.add(judge.name)
    return list(judges or ())


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
