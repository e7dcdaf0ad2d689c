"""Sample a model on held-out prompts and measure what it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from align.config_errors import UserError
from align.records import Prompt


@dataclass(frozen=True)
class Decoding:
    """How every model of an evaluation is sampled. temperature 0 is greedy."""

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int = 32

    def to_json(self) -> dict[str, float | int]:
        """What the result depends on; the batch size is left out."""
        return {k: v for k, v in asdict(self).items() if k != "batch_size"}


@dataclass
class Outputs:
    """Completions of one model: row p·S + s is prompt p under seed s."""

    prompts: list[Prompt]
    seeds: list[int]
    prompt_ids: list[list[int]]
    completions: list[list[int]]
    texts: list[str]
    finished: list[bool]
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def row_prompts(self) -> list[Prompt]:
        """Prompt of each row."""
        return [p for p in self.prompts for _ in self.seeds]

    def grid(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Values of the rows as (prompts, seeds)."""
        return np.asarray(values, dtype=np.float64).reshape(len(self.prompts), len(self.seeds))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each completion, the end token included."""
        return np.array([len(c) for c in self.completions], dtype=np.float64)


def sample(
    model: Any, tokenizer: Any, prompts: list[Prompt], seeds: Sequence[int], decoding: Decoding
) -> Outputs:
    """One completion of each prompt under each seed."""
    from align.chat import render_prompt, stop_ids
    from align.rollout.hf import HFSampler

    ids = [render_prompt(tokenizer, list(p.messages)) for p in prompts]
    sampler = HFSampler(
        model, tokenizer, stop_ids=stop_ids(tokenizer), **asdict(decoding)
    )
    rows: list[Any] = [None] * (len(prompts) * len(seeds))
    for s, seed in enumerate(seeds):
        got = sampler.sample(ids, 1, seed)
        for p in range(len(prompts)):
            rows[p * len(seeds) + s] = (got.completions[p], got.texts[p], got.finished[p])
    completions, texts, finished = (list(column) for column in zip(*rows, strict=True))
    repeated = [i for i in ids for _ in seeds]
    return Outputs(prompts, list(seeds), repeated, completions, texts, finished)


def fitting(
    prompts: list[Prompt], loaded: Sequence[tuple[Any, Any]], max_new_tokens: int
) -> tuple[list[Prompt], int]:
    """Prompts that every model can read with room for an answer, and how many were left out."""
    from align.chat import render_prompt
    from align.checkpoints import max_positions

    kept = list(prompts)
    for model, tokenizer in loaded:
        room = (max_positions(model) or 10**9) - max_new_tokens
        kept = [p for p in kept if len(render_prompt(tokenizer, list(p.messages))) <= room]
    if not kept:
        raise UserError(
            "max_new_tokens", max_new_tokens, "no prompt leaves room for that many tokens",
            "lower max_new_tokens or give shorter prompts",
        )  # fmt: skip
    return kept, len(prompts) - len(kept)


def load_reward(path: str, device: Any = None) -> Any:
    """A reward from a command line: a checkpoint or run folder, module:function, file.py:function.

    UserError when it is neither.
    """
    from pathlib import Path

    from align.checkpoints import find_model
    from align.rewards import make_reward

    if Path(path).exists():
        source = {"kind": "model", "path": str(find_model(path, "reward"))}
    elif ":" in path:
        source = {"kind": "function", "path": path}
    else:
        raise UserError(
            "reward", path, "no such folder", "give a reward checkpoint or module:function"
        )
    return make_reward([source], device)


def score(reward: Any, outputs: Outputs) -> np.ndarray:
    """(rows,) rewards."""
    prompts = [list(p.messages) for p in outputs.row_prompts]
    return np.asarray(reward(prompts, outputs.texts, outputs.finished), dtype=np.float64)
