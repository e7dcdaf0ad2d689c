"""Reference log-probs computed once and kept on disk: policy.reference=cached, offline methods.

They are the policy's own before its first step, so no second model is loaded at all. The file is
named by a fingerprint of weights, tokenizer, template and every token of the data: later runs on
the same pairs find it, any other run does not.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from align.config_errors import UserError
from align.distributed import barrier, gather_objects, in_parts, rank
from align.groups import TokenGroup
from align.train.token_cache import attach

if TYPE_CHECKING:
    from align.policy import Policy
    from align.train.base import AlignTrainer


def cache_reference(trainer: AlignTrainer, splits: Sequence[Sequence[TokenGroup]]) -> Path:
    """Give every group's extras "ref_logps", one sum a candidate; return the file they are in."""
    if in_parts():
        raise UserError(
            "policy.reference", "cached", "cannot be filled while ZeRO-3 or FSDP shards weights",
            "Use 'frozen' (it is sharded too), or fill the cache in a run without",
        )  # fmt: skip
    groups = [group for part in splits for group in part]  # one pass over what may be on disk
    root = Path(str(trainer.args.output_dir)).resolve().parent
    file = root / ".cache" / f"reference-{key(trainer.policy, groups)}.pt"
    if not file.is_file():
        values = _compute(trainer, groups)
        if rank() == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f".{file.name}")
            torch.save(values, temporary)
            temporary.replace(file)
        barrier()
    elif rank() == 0:
        print(f"[align] reference log-probs from {file}", flush=True)
    flat = torch.load(file, weights_only=True).tolist()
    values, start = [], 0
    for group in groups:
        end = start + len(group.completions)
        values.append(flat[start:end])
        start = end
    start = 0
    for part in splits:
        attach(part, "ref_logps", values[start : start + len(part)])
        start += len(part)
    return file


def key(policy: Policy, groups: Sequence[TokenGroup]) -> str:
    """Fingerprint of what the log-probs depend on."""
    from align.chat import template_hash

    digest = hashlib.sha256()
    for part in (policy.fingerprint or policy.path, template_hash(policy.tokenizer)):
        digest.update(part.encode())
    for group in groups:
        for ids in (group.prompt_ids, *group.completions):
            digest.update(array("q", [len(ids), *ids]).tobytes())
        for k in range(len(group.completions)):
            digest.update(bytes(map(bool, group.mask_of(k))))
    return digest.hexdigest()[:24]


def _compute(trainer: AlignTrainer, groups: Sequence[TokenGroup]) -> torch.Tensor:
    """(all candidates,) summed log-probs under the starting weights, each group on one rank."""
    module = trainer.policy.module
    # With DeepSpeed the Trainer does not put it there before training.
    module.to(trainer.args.device).eval()
    mine: dict[int, list[float]] = {}
    with torch.no_grad():
        for part, _, batch in trainer.each_once(groups):
            sums = batch.candidate_sums(module(batch, want=("logps",))["logps"]).tolist()
            start = 0
            for i in part:
                end = start + len(groups[i].completions)
                mine[i] = sums[start:end]
                start = end
    merged: dict[int, list[float]] = {}
    for ranked in gather_objects(mine):
        merged |= ranked
    return torch.tensor([x for i in range(len(groups)) for x in merged[i]], dtype=torch.float32)
