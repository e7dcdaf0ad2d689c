"""One rank of test_ppo_ranks.py: collects, steps over a given rollout, prints what it saw."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import ppo_models as tiny

from align.config import load_config
from align.train.rollouts import Rollout


def main(file: str, given: str, out: str) -> None:
    """file: configuration. given: a rollout of one process. out: where rank 0 saves gradients."""
    settings = load_config("ppo", ["--config", file])
    seen = tiny.Gradients()
    made = tiny.trainer(settings, callbacks=[seen])
    rank, world = made.args.process_index, made.args.world_size
    collected = made.collector.collect(0)
    figures = made.meter.flush()
    whole = Rollout.from_state(torch.load(given))
    made.rollout = Rollout(0, whole.groups[rank::world])
    tiny.move(made, 0.2)
    made.train()
    if rank == 0:
        torch.save(seen.steps[0], out)
    weights = torch.cat([p.detach().flatten() for p in made.policy.module.parameters()])
    found = {
        "rank": rank,
        "world": world,
        "advantages": tiny.flat(collected, "advantages").tolist(),
        "completions": tiny.completions(collected),
        "figures": {n: x for n, x in figures.items() if not n.startswith("time/")},
        "row": {n: made.state.log_history[0][n] for n in ("loss", "policy_loss", "value_loss")},
        "kl_coef": made.collector.kl.value,
        "moments": made.collector.shaper.state_dict(),
        "weights": weights.double().sum().item(),
    }
    print("PROBE " + json.dumps(found), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
