"""Held-out evaluation of PPO: sampled at eval.temperature, scored raw, measured against the SFT."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from align.distributed import barrier, gather_objects, rank
from align.evaluation.metrics import pass_at_k, tries, worst_cases
from align.evaluation.sampling import prompt_seed
from align.groups import TokenGroup
from align.records import messages_json
from align.rollout import Sampler
from align.train.batches import FILLER, eval_parts
from align.train.halt import agreed
from align.train.samples import append_samples

if TYPE_CHECKING:
    from align.config_schema import Eval
    from align.train.ppo import PpoTrainer


def evaluate_prompts(trainer: PpoTrainer) -> dict[str, float]:
    """Figures over all held-out prompts and ranks; appends the samples to samples.jsonl.

    score/mean and score/std are raw rewards, score/p1, p5, p10 and min their worst cases; with
    eval.n completions a prompt score/best is the mean of each prompt's best, and pass@k is of those
    that score eval.pass_score. judge/mean is eval.judge's. kl/sum: Σ log π − log π_ref over a
    sample's tokens at rollout.temperature, averaged; an estimate of KL where eval.temperature
    equals it, and below that (greedy) the log-ratio of what the policy would say first.
    """
    args = trainer.args
    draws = trainer.collector.draws
    # In the middle of an update the weights are newer than their number. The next update hands over
    # its own, and what is drawn ahead is there before these are handed over.
    draws.sync(trainer.position.update, again=True)
    # Opened once for all parts: sharded weights are gathered for it.
    with draws.engine.sampling(temperature=trainer.settings.eval.temperature) as sampler:
        rows = _rows(trainer, sampler)
    everything = [row for ranked in gather_objects(rows) for row in ranked]
    if rank() == 0:
        file = Path(str(args.output_dir)) / "samples.jsonl"
        append_samples(file, everything, trainer.state.global_step)
    barrier()
    scores = torch.tensor([row["score"] for row in everything], dtype=torch.float64)
    count = len(everything)
    judged = [row["judge"] for row in everything if "judge" in row]
    return {
        **({"judge/mean": math.fsum(judged) / count} if judged else {}),
        **_of_tries(scores.reshape(-1, trainer.settings.eval.n), trainer.settings.eval),
        "score/mean": float(scores.mean()),
        "score/std": float(scores.std(unbiased=False)),
        "kl/sum": sum(row["kl"] for row in everything) / count,
        "length/mean": sum(row["tokens"] for row in everything) / count,
        "eos_rate": sum(row["finished"] for row in everything) / count,
    }


def _rows(trainer: PpoTrainer, sampler: Sampler) -> list[dict[str, Any]]:
    """This rank's samples, one row each."""
    args, collector = trainer.args, trainer.collector
    rows: list[dict[str, Any]] = []
    parts = eval_parts(
        len(trainer.eval_prompts), args.per_device_eval_batch_size,
        rank=args.process_index, world=args.world_size,
    )  # fmt: skip
    seed, n = trainer.settings.eval.seeds[0], trainer.settings.eval.n
    for part in parts:
        places = [i if i != FILLER else 0 for i in part]
        chosen = [trainer.eval_prompts[i] for i in places]
        # The prompt's own, so that neither the rank nor the batch decides what is drawn.
        seeds = [prompt_seed(seed + s, i) for i in places for s in range(n)]
        samples = agreed(partial(sampler.sample, [p.ids for p in chosen], n, seeds))
        scores = agreed(partial(collector.score, chosen, samples, n)).tolist()
        groups = [
            TokenGroup(p.ids, samples.completions[k * n : (k + 1) * n])
            for k, p in enumerate(chosen)
        ]
        measured = collector.measure(groups)
        ratio = (measured["logps"] - measured["ref_logps"]).split(
            [len(c) for c in samples.completions]
        )
        judge = trainer.measures.judge
        asked = [p.messages for p in chosen for _ in range(n)]
        judged = agreed(partial(judge.score, asked, samples.texts)) if judge else []
        if part[0] == FILLER:
            continue
        for i, messages in enumerate(asked):
            rows.append({
                "step": trainer.state.global_step,
                "prompt": messages_json(messages),
                "completion": samples.texts[i],
                "score": scores[i],
                "kl": float(ratio[i].sum()),
                "tokens": len(samples.completions[i]),
                "finished": samples.finished[i],
                **({"judge": float(judged[i])} if judge else {}),
            })  # fmt: skip
    return rows


def _of_tries(scores: torch.Tensor, settings: Eval) -> dict[str, float]:
    """Worst cases of scores (P, n), and of n > 1 tries what the best of them give."""
    found = {f"score/{name}": value for name, value in worst_cases(scores.numpy()).items()}
    if settings.n > 1:
        found["score/best"] = float(scores.max(dim=1).values.mean())
    if settings.pass_score is not None:
        passed = (scores >= settings.pass_score).sum(dim=1).tolist()
        for k in tries(settings.n):
            each = [pass_at_k(settings.n, int(c), k) for c in passed]
            found[f"pass@{k}"] = math.fsum(each) / len(each)
    return found
