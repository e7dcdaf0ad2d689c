"""Where a run goes on: the last complete checkpoint, made with the same settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config_errors import UserError
from align.train.callbacks import COMPLETE

if TYPE_CHECKING:
    from align.config import Config

# May differ between the two parts of a run: they decide how long it is and how it is watched.
_FREE = {
    "output_dir", "resume", "max_steps", "num_train_epochs", "report_to", "run_name",
    "disable_tqdm", "save_total_limit", "log_level", "project", "loss_spike",
    "early_stopping_patience",
}  # fmt: skip
_FREE_PREFIXES = ("logging_", "eval_", "save_", "dataloader_")


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that decide the course of training, as flat dotted names."""
    tree = config.to_dict()
    sections = ["policy", "data", config.method]
    if config.method in ("dpo", "orpo"):
        sections.append("reward")
    if config.method == "ppo":
        sections += ["rollout", "rewards"]
    chosen: dict[str, Any] = {name: tree[name] for name in sections if name in tree}
    chosen["train"] = {
        name: value
        for name, value in tree["train"].items()
        if name not in _FREE and not name.startswith(_FREE_PREFIXES)
    }
    return dict(_flat(chosen, ""))


def _flat(node: Any, name: str) -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        return [x for k, v in node.items() for x in _flat(v, f"{name}.{k}" if name else str(k))]
    if isinstance(node, list):
        return [(name, json.dumps(node, ensure_ascii=False, default=str))]
    return [(name, node)]


def find_checkpoint(config: Config) -> str | None:
    """Path of the checkpoint that train.resume means, or None to start anew.

    auto: the newest complete one in the run directory, which must have been made with the same
    settings (UserError says which differ). A path given by the user is taken at their word.
    """
    asked = config.train.resume
    if asked == "never":
        return None
    if asked != "auto":
        folder = Path(asked)
        if not (folder / "trainer_state.json").is_file():
            reason = "is no checkpoint: trainer_state.json is missing"
            raise UserError("train.resume", asked, reason, "Give a checkpoint-N folder")
        return asked
    complete = [p.parent for p in Path(config.train.output_dir).glob(f"checkpoint-*/{COMPLETE}")]
    if not complete:
        return None
    newest = max(complete, key=lambda folder: int(folder.name.rsplit("-", 1)[1]))
    marker = json.loads((newest / COMPLETE).read_text(encoding="utf-8"))
    then, now = marker["settings"], settings_of(config)
    now = json.loads(json.dumps(now, default=str))
    changed = [n for n in now if n in then and now[n] != then[n]]
    if changed:
        n = changed[0]
        more = f" and {len(changed) - 1} more" if changed[1:] else ""
        reason = f"would go on from {newest}, made with {n}={then[n]!r}, not {now[n]!r}{more}"
        fix = "Use --train.resume never to start anew, or another train.output_dir"
        raise UserError("train.resume", "auto", reason, fix)
    return str(newest)
