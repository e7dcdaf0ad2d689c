"""The policy as it was at a checkpoint of a run, for reading.

A checkpoint holds what training changes, under the training module's own names (`lm.…`), and no
configuration: that and the tokenizer come from the run's final/.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.checkpoints import find_model, is_adapter, load_causal_lm, read_tokenizer
from align.config_errors import UserError

WEIGHTS = "model.safetensors"


def holds_policy(folder: Path) -> bool:
    """Whether a checkpoint folder holds weights that `load_at` can read."""
    return any((folder / name).is_file() for name in ("config.json", WEIGHTS)) or is_adapter(folder)


def load_at(folder: Path, final: Path, *, device: Any = None, field: str = "runs") -> tuple:
    """Model and tokenizer as `load_causal_lm` gives them, with the weights of a checkpoint.

    folder: checkpoint-N. final: the model that the run ended with. A folder that is a model of its
    own is read as one. UserError where the weights do not belong to that model.
    """
    if (folder / "config.json").is_file() or is_adapter(folder):
        return load_causal_lm(find_model(folder, field), device=device, field=field)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from align.chat import prepare_tokenizer
    from align.policy_module import CRITIC_ADAPTER

    try:
        found = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        reason = f"holds no weights that can be read ({error})"
        raise UserError(field, str(folder), reason, "remove that checkpoint") from error
    state = {
        name.removeprefix("lm."): tensor
        for name, tensor in found.items()
        if name.startswith("lm.") and f".{CRITIC_ADAPTER}." not in name
    }
    lora = any(".lora_" in name for name in state)
    source = final / "adapter" if lora else final
    model, tokenizer = load_causal_lm(
        source, device=device, merge=False, need_template=False, field=field
    )
    strange = sorted(state.keys() - model.state_dict().keys())
    if strange or not state:
        reason = f"does not hold the weights of {source} ({strange[0] if strange else 'none'})"
        raise UserError(field, str(folder), reason, "compare it without --checkpoints")
    model.load_state_dict(state, strict=False)
    if lora:
        model = model.merge_and_unload().eval()
    return model, prepare_tokenizer(read_tokenizer(final, field)) if lora else tokenizer
