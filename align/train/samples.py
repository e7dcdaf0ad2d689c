"""samples.jsonl: what a model says during training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.distributed import barrier, rank
from align.files import write_atomic
from align.train.callbacks import plain
from align.whole import whole_lm


def append_samples(path: Path, rows: Sequence[dict[str, Any]], step: int) -> None:
    """Add an evaluation's samples; those of the same or a later step belong to a lost part."""
    kept = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] < step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue
    new = [json.dumps({k: _json(v) for k, v in r.items()}, ensure_ascii=False) for r in rows]
    write_atomic(path, "\n".join([*kept, *new]) + "\n")


def sample_texts(trainer: Any, prompts: Sequence[str], n: int, tokens: int) -> None:
    """Continue the prompts and append the samples; on rank 0, the others wait.

    eval.temperature and the first of eval.seeds decide how.
    """
    from align.rollout.hf import HFSampler

    tokenizer, settings = trainer.policy.tokenizer, trainer.settings
    chunk = settings.rollout.gather_chunk_mb
    with whole_lm(trainer.policy.module.lm, trainer.args.device, chunk) as lm:
        if rank() == 0:
            sampler = HFSampler(
                lm, tokenizer, {tokenizer.eos_token_id}, max_new_tokens=tokens,
                temperature=settings.eval.temperature, batch_size=16,
            )  # fmt: skip
            ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
            found = sampler.sample(ids, n, settings.eval.seeds[0])
            step = trainer.state.global_step
            rows = [
                {
                    "step": step, "prompt": prompts[i // n], "completion": found.texts[i],
                    "tokens": len(found.completions[i]), "finished": found.finished[i],
                }
                for i in range(len(found))
            ]  # fmt: skip
            append_samples(Path(str(trainer.args.output_dir)) / "samples.jsonl", rows, step)
    barrier()


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Ids of a text to continue; of an empty one EOS, after which a text begins."""
    return tokenizer(prompt, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]


def _json(value: Any) -> Any:
    return value if isinstance(value, list) else plain(value)
