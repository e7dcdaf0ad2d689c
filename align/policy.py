"""Policy: the one place where models are loaded, adapted, frozen, given roles, and saved.

SFT, reward model, PPO, DPO and ORPO get their model from `Policy.load`. What the trainer wraps is
`policy.module`; everything that knows files, tokenizers and adapters is here and in
`align.policy_loading`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from align import policy_loading as loading
from align.distributed import gathered, rank, without_zero3
from align.files import fingerprint, whole_folder
from align.groups import GroupBatch, TokenGroup, collate
from align.heads import find_head, init_head
from align.layouts import check_layout
from align.policy_adapters import adapt, merged_adapter
from align.policy_module import CRITIC_ADAPTER, PolicyModule, base_model
from align.tokenizer_identity import check_trained_with, record_tokenizer

if TYPE_CHECKING:
    from align.config import Config


class Policy:
    """A model in its role, with tokenizer, reference and critic.

    module: what the trainer wraps. path: where the weights came from. reference: effective mode
    (adapter_off, frozen, cached or none). layout: grouped or plain; `align.layouts` may correct it.
    fingerprint: of the starting weights, None for a hub id.
    """

    def __init__(
        self, module: PolicyModule, tokenizer: Any, *, path: str, config: Config, layout: str
    ) -> None:
        self.module, self.tokenizer, self.path, self.layout = module, tokenizer, path, layout
        self.config = config
        self.reference = config.reference
        self.fingerprint = fingerprint(path)

    @classmethod
    def load(cls, config: Config, *, role: str = "policy", critic: bool = False) -> Policy:
        """Load what `config.policy` names.

        role: "policy" a causal LM; "reward" a sequence classifier with config.reward.heads outputs.
        critic: add one, of the kind that config.ppo.critic says. Build `TrainingArguments` first:
        ZeRO-3 shards weights as they are read. Raises UserError for a model that cannot be loaded,
        a tokenizer that does not fit it, or a combination that cannot work.
        """
        path = loading.starting_path(config)
        tokenizer = loading.load_tokenizer(path, config)
        if config.policy.lora is not None and config.policy.lora.path:
            check_trained_with(config.policy.lora.path, tokenizer, "policy.lora.path")
        heads = config.reward.heads if role == "reward" else 0
        trained = loading.trained_heads(path, wanted=heads)
        lm = loading.load_body(path, config, heads=heads)
        loading.check_vocabulary(lm, tokenizer, path)
        seed = config.train.args.get("seed", 42)
        if role == "reward":
            if not trained:
                with gathered(list(find_head(lm)[1].parameters()), modify=True):
                    init_head(lm, seed)
            lm.config.pad_token_id = tokenizer.pad_token_id
        reference = None
        if config.reference == "frozen":
            reference = loading.load_body(path, config)
            if config.policy.lora is not None and config.policy.lora.path:
                reference = merged_adapter(reference, config.policy.lora.path)
        made = loading.load_critic(path, config, lm, tokenizer) if critic else {}
        lm = adapt(lm, config, critic_adapter=made.pop("adapter", False))
        if role == "reward" and config.policy.lora is not None:
            find_head(base_model(lm))[1].requires_grad_(True)
        module = PolicyModule(
            lm,
            reference=reference,
            adapter_reference=config.reference == "adapter_off",
            scorer=role == "reward",
            **made,
        )
        layout = loading.layout(lm, config)
        policy = cls(module, tokenizer, path=path, config=config, layout=layout)
        note = check_layout(policy)
        if note and rank() == 0:
            print(f"[align] {type(base_model(lm)).__name__}: {note}", flush=True)
        return policy

    @property
    def pad_id(self) -> int:
        """What fills the rows; masks, never ids, say what is padding."""
        return int(self.tokenizer.pad_token_id)

    def collate(self, groups: Sequence[TokenGroup], *, packed: bool = False) -> GroupBatch:
        """Lay groups out for this model."""
        layout = "packed" if packed else self.layout
        return collate(groups, self.pad_id, layout, row_length=self.config.row_length)

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write what `from_pretrained` reads: merged weights, tokenizer, generation settings.

        state: the module's trained weights by name, whole (`AlignTrainer.trained_state`). With LoRA
        `folder/adapter` holds the adapter too; a critic goes to `folder/critic`. The folder appears
        whole or not at all. Call on one rank.
        """
        with whole_folder(folder) as target:
            lm = _below(state, "lm.")
            config = self.config
            if config.policy.lora is None:
                self._save_model(base_model(self.module.lm), target, lm)
            else:
                self._save_adapter(self.module.lm, target / "adapter", lm)
                heads = config.reward.heads if self.module.scorer else 0
                with without_zero3():
                    plain = loading.load_body(self.path, config, heads=heads, whole=True)
                    if self.module.scorer:
                        _copy_head(plain, lm)
                    merged = merged_adapter(plain, str(target / "adapter"))
                self._save_model(merged, target)
            self.tokenizer.save_pretrained(target)
            self._save_critic(target / "critic", state)

    def _save_model(
        self, model: Any, folder: Path, state: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write one transformers model with the dropout and cache settings that it came with."""
        from align.chat import stop_ids

        restored = loading.original_settings(self.path, model.config)
        held = {name: getattr(model.config, name) for name in restored}
        model.config.update(restored)
        if getattr(model, "generation_config", None) is not None:
            if self.tokenizer.chat_template is not None:
                model.generation_config.eos_token_id = list(stop_ids(self.tokenizer))
            model.generation_config.pad_token_id = self.tokenizer.pad_token_id
        whole = None if state is None else {**_buffers(model), **state}
        try:
            model.save_pretrained(folder, state_dict=whole)
        finally:
            model.config.update(held)

    def _save_adapter(self, model: Any, folder: Path, state: Mapping[str, Tensor]) -> None:
        model.save_pretrained(folder, selected_adapters=["default"], state_dict=dict(state))
        record_tokenizer(folder, self.tokenizer)

    def _save_critic(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write a separate critic as a sequence classifier, any other as its own few weights."""
        from safetensors.torch import save_file

        critic = self.module.critic
        if critic is not None and not hasattr(critic, "peft_config"):
            self._save_model(critic, folder, _below(state, "critic."))
            self.tokenizer.save_pretrained(folder)
            record_tokenizer(folder, self.tokenizer)
            return
        own = {
            name: tensor.contiguous()
            for name, tensor in state.items()
            if name.startswith(("critic.", "value_head.")) or f".{CRITIC_ADAPTER}." in name
        }
        if own:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(own, folder / "critic.safetensors")
            record_tokenizer(folder, self.tokenizer)


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Entries under a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """What a model stores beside its parameters (running counts, DeepSeek's routing bias)."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {n: t for n, t in model.state_dict().items() if n not in parameters}


def _copy_head(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put the trained head of a reward model with LoRA, which peft does not hold, into `model`."""
    name, head = find_head(model)
    with torch.no_grad():
        for part, parameter in head.named_parameters():
            found = [t for n, t in state.items() if n.endswith(f"{name}.{part}")]
            if len(found) != 1:
                raise RuntimeError(f"the head's {part} is not in the checkpoint")
            parameter.copy_(found[0])
