"""A reward model that is an adapter on the policy's own base: one base for every role.

Where policy and reward model were trained with LoRA from the same model, the reward model costs its
adapter and its head; loaded on its own it would cost another base.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from align.checkpoints import adapter_base, only_adapter
from align.files import fingerprint
from align.heads import head_parts
from align.policy_module import PolicyModule, base_model, body_of
from reward_models.last_token import LastToken

if TYPE_CHECKING:
    from align.policy import Policy


class AdapterJudge(LastToken):
    """Scores with an adapter of the policy's base, which is its owner's and no part of it."""

    def __init__(self, owner: PolicyModule, adapter: str, head: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.score, self.adapter = head, adapter
        self._owner = (owner,)  # not registered: its weights are the policy's
        self._reads(body_of(owner.lm), head)

    @property
    def config(self) -> Any:
        """The base's configuration."""
        return base_model(self._owner[0].lm).config

    def forward(self, ids: Tensor, mask: Tensor, last: Tensor) -> Tensor:
        """As `LastToken`, the adapter active meanwhile."""
        with self._owner[0].active(self.adapter):
            return super().forward(ids, mask, last)


def judge_on(policy: Policy | None, folder: Path) -> AdapterJudge | None:
    """The reward model of an adapter's folder on the policy's base; None where it has another.

    The policy must have LoRA, and its starting weights must be those that the adapter names. What
    is wrong with a folder is left to the ordinary loading to say.
    """
    if policy is None or policy.fingerprint is None or policy.config.policy.lora is None:
        return None
    weights = folder / "adapter_model.safetensors"
    if not only_adapter(folder) or not weights.is_file():
        return None
    if fingerprint(adapter_base(folder)) != policy.fingerprint:
        return None
    from peft import PeftConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    lm: Any = policy.module.lm
    settings: Any = PeftConfig.from_pretrained(str(folder))
    heads = settings.modules_to_save or ["score"]
    state, head_name = load_file(str(weights)), heads[0]
    there = any(f".{head_name}." in key for key in state)
    if settings.peft_type != "LORA" or len(heads) != 1 or not there:
        return None
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
