"""A checkpoint of a run, sharded or not, as the model folder that `final/` would have been."""

from __future__ import annotations

from pathlib import Path

from align.checkpoint_files import COMPLETE, content_damage, marker_of
from align.checkpoints import run_dir_of
from align.config import Config, load_config
from align.config_errors import UserError
from align.files import fingerprint
from align.run_manifest import read_manifest

WEIGHTS = "model.safetensors"
FIELD = "checkpoint"


def config_of(checkpoint: Path) -> Config:
    """The configuration of the run that a checkpoint belongs to; UserError where there is none."""
    run_dir = run_dir_of(checkpoint)
    method = read_manifest(run_dir).get("method")
    if not (run_dir / "config.yaml").is_file() or method is None:
        reason = f"belongs to no run: {run_dir} lacks config.yaml or manifest.json"
        raise UserError(FIELD, str(checkpoint), reason, "Give a checkpoint-N inside its run folder")
    config = load_config(method, ["--config", str(run_dir / "config.yaml")])
    config.train.output_dir = str(run_dir)
    return config


def consolidate(checkpoint: str | Path, folder: str | Path) -> Config:
    """Write what `from_pretrained` reads from a run's checkpoint-N; returns the run's config.

    A checkpoint holds the trained weights whole, in float, whatever the launch: under ZeRO-3 and
    FSDP2 they are gathered when it is saved. What was not trained is read from the model that the
    run started from, which must not have changed. Needs one process and no accelerator. UserError
    for a folder that is no complete checkpoint, or whose base is gone.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    if not (checkpoint / "trainer_state.json").is_file() or not (checkpoint / WEIGHTS).is_file():
        reason = f"is no checkpoint: trainer_state.json or {WEIGHTS} is missing"
        raise UserError(FIELD, str(checkpoint), reason, "Give a checkpoint-N folder")
    config = config_of(checkpoint)
    _check(checkpoint, config)
    _write(checkpoint, folder, config)
    return config


def _check(checkpoint: Path, config: Config) -> None:
    """Refuse what was not finished, and a base that is no longer what training started from."""
    marker = marker_of(checkpoint)
    if marker is None:
        reason = f"was not finished: {COMPLETE} is missing"
        raise UserError(FIELD, str(checkpoint), reason, "Give an earlier checkpoint")
    if (wrong := content_damage(checkpoint)) is not None:
        raise UserError(FIELD, str(checkpoint), f"is damaged: {wrong}", "Give an earlier one")
    if config.method == "pretrain" and config.pretrain.arch == "bert":
        reason = "is of a masked language model, which no server samples from"
        raise UserError(FIELD, str(checkpoint), reason, "Use final/ of the finished run")
    base = marker.get("inputs", {}).get("policy.path")
    if base and base["sha256"] and fingerprint(base["path"]) != base["sha256"]:
        reason = f"started from {base['path']}, which has changed or is gone"
        raise UserError(FIELD, str(checkpoint), reason, "Put the old contents back")


def _write(checkpoint: Path, folder: Path, config: Config) -> None:
    from safetensors.torch import load_file

    from align.policy import Policy

    state = load_file(str(checkpoint / WEIGHTS))
    config.policy.reference = "none"
    role = "reward" if config.method == "reward" else "policy"
    policy = Policy.load(config, role=role, critic=config.method == "ppo")
    trained = {n for n, p in policy.module.named_parameters() if p.requires_grad}
    if trained != state.keys():
        other = min(trained ^ state.keys())
        reason = f"holds other weights than its configuration trains ({other} is in one of them)"
        raise UserError(FIELD, str(checkpoint), reason, "Give the run's own config.yaml")
    policy.save(folder, state)
