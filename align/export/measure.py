"""Before and after quantisation: perplexity, reward, size and speed, on the same tokens.

Every form is measured by the program that runs it where one can be asked for what is needed; the
token ids are handed over, so that no tokenizer or template of another program is in the figures.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.config_errors import Failed
from align.records import Prompt

BATCH = 8
"""Answers that are sampled at once for the speed and reward figures."""


@dataclass(frozen=True)
class Task:
    """What is measured. pairs: (context ids, scored ids). prompt_ids: of `prompts`, rendered.

    reward: text in, floats out; None with the reason in `no_reward`. stops: ids that end an answer.
    notes: where the rows are from, for the report.
    """

    pairs: list[tuple[list[int], list[int]]]
    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    answer_tokens: int
    stops: tuple[int, ...]
    tokenizer: Any
    reward: Any = None
    no_reward: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    def to_spec(self) -> dict[str, Any]:
        """What a script in another environment needs of it."""
        return {
            "pairs": self.pairs,
            "prompts": self.prompt_ids,
            "answer_tokens": self.answer_tokens,
            "stops": list(self.stops),
            "batch": BATCH,
        }


@dataclass(frozen=True)
class Figures:
    """One model's. perplexity: exp of the mean nats a scored token; None with `no_perplexity`.

    reward: mean over the greedy answers. disk_bytes: weights and their metadata as files.
    tokens_per_s: sampled tokens a second, BATCH answers at once unless the engine says otherwise.
    memory_bytes: of the weights as loaded, or of the engine's process. engine: what ran it.
    """

    perplexity: float | None
    tokens: int
    reward: float | None
    disk_bytes: int
    tokens_per_s: float | None
    memory_bytes: int | None
    engine: str
    answers: list[str] = field(default_factory=list)
    no_perplexity: str = ""

    def to_json(self) -> dict[str, Any]:
        """Without the answers."""
        found = {k: v for k, v in vars(self).items() if k != "answers" and v != ""}
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in found.items()}


def with_transformers(folder: Path, task: Task, model: Any = None, engine: str = "") -> Figures:
    """Figures of a folder (or of a model loaded from it) in transformers, in this process."""
    import transformers

    from align.checkpoints import load_causal_lm
    from align.evaluation.perplexity import completion_logps
    from align.evaluation.sampling import Decoding, sample_ids

    if model is None:
        model, _ = load_causal_lm(folder, need_template=False)
    logps = completion_logps(model, [c for c, _ in task.pairs], [t for _, t in task.pairs])
    answers, speed, texts = [], None, []
    if task.prompt_ids:
        how = Decoding(max_new_tokens=task.answer_tokens, temperature=0.0, batch_size=BATCH)
        start = time.monotonic()
        out = sample_ids(
            model, task.tokenizer, task.prompts, task.prompt_ids, (0,), how, task.stops
        )
        speed = sum(map(len, out.completions)) / (time.monotonic() - start)
        answers, texts = out.completions, out.texts
    return figures(
        task, folder, logps=logps, answers=answers, texts=texts, tokens_per_s=speed,
        memory=weight_bytes(model),
        engine=engine or f"transformers {transformers.__version__}",
    )  # fmt: skip


def figures(
    task: Task, place: Path, *, engine: str, logps: Sequence[Sequence[float]] | None,
    answers: Sequence[Sequence[int]] = (), texts: Sequence[str] = (),
    tokens_per_s: float | None = None, memory: int | None = None, no_perplexity: str = "",
) -> Figures:  # fmt: skip
    """Figures from what an engine gave: log-probs of the scored tokens, greedy answers.

    place: the folder or file whose size counts. texts: of the answers, where the engine gave them.
    """
    perplexity, tokens = None, 0
    if logps is not None:
        tokens = sum(map(len, logps))
        mean = -math.fsum(value for row in logps for value in row) / max(1, tokens)
        perplexity = math.exp(min(mean, 700.0)) if tokens else None
    if not texts:
        from align.chat import completion_text

        texts = [completion_text(task.tokenizer, ids) for ids in answers]
    reward = None
    if task.reward is not None and texts:
        ended = [bool(ids) and ids[-1] in task.stops for ids in answers]
        asked = [list(p.messages) for p in task.prompts]
        scores = task.reward(asked, list(texts), ended)
        reward = math.fsum(scores) / len(scores)
    return Figures(
        perplexity, tokens, reward, disk_bytes(place), tokens_per_s, memory, engine, list(texts),
        no_perplexity,
    )  # fmt: skip


def weight_bytes(model: Any) -> int:
    """Bytes of parameters and buffers; of a tensor made of several (torchao's), of its parts."""
    total = 0
    for tensor in [*model.parameters(), *model.buffers()]:
        flatten = getattr(tensor, "__tensor_flatten__", None)
        parts = [getattr(tensor, name) for name in flatten()[0]] if flatten else [tensor]
        total += sum(part.numel() * part.element_size() for part in parts)
    return total


def disk_bytes(place: Path) -> int:
    """Bytes of the weight files in a folder, or of a file."""
    files = [place] if place.is_file() else [*place.glob("*.safetensors"), *place.glob("*.gguf")]
    return sum(file.stat().st_size for file in files)


def growth(before: Figures, after: Figures) -> float | None:
    """Relative growth of perplexity; None where one is missing."""
    if before.perplexity is None or after.perplexity is None:
        return None
    return after.perplexity / before.perplexity - 1


def check_limit(label: str, before: Figures, after: Figures, limit: float | None) -> None:
    """Failed where perplexity grew by more than the limit, or is not known though there is one."""
    if limit is None:
        return
    grown = growth(before, after)
    if grown is None:
        reason = after.no_perplexity or before.no_perplexity or "it was not measured"
        raise Failed(
            f"{label}: --max_ppl_increase {limit:g} cannot be checked ({reason}); nothing was "
            "written"
        )
    if not grown <= limit:  # not a number is no pass either
        raise Failed(
            f"{label}: perplexity grew from {before.perplexity:.4g} to {after.perplexity:.4g} "
            f"({grown:+.1%}) on {after.tokens:,} tokens, --max_ppl_increase allows {limit:.1%}; "
            "nothing was written"
        )


def table(rows: Sequence[tuple[str, Figures, Figures]]) -> str:
    """One line a form: before → after."""
    head = ("form", "perplexity", "grown", "reward", "MB on disk", "tokens/s", "engine")
    lines: list[tuple[str, ...]] = [head]
    for label, before, after in rows:
        grown = growth(before, after)
        lines.append((
            label,
            f"{_shown(before.perplexity, '.4g')} → {_shown(after.perplexity, '.4g')}",
            _shown(grown, "+.2%"),
            f"{_shown(before.reward, '.3f')} → {_shown(after.reward, '.3f')}",
            f"{before.disk_bytes / 1e6:.1f} → {after.disk_bytes / 1e6:.1f}",
            f"{_shown(before.tokens_per_s, '.1f')} → {_shown(after.tokens_per_s, '.1f')}",
            after.engine,
        ))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _shown(value: float | None, form: str) -> str:
    return "null" if value is None else format(value, form)


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """quantisation.json of a form's folder."""
    from align.files import write_atomic

    text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
    write_atomic(folder / "quantisation.json", text)
