"""One of two ranks of test_synced.py: samples with synced_gpus and prints what it did as JSON."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
import rollout_models as tiny

from align.rollout import Interrupted
from align.rollout.hf import HFSampler

# Rank 0's completions end after three tokens at most, rank 1's after ten.
SCRIPTS = ([5, 6, 7, 0], [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0])
PROMPTS = ([[6], [5], [7]], [[9], [5], [7]])


def told(rank: int, forwards: list[int]) -> bool:
    """Rank 1 is told to stop after its fourth forward pass."""
    return rank == 1 and len(forwards) >= 4


def main(rank: int, store: str, how: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    model = tiny.parrot(SCRIPTS[rank])
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    sampler = HFSampler(
        model, tiny.tokenizer(), stop_ids=[0], max_new_tokens=20, temperature=0.0, batch_size=2,
        synced_gpus=True, interrupted=partial(told, rank, forwards) if how == "told" else None,
    )  # fmt: skip
    prompts = PROMPTS[rank][: 2 if how == "uneven" and rank else 3]
    try:
        found = {"completions": sampler.sample(prompts, 1, seed=0).completions}
    except (ValueError, Interrupted) as error:
        found = {"error": str(error)}
    dist.barrier()
    dist.destroy_process_group()
    print(json.dumps(found | {"forwards": len(forwards)}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
