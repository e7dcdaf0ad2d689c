"""Where a run goes on: the last complete checkpoint, made with the same settings."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import launch_env
from align.checkpoint_files import (
    COMPLETE,
    complete,
    content_damage,
    marker_of,
    move_aside,
    size_damage,
    unfinished,
)
from align.config_errors import UserError
from align.config_parallel import data_place, engine
from align.files import write_atomic
from align.run_manifest import inputs

# No torch here: run() asks before anything is loaded or written.
if TYPE_CHECKING:
    from align.config import Config
    from align.train.base import AlignTrainer

STATE = "align_state.json"
# May differ between the two parts of a run: how long it is, how it is watched, and how a step's
# examples are cut up, which does not change the gradient. Their number a step is compared apart.
_FREE = {
    "output_dir", "resume", "max_steps", "num_train_epochs", "report_to", "run_name",
    "disable_tqdm", "save_total_limit", "log_level", "project", "loss_spike",
    "early_stopping_patience", "per_device_train_batch_size", "gradient_accumulation_steps",
    "per_device_eval_batch_size", "max_tokens_per_batch", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "load_best_model_at_end", "metric_for_best_model",
    "greater_is_better", "ddp_backend", "ddp_timeout", "rank_timeout_s", "use_cpu",
    # Of another section than train's.
    "pretrain.sample_prompts", "pretrain.samples", "pretrain.sample_tokens",
    "pretrain.shard_tokens", "pretrain.preset",
}  # fmt: skip
_ENGINES = {"plain": "no sharding", "fsdp": "FSDP"}
_ONLY_MEASURED = {"data.validation", "eval.prompts"}
_FREE_PREFIXES = ("logging_", "eval_", "save_", "dataloader_")


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that decide the course of training, as flat dotted names."""
    tree = config.to_dict()
    sections = ["policy", "data", config.method]
    if config.method in ("dpo", "orpo"):
        sections.append("reward")
    if config.method == "ppo":
        sections += ["rollout"]
    chosen: dict[str, Any] = {name: tree[name] for name in sections if name in tree}
    if config.method == "ppo":
        chosen["rewards"] = [
            {k: v for k, v in reward.items() if k != "timeout_s"} for reward in tree["rewards"]
        ]
    chosen["train"] = {name: value for name, value in tree["train"].items() if not _free(name)}
    return dict(_flat(chosen, ""))


def _free(name: str) -> bool:
    return name in _FREE or name.startswith(_FREE_PREFIXES)


def _flat(node: Any, name: str) -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        return [x for k, v in node.items() for x in _flat(v, f"{name}.{k}" if name else str(k))]
    if isinstance(node, list):
        return [(name, json.dumps(node, ensure_ascii=False, default=str))]
    return [(name, node)]


def _defaults(config: Config) -> dict[str, Any]:
    """What a key means that one of the two configurations does not name."""
    from transformers import TrainingArguments

    given = {f"train.{f.name}": f.default for f in dataclasses.fields(TrainingArguments)}
    given |= settings_of(type(config)(config.method))
    return {name: json.loads(json.dumps(x, default=str)) for name, x in given.items()}


def find_checkpoint(config: Config) -> str | None:
    """Path of the checkpoint that train.resume means, or None to start anew.

    auto: the newest complete one in the run directory, which must have been made with the same
    settings, the same contents of models and files, and as many examples a step (UserError says
    what differs). One whose files are not all there is passed over: `verified_checkpoint` says so.
    A path given by the user is taken at their word, but must be whole (UserError).
    """
    asked = config.train.resume
    if asked == "never":
        return None
    if asked != "auto":
        folder = Path(asked)
        if not (folder / "trainer_state.json").is_file():
            reason = "is no checkpoint: trainer_state.json is missing"
            raise UserError("train.resume", asked, reason, "Give a checkpoint-N folder")
        if (folder / COMPLETE).exists():
            _refuse_damaged(asked, size_damage(folder))
            _same_launch(config, folder, marker_of(folder) or {})
        return asked
    found = [p for p in complete(config.train.output_dir) if size_damage(p) is None]
    if not found:
        return None
    newest = found[0]
    marker = marker_of(newest) or {}
    _same_launch(config, newest, marker)
    _same_settings(config, newest, marker["settings"])
    _same_inputs(config, newest, marker.get("inputs", {}))
    if config.method != "ppo":  # whose rollout, compared above, decides
        _same_batch(newest, marker["batch"], batch_of(config))
    return str(newest)


def verified_checkpoint(config: Config) -> str | None:
    """`find_checkpoint` with every byte of the checkpoint compared; every rank must call.

    A damaged one is renamed, said aloud, and the one before it is used; with none left the run
    starts anew. UserError where the user named the damaged one.
    """
    from align.distributed import from_rank_zero

    auto, lost = config.train.resume == "auto", []
    while True:
        if auto:
            lost += from_rank_zero(lambda: _all_aside(config))
        found = from_rank_zero(lambda: find_checkpoint(config))
        if found is None or not (Path(found) / COMPLETE).exists():
            break
        wrong = content_damage(Path(found))
        if wrong is None:
            break
        if not auto:
            _refuse_damaged(found, wrong)
        lost.append(from_rank_zero(functools.partial(_aside, Path(found), wrong)))
    from_rank_zero(lambda: _say_damaged(lost, found))
    return found


def _all_aside(config: Config) -> list[str]:
    """Move the newest checkpoints aside whose files are not all there; what was wrong with each."""
    lost = []
    for folder in complete(config.train.output_dir):
        wrong = size_damage(folder)
        if wrong is None:
            break
        lost.append(_aside(folder, wrong))
    return lost


def _aside(folder: Path, wrong: str) -> str:
    return f"{folder.name} is damaged: {wrong}; it is now {move_aside(folder).name}"


def _say_damaged(lost: list[str], found: str | None) -> None:
    after = f"going on from {Path(found).name}" if found else "no other checkpoint: starting anew"
    for i, line in enumerate(lost):
        more = f"; {after}" if i == len(lost) - 1 else ""
        print(f"[align] {line}{more}", file=sys.stderr, flush=True)


def _refuse_damaged(asked: str, wrong: str | None) -> None:
    if wrong is not None:
        fix = "Give another checkpoint, or use --train.resume auto"
        raise UserError("train.resume", asked, f"is damaged: {wrong}", fix)


def made_with(config: Config) -> dict[str, Any]:
    """What a checkpoint remembers of the run that writes it."""
    return {
        "settings": settings_of(config), "batch": batch_of(config), "engine": engine(config),
    }  # fmt: skip


def batch_of(config: Config) -> int:
    """Examples of one optimiser step, over micro-batches and ranks."""
    given = config.train.args
    micro, parts = given.get("per_device_train_batch_size", 8), "gradient_accumulation_steps"
    return micro * given.get(parts, 1) * data_place(config, 0, launch_env.asked_world())[1]


def _same_launch(config: Config, folder: Path, marker: dict[str, Any]) -> None:
    """Sharded optimiser state fits the launch that wrote it; a rollout its number of processes."""
    then, now = marker.get("engine"), engine(config)
    if then is None:  # of an earlier version
        return
    worlds = marker["world_size"], launch_env.asked_world()
    fixed = now.startswith("zero") or config.method == "ppo"
    if then == now and (worlds[0] == worlds[1] or not fixed):
        return
    made, launched = (f"{world} process(es), {_ENGINES.get(name, name)}"
                      for world, name in zip(worlds, (then, now), strict=True))  # fmt: skip
    reason = f"would go on from {folder}, made by {made}, with {launched}"
    fix = (
        "Launch as before; or start anew from its weights: recipes/export_model.py --checkpoint "
        f"{folder} --output DIR, then policy.path DIR and another train.output_dir"
    )
    raise UserError("train.resume", config.train.resume, reason, fix)


def _same_settings(config: Config, folder: Path, then: dict[str, Any]) -> None:
    now = json.loads(json.dumps(settings_of(config), default=str))
    names = [n for n in {**now, **then} if not _free(n.removeprefix("train."))]
    default = {} if now.keys() == then.keys() else _defaults(config)
    pairs = {n: tuple(tree.get(n, default.get(n)) for tree in (then, now)) for n in names}
    changed = [n for n, (before, after) in pairs.items() if before != after]
    if not changed:
        return
    before, after = pairs[changed[0]]
    more = f" and {len(changed) - 1} more" if changed[1:] else ""
    reason = f"would go on from {folder}, made with {changed[0]}={before!r}, not {after!r}{more}"
    fix = "Use --train.resume never to start anew, or another train.output_dir"
    raise UserError("train.resume", "auto", reason, fix)


def _same_inputs(config: Config, folder: Path, then: dict[str, dict[str, Any]]) -> None:
    """Models and files with the same names must still hold the same."""
    now = inputs(config)
    for name in sorted(then.keys() & now.keys() - _ONLY_MEASURED):
        if then[name]["sha256"] != now[name]["sha256"]:
            reason = f"would go on from {folder}, but {name}={now[name]['path']!r} has changed"
            fix = "Use --train.resume never to start anew, or put the old contents back"
            raise UserError("train.resume", "auto", reason, fix)


def _same_batch(folder: Path, then: int, now: int) -> None:
    if then == now:
        return
    reason = (
        f"would go on from {folder}, made with {then} examples a step, not {now} "
        "(train.per_device_train_batch_size × train.gradient_accumulation_steps × processes)"
    )
    fix = f"Make that product {then} again, or use --train.resume never to start anew"
    raise UserError("train.resume", "auto", reason, fix)


def drop_incomplete(config: Config) -> None:
    """Remove checkpoints that a killed run was writing: rotation would count them as the newest."""
    from align.distributed import barrier, rank

    if rank() == 0 and config.train.resume == "auto":
        for folder in unfinished(config.train.output_dir):
            print(f"[align] {folder} was not finished: removed", flush=True)
            shutil.rmtree(folder)
    barrier()


def write_state(trainer: AlignTrainer, folder: Path) -> None:
    """Write what the Trainer does not keep: the losses that the guard judges by."""
    write_atomic(folder / STATE, json.dumps({"guard": trainer.guard.state_dict()}) + "\n")


def restore(trainer: AlignTrainer, folder: Path) -> None:
    """Give guard and early stopping back what they knew at the checkpoint."""
    from transformers import EarlyStoppingCallback

    if (folder / STATE).is_file():
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        trainer.guard.load_state_dict(state["guard"])
    saved = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    waited = saved.get("stateful_callbacks", {}).get(EarlyStoppingCallback.__name__)
    for callback in trainer.callback_handler.callbacks:
        if waited and isinstance(callback, EarlyStoppingCallback):
            name = "early_stopping_patience_counter"
            setattr(callback, name, waited["attributes"][name])


def is_over(trainer: AlignTrainer) -> bool:
    """Whether a resumed run had come to its end: by its number of steps, or by early stopping."""
    from transformers import EarlyStoppingCallback

    waited = [
        callback.early_stopping_patience_counter >= callback.early_stopping_patience
        for callback in trainer.callback_handler.callbacks
        if isinstance(callback, EarlyStoppingCallback)
    ]
    return trainer.state.global_step >= trainer.state.max_steps or any(waited)
