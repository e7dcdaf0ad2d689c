"""A rank's state of PPO beside the weights: its rollout, its place in it, what was drawn ahead."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from align.config_errors import UserError
from align.train.prefetch import Drawn
from align.train.rollouts import Rollout

if TYPE_CHECKING:
    from align.train.ppo import PpoTrainer


def write_state(trainer: PpoTrainer, folder: Path) -> None:
    """Write it into a checkpoint's folder; waits for samples that are being drawn."""
    collector, rollout, ema = trainer.collector, trainer.rollout, trainer.ema
    state = {
        "collector": collector.state_dict(),
        "position": trainer.position.state_dict(),
        "clock": trainer.clock.state_dict(),
        "rollout": rollout.state_dict() if rollout else None,
        "ahead": collector.draws.ahead.state_dict(),
        "ema": ema.state_dict() if ema else None,
    }
    file = folder / f"ppo_state_{trainer.args.process_index}.pt"
    torch.save(state, file.with_suffix(".tmp"))
    file.with_suffix(".tmp").replace(file)


def read_state(trainer: PpoTrainer, folder: Path) -> None:
    """Restore what `write_state` wrote; UserError if another number of ranks wrote it."""
    file = folder / f"ppo_state_{trainer.args.process_index}.pt"
    ranks = len(list(folder.glob("ppo_state_*.pt")))
    if ranks != trainer.args.world_size:
        reason = f"was written by {ranks} processes, and this run has {trainer.args.world_size}"
        fix = f"Launch {ranks} processes, or start anew with --train.resume never"
        raise UserError("train.resume", str(folder), reason, fix)
    state = torch.load(file, weights_only=True)
    trainer.collector.load_state_dict(state["collector"])
    trainer.position.load_state_dict(state["position"])
    trainer.clock.load_state_dict(state["clock"])
    trainer.rollout = Rollout.from_state(state["rollout"]) if state["rollout"] else None
    ahead = state.get("ahead")  # not in checkpoints of before there was rollout.async
    trainer.collector.draws.ahead.put(Drawn.from_state(ahead) if ahead else None)
    if trainer.ema and state["ema"]:
        trainer.ema.load_state_dict(state["ema"])
