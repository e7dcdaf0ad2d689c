"""A reward model that is an adapter on the policy's own base: one base for every role.

Where policy and reward model were trained with LoRA from the same model, the reward model costs its
adapter and its head; loaded on its own it would cost another base.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from align.checkpoints import is_adapter
from align.files import fingerprint
from align.heads import head_parts
from align.policy_module import PolicyModule, base_model, body_of
from reward_models.last_token import LastToken

if TYPE_CHECKING:
    from align.policy import Policy


class AdapterJudge(LastToken):
    """Scores with an adapter of the policy's base, which is its owner's and no part of it."""

    owner: Any

    def __init__(self, owner: PolicyModule, adapter: str, head: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.score = head
        self.adapter = adapter
        object.__setattr__(self, "owner", owner)  # not registered: its weights are the policy's

    @property
    def head(self) -> nn.Linear:
        """The linear layer that gives the scores."""
        return self.score

    @property
    def config(self) -> Any:
        """The base's configuration."""
        return base_model(self.owner.lm).config

    def body(self) -> Any:
        """The transformer below the head."""
        return body_of(self.owner.lm)

    def forward(self, ids: Tensor, mask: Tensor, last: Tensor) -> Tensor:
        """As `LastToken`, the adapter active meanwhile."""
        with self.owner.active(self.adapter):
            return super().forward(ids, mask, last)


def judge_on(policy: Policy | None, folder: Path) -> AdapterJudge | None:
    """The reward model of an adapter's folder on the policy's base; None where it has another.

    The policy must have LoRA, and its starting weights must be those that the adapter names.
    """
    lm: Any = policy.module.lm if policy is not None else None
    if policy is None or not hasattr(lm, "peft_config") or not is_adapter(folder):
        return None
    if (folder / "config.json").is_file():
        return None
    from peft import PeftConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    settings: Any = PeftConfig.from_pretrained(str(folder))
    base = fingerprint(settings.base_model_name_or_path or "")
    if base is None or base != policy.fingerprint or settings.peft_type != "LORA":
        return None
    state = load_file(str(folder / "adapter_model.safetensors"))
    [head_name] = settings.modules_to_save or ["score"]
    parts = head_parts(state, head_name)
    settings.modules_to_save, settings.task_type = None, None
    name = f"judge{len(lm.peft_config)}"
    lm.add_adapter(name, settings)
    own = {key: value for key, value in state.items() if f".{head_name}." not in key}
    set_peft_model_state_dict(lm, own, adapter_name=name)
    for key, parameter in lm.named_parameters():
        if f".{name}." in key:
            parameter.requires_grad_(False)
    with policy.module.active(name):  # and what was active and trained is so again
        pass
    head = nn.Linear(parts["weight"].shape[1], parts["weight"].shape[0], bias="bias" in parts)
    head.load_state_dict(parts)
    return AdapterJudge(policy.module, name, head.requires_grad_(False))
