"""Held-out evaluation of PPO: sampled at eval.temperature, scored raw, measured against the SFT."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from align.distributed import barrier, gather_objects, rank
from align.groups import TokenGroup
from align.records import messages_json
from align.rollout import rank_seed
from align.train.batches import FILLER, eval_parts
from align.train.halt import agreed
from align.train.samples import append_samples

if TYPE_CHECKING:
    from align.train.ppo import PpoTrainer


def evaluate_prompts(trainer: PpoTrainer) -> dict[str, float]:
    """Figures over all held-out prompts and ranks; appends the samples to samples.jsonl.

    score/mean and score/std are raw rewards. kl/sum: Σ log π − log π_ref over a sample's tokens at
    rollout.temperature, averaged; an estimate of KL where eval.temperature equals it, and below
    that (greedy) the log-ratio of what the policy would say first.
    """
    args = trainer.args
    with trainer.collector.whole() as lm:  # gathered once for all parts
        rows = _rows(trainer, lm)
    everything = [row for ranked in gather_objects(rows) for row in ranked]
    if rank() == 0:
        file = Path(str(args.output_dir)) / "samples.jsonl"
        append_samples(file, everything, trainer.state.global_step)
    barrier()
    scores = torch.tensor([row["score"] for row in everything], dtype=torch.float64)
    count = len(everything)
    return {
        "score/mean": float(scores.mean()),
        "score/std": float(scores.std(unbiased=False)),
        "kl/sum": sum(row["kl"] for row in everything) / count,
        "length/mean": sum(row["tokens"] for row in everything) / count,
        "eos_rate": sum(row["finished"] for row in everything) / count,
    }


def _rows(trainer: PpoTrainer, lm: Any) -> list[dict[str, Any]]:
    """This rank's samples of the whole model lm, one row each."""
    args, collector = trainer.args, trainer.collector
    temperature = trainer.settings.eval.temperature
    rows: list[dict[str, Any]] = []
    parts = eval_parts(
        len(trainer.eval_prompts), args.per_device_eval_batch_size,
        rank=args.process_index, world=args.world_size,
    )  # fmt: skip
    seed = rank_seed(trainer.settings.eval.seeds[0], args.process_index)
    for number, part in enumerate(parts):
        chosen = [trainer.eval_prompts[i if i != FILLER else 0] for i in part]
        samples = collector.sample(chosen, seed + number, lm, n=1, temperature=temperature)
        scores = agreed(partial(collector.score, chosen, samples, 1)).tolist()
        groups = [TokenGroup(p.ids, [c]) for p, c in zip(chosen, samples.completions, strict=True)]
        measured = collector.measure(groups)
        ratio = (measured["logps"] - measured["ref_logps"]).split(
            [len(c) for c in samples.completions]
        )
        if part[0] == FILLER:
            continue
        for i, item in enumerate(chosen):
            rows.append({
                "step": trainer.state.global_step,
                "prompt": messages_json(item.messages),
                "completion": samples.texts[i],
                "score": scores[i],
                "kl": float(ratio[i].sum()),
                "tokens": len(samples.completions[i]),
                "finished": samples.finished[i],
            })  # fmt: skip
    return rows
