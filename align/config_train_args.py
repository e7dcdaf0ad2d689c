"""The names and types of `transformers.TrainingArguments`, read without importing transformers.

Importing transformers' trainer takes seconds and pulls in torch, so the class is read as source
with `ast`. What is read is the installed version, so the names always fit it.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from align.config_errors import NO_VALUE, UserError, nearest

# Names that older releases had, and what to write now.
REMOVED = {
    "evaluation_strategy": "Use train.eval_strategy",
    "warmup_ratio": "Use train.warmup_steps; a value below 1 is a share of all steps",
    "no_cuda": "Use train.use_cpu",
    "group_by_length": "Remove it: batches are built by align",
    "logging_dir": "Set the environment variable TENSORBOARD_LOGGING_DIR",
    "per_gpu_train_batch_size": "Use train.per_device_train_batch_size",
    "per_gpu_eval_batch_size": "Use train.per_device_eval_batch_size",
    "save_safetensors": "Remove it: checkpoints are always safetensors",
    "overwrite_output_dir": "Use train.resume: never",
    "fp16_backend": "Use train.fp16",
    "half_precision_backend": "Use train.fp16 or train.bf16",
    "fp16_opt_level": "Use train.fp16",
    "torchdynamo": "Use train.torch_compile",
    "sharded_ddp": "Use train.fsdp or a DeepSpeed config",
    "fsdp_transformer_layer_cls_to_wrap": "Use train.fsdp_config",
    "fsdp_min_num_params": "Use train.fsdp_config",
    "push_to_hub_model_id": "Use train.hub_model_id",
    "push_to_hub_token": "Use train.hub_token",
    "use_legacy_prediction_loop": "Remove it",
    "dispatch_batches": "Use train.accelerator_config",
    "split_batches": "Use train.accelerator_config",
    "include_inputs_for_metrics": "Use train.include_for_metrics",
    "use_mps_device": "Remove it: the device is found",
    "no_deprecation_warnings": "Remove it",
    "tpu_num_cores": "Remove it: accelerate launch sets it",
}
# Names that Trainer has and that something else of ours decides.
OWNED = {
    "resume_from_checkpoint": "Use train.resume",
    "remove_unused_columns": "Remove it: batches are built by align",
    "label_names": "Remove it: batches are built by align",
    "do_train": "Remove it: the recipe decides",
    "do_eval": "Remove it: set train.eval_strategy",
    "do_predict": "Remove it: use recipes/evaluate_policy.py",
    "local_rank": "Remove it: accelerate launch sets it",
    "include_for_metrics": "Remove it: batches are built by align",
}
# Names of the Trainer's own data and loss, which are not used here: (values that change nothing,
# what to write instead). Taking another value and ignoring it would be worse than refusing it.
_UNUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "label_smoothing_factor": ((0,), "Use 0; dpo.label_smoothing is the pairs' one"),
    "train_sampling_strategy": (("random",), "Remove it, or use data.shuffle"),
    "neftune_noise_alpha": ((None,), "Use null"),
    "use_liger_kernel": ((False,), "Use false: log-probs are computed in chunks already"),
    "auto_find_batch_size": ((False,), "Use train.max_tokens_per_batch against lack of memory"),
    "dataloader_drop_last": ((False,), "Use false: every example counts once an epoch"),
    "average_tokens_across_devices": ((True,), "Use true: losses are divided by global counts"),
    "ddp_find_unused_parameters": ((None, False), "Remove it"),
}
_SCALARS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "None": (type(None),),
    "dict": (dict,),
    "list": (list,),
}
# name: (lowest allowed, is the bound itself allowed)
_RANGES: dict[str, tuple[float, bool]] = {
    "learning_rate": (0, True),
    "per_device_train_batch_size": (1, True),
    "per_device_eval_batch_size": (1, True),
    "gradient_accumulation_steps": (1, True),
    "num_train_epochs": (0, False),
    "warmup_steps": (0, True),
    "weight_decay": (0, True),
    "adam_beta1": (0, True),
    "adam_beta2": (0, True),
    "adam_epsilon": (0, False),
    "max_grad_norm": (0, True),
    "logging_steps": (0, False),
    "eval_steps": (0, False),
    "save_steps": (0, False),
    "save_total_limit": (1, True),
    "max_steps": (-1, True),
    "seed": (0, True),
    "data_seed": (0, True),
    "dataloader_num_workers": (0, True),
}
_CHOICES = {
    "eval_strategy": ("no", "steps", "epoch"),
    "save_strategy": ("no", "steps", "epoch", "best"),
    "logging_strategy": ("no", "steps", "epoch"),
    "lr_scheduler_type": (
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant",
        "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau", "cosine_with_min_lr",
        "cosine_warmup_with_min_lr", "warmup_stable_decay", "wsd", "greedy",
    ),
}  # fmt: skip
# Trackers of transformers, and the modules of which each needs one.
_TRACKERS = {
    "azure_ml": ("azureml",), "clearml": ("clearml",), "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",), "dagshub": ("dagshub",), "dvclive": ("dvclive",),
    "flyte": ("flytekit",), "mlflow": ("mlflow",), "neptune": ("neptune",),
    "swanlab": ("swanlab",), "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",), "wandb": ("wandb",), "all": (), "none": (),
}  # fmt: skip


@functools.lru_cache(maxsize=1)
def _source() -> list[ast.ClassDef]:
    """Return the classes of the installed transformers/training_args.py."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise UserError(
            "transformers", NO_VALUE, "is not installed", "Run `pip install -e .` in the repository"
        )
    source = Path(spec.origin).with_name("training_args.py").read_text(encoding="utf-8")
    return [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]


@functools.lru_cache(maxsize=1)
def training_arguments() -> dict[str, tuple[type, ...] | None]:
    """Return {name: accepted Python types, or None where the type is not a plain one}."""
    for node in _source():
        if node.name == "TrainingArguments":
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            return {
                item.target.id: _types(item.annotation)
                for item in fields
                if isinstance(item.target, ast.Name)
            }
    raise RuntimeError("no class TrainingArguments in the installed transformers")


def _optimizers() -> list[str]:
    """Return the names that train.optim takes."""
    return [
        str(item.value.value)
        for node in _source()
        if node.name == "OptimizerNames"
        for item in node.body
        if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
    ]


def _types(annotation: ast.expr) -> tuple[type, ...] | None:
    """Return the types a union of plain types accepts; enum members are written as strings."""
    accepted: list[type] = []
    for part in ast.unparse(annotation).replace("Optional[", "None | ").split("|"):
        name = part.strip().split("[")[0].rstrip("]")
        if name in _SCALARS:
            accepted.extend(_SCALARS[name])
        elif name == "Literal":
            accepted.append(bool)
        elif not name.endswith(("Strategy", "Type", "Names")):
            return None
    return tuple(accepted) or None


def check(name: str, value: Any) -> Any:
    """Return the value for a TrainingArguments name, or raise UserError on a wrong one."""
    field = f"train.{name}"
    if name in OWNED:
        raise UserError(field, value, "is set by align", OWNED[name])
    accepted = training_arguments()[name]
    if accepted is not None:
        fits = type(value) in accepted or (
            isinstance(value, int) and not isinstance(value, bool) and float in accepted
        )
        if not fits:
            wanted = " or ".join(
                dict.fromkeys("null" if t is type(None) else t.__name__ for t in accepted)
            )
            raise UserError(field, value, f"is a {type(value).__name__}, not {wanted}")
    same, fix = _UNUSED.get(name, ((value,), ""))
    if value not in same:
        raise UserError(field, value, "has no effect in align", fix)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(field, value, "is not a finite number")
    if name in _RANGES and isinstance(value, (int, float)):
        low, closed = _RANGES[name]
        if value < low or (value == low and not closed):
            raise UserError(field, value, f"is below {low}" if closed else f"must be above {low}")
    if name in ("adam_beta1", "adam_beta2") and value >= 1:
        raise UserError(field, value, "must be below 1")
    if name == "max_steps" and value == 0:
        raise UserError(field, value, "means no step at all", "Use -1 to count epochs instead")
    if name in _CHOICES:
        _known(field, value, _CHOICES[name])
    if name == "optim":
        _known(field, value, _optimizers())
    if name == "report_to":
        for tracker in map(str, value if isinstance(value, list) else [value]):
            _known(field, tracker, list(_TRACKERS))
            modules = _TRACKERS[tracker]
            if modules and not any(find_spec(module) for module in modules):
                raise UserError(field, value, f"needs {modules[0]}", f"pip install {modules[0]}")
    return value


def _known(field: str, value: Any, known: Sequence[str]) -> None:
    if value in known:
        return
    close = nearest(str(value), known)
    hint = f"Did you mean '{close}'? " if close else ""
    shown = ", ".join(known[:15]) + (" …" if len(known) > 15 else "")
    raise UserError(field, value, "is not known", f"{hint}One of: {shown}")
