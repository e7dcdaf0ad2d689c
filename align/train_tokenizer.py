"""The tokenizer stage: text in, a run directory with `final/` out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from align import launch_env

if TYPE_CHECKING:
    from align.config import Config


def train(config: Config) -> dict[str, float]:
    """Learn the vocabulary on rank 0 and return how well it fits the text."""
    if launch_env.rank() != 0:
        return {}
    from align.data.tokenizer import compression, save_tokenizer, train_tokenizer
    from align.files import write_atomic
    from align.fresh import paragraphs, training_texts

    assert config.data.text is not None  # config_checks asks for it
    settings = config.tokenizer
    texts = list(training_texts(config))
    tokenizer = train_tokenizer(
        texts,
        settings.vocab_size,
        min_frequency=settings.min_frequency,
        model_max_length=config.data.max_length,
        chat_template=config.data.chat_template,
    )
    run_dir = Path(config.train.output_dir)
    save_tokenizer(tokenizer, run_dir / "final")
    heldout = config.data.validation
    held_out = paragraphs(heldout, "data.validation") if heldout else texts[:2000]
    metrics = compression(tokenizer, held_out)
    metrics["vocab_size"] = float(len(tokenizer))
    write_atomic(run_dir / "metrics.jsonl", json.dumps({"step": 1, **metrics}) + "\n")
    counts = [{"file": ", ".join(config.texts), "used": len(texts), "dropped": {}, "truncated": 0}]
    write_atomic(run_dir / "data_counts.json", json.dumps(counts, ensure_ascii=False) + "\n")
    return metrics
