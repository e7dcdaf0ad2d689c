"""The one nn.Module that Trainer, DDP, ZeRO or FSDP wraps: a batch in, flat numbers out.

Gradient synchronisation and ZeRO's gathering hang on this forward, so nothing calls a backbone
around it. Body and head are called one after the other: the head sees only positions that predict
something, a chunk at a time (`align.logprobs`).
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from align.distributed import max_over_ranks, zero3
from align.groups import GroupBatch
from align.logprobs import chunk_count, token_logps, token_logps_lse

CRITIC_ADAPTER = "critic"
WANTS = ("logps", "lse", "entropy", "ref_logps", "values", "end_values", "scores")


class PolicyModule(nn.Module):
    """A causal LM (or, for a reward model, a sequence classifier) with its reference and critic.

    lm: transformers model, bare or inside a PeftModel. reference: a frozen copy, or None.
    adapter_reference: the reference is `lm` with its adapters off. critic: a sequence classifier
    with one output, or None; value_head: a linear layer for a critic that is an adapter or shares
    the policy's body. scorer: `lm` is a sequence classifier and gives scores. judges: frozen reward
    models that are sharded with the rest.
    """

    accepts_loss_kwargs = False  # read by transformers.Trainer
    main_input_name = "input_ids"

    def __init__(
        self,
        lm: Any,
        *,
        reference: nn.Module | None = None,
        adapter_reference: bool = False,
        critic: nn.Module | None = None,
        value_head: nn.Linear | None = None,
        scorer: bool = False,
    ) -> None:
        super().__init__()
        self.lm: Any = lm
        self.reference = reference
        self.critic = critic
        self.value_head = value_head
        self.judges = nn.ModuleList()
        self.adapter_reference, self.scorer = adapter_reference, scorer
        if reference is not None:
            reference.eval().requires_grad_(False)
        adapters = getattr(lm, "peft_config", {})
        self.critic_adapter = CRITIC_ADAPTER in adapters
        # Places, not parameters: FSDP2 puts others there.
        places = _places(self)
        self._trained = [found[0] for p, found in places if p.requires_grad]
        self._shared = [found for _, found in places if len(found) > 1]

    def forward(
        self,
        batch: Any,
        want: Collection[str] = ("logps",),
        temperature: float = 1.0,
        *,
        judge: int | None = None,
    ) -> dict[str, Tensor]:
        """Return the wanted tensors; with judge the scores of that reward model, batch its inputs.

        logps, entropy, ref_logps, values: (N,), of the batch's predicted tokens; a value is that of
        the position that predicts. lse: (N,), the normalisers logsumexp(logits), with logps beside
        them. end_values: (C,), at each candidate's last token. scores: (C, heads). Where the batch
        carries a second one (batch.also) its log-probs come back as "also_logps": a loss that mixes
        two kinds of data is still one forward for the wrapper.
        """
        if judge is not None:
            return {"scores": self.judges[judge](*batch)}
        unknown = set(want) - set(WANTS)
        if unknown:
            raise ValueError(f"want={sorted(unknown)} is none of {WANTS}")
        out: dict[str, Tensor] = {}
        wants_values = "values" in want or "end_values" in want
        shared = wants_values and self.critic is None and not self.critic_adapter
        if self.scorer:
            hidden = self._hidden(self.lm, batch)
            out["scores"] = _apply(head_of(self.lm), hidden[batch.end_row, batch.end_col])
            return out
        if "lse" in want:
            hidden = self._hidden(self.lm, batch)
            out["logps"], out["lse"] = self._logps_lse(hidden, batch)
        elif "logps" in want or "entropy" in want or shared:
            hidden = self._hidden(self.lm, batch)
            if "logps" in want or "entropy" in want:
                out |= self._logps(self.lm, hidden, batch, temperature, "entropy" in want)
            if shared:
                out |= self._values(self._value_head(), hidden, batch, want)
        if wants_values and not shared:
            with self._critic_active() as (model, head):
                out |= self._values(head, self._hidden(model, batch), batch, want)
        if "ref_logps" in want:
            out["ref_logps"] = self._ref_logps(batch, temperature)
        if batch.also is not None:
            hidden = self._hidden(self.lm, batch.also)
            out["also_logps"] = self._logps(self.lm, hidden, batch.also, 1.0, False)["logps"]
        return out

    def _hidden(self, model: nn.Module, batch: GroupBatch) -> Tensor:
        """Last hidden states (R, T, H) of a model's body."""
        body = body_of(model)
        dtype = next(p.dtype for p in body.parameters() if p.is_floating_point())
        # On CPUs the kernel turns a boolean mask into numbers in every layer and keeps them all.
        on_cpu = batch.input_ids.device.type == "cpu"
        numbers = on_cpu or body.config._attn_implementation == "eager"
        mask = batch.attention_mask(additive_dtype=dtype if numbers else None)
        inputs = {"input_ids": batch.input_ids, "attention_mask": mask, "use_cache": False}
        if "position_ids" in inspect.signature(body.forward).parameters:
            inputs["position_ids"] = batch.position_ids
        return body(**inputs).last_hidden_state

    def _logps(
        self, model: nn.Module, hidden: Tensor, batch: GroupBatch, temperature: float, entropy: bool
    ) -> dict[str, Tensor]:
        rows = hidden[batch.pred_row, batch.pred_col]
        head, options = self._head(model, batch.num_tokens)
        logps, ent = token_logps(
            rows, batch.labels, head, temperature=temperature, want_entropy=entropy, **options
        )
        return {"logps": logps} if ent is None else {"logps": logps, "entropy": ent}

    def _logps_lse(self, hidden: Tensor, batch: GroupBatch) -> tuple[Tensor, Tensor]:
        head, options = self._head(self.lm, batch.num_tokens)
        rows = hidden[batch.pred_row, batch.pred_col]
        return token_logps_lse(rows, batch.labels, head, **options)

    def _head(self, model: nn.Module, tokens: int) -> tuple[Any, dict[str, Any]]:
        """A model's head, and how `align.logprobs` has to apply it to so many tokens."""
        head, config = base_model(model).get_output_embeddings(), base_model(model).config
        chunks = chunk_count(tokens, head)
        return head, {
            "softcap": getattr(config, "final_logit_softcapping", None),
            "scale": logit_scale(config),
            # Under ZeRO-3 each call of the head gathers it, on all ranks together.
            "min_chunks": int(max_over_ranks(chunks)) if zero3() else 1,
        }

    def _ref_logps(self, batch: GroupBatch, temperature: float) -> Tensor:
        with torch.no_grad():
            if self.reference is not None:
                hidden = self._hidden(self.reference, batch)
                return self._logps(self.reference, hidden, batch, temperature, False)["logps"]
            if not self.adapter_reference:
                raise RuntimeError("this policy was loaded without a reference")
            with self.lm.disable_adapter():
                hidden = self._hidden(self.lm, batch)
                logps = self._logps(self.lm, hidden, batch, temperature, False)["logps"]
            self._restore_trained()
            return logps

    def _values(
        self, head: nn.Module, hidden: Tensor, batch: GroupBatch, want: Collection[str]
    ) -> dict[str, Tensor]:
        out = {}
        if "values" in want:
            out["values"] = _apply(head, hidden[batch.pred_row, batch.pred_col]).mean(-1)
        if "end_values" in want:
            out["end_values"] = _apply(head, hidden[batch.end_row, batch.end_col]).mean(-1)
        return out

    def _value_head(self) -> nn.Module:
        if self.value_head is None:
            raise RuntimeError("this policy was loaded without a critic")
        return self.value_head

    @contextmanager
    def _critic_active(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """The critic's model and head; an adapter critic is the active adapter inside."""
        if self.critic is not None:
            yield self.critic, head_of(self.critic)
            return
        with self.active(CRITIC_ADAPTER):
            yield self.lm, self._value_head()

    @contextmanager
    def active(self, adapter: str) -> Iterator[None]:
        """Another adapter of the policy's base inside; what is trained stays trained."""
        previous = self.lm.active_adapter
        self.lm.set_adapter(adapter)
        self._restore_trained()
        try:
            yield
        finally:
            self.lm.set_adapter(previous)
            self._restore_trained()

    def _restore_trained(self) -> None:
        # peft takes requires_grad away from adapters that are not active.
        for owner, name in self._trained:
            getattr(owner, name).requires_grad_(True)

    def train(self, mode: bool = True) -> PolicyModule:
        """Set the mode; reference and judges stay in evaluation mode."""
        super().train(mode)
        self.judges.eval()
        if self.reference is not None:
            self.reference.eval()
        return self

    @property
    def config(self) -> Any:
        """The causal LM's configuration, which the Trainer and DeepSpeed read."""
        return base_model(self.lm).config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.lm.parameters()).device

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of transformer layers: each is a unit of FSDP (read by accelerate)."""
        judges = [getattr(judge, "model", None) for judge in self.judges]
        models = filter(None, (self.lm, self.reference, self.critic, *judges))
        named = [getattr(base_model(m), "_no_split_modules", None) or () for m in models]
        return sorted({name for names in named for name in names})

    @property
    def _keys_to_ignore_on_save(self) -> list[str]:
        """Frozen and tied weights: a checkpoint has none of them (read by the Trainer's resume)."""
        kept = {name for name, p in self.named_parameters() if p.requires_grad}
        return [name for name in self.state_dict() if name not in kept]

    def tie_weights(self) -> None:
        """Make weights one again that were one: FSDP2's preparation gives each place its own.

        Without it an output head that is the embedding would learn apart from it. Called by
        accelerate (`fsdp2_prepare_model`) and by the Trainer's resume.
        """
        for (owner, own), *others in self._shared:
            for module, name in others:
                setattr(module, name, getattr(owner, own))

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Any = None, **more: Any
    ) -> None:
        """Recompute activations of the trained models in the backward pass.

        more: every_n_layers and offload, which transformers has from 5.24 on.
        """
        settings = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        for model in filter(None, (self.lm, self.critic)):
            base_model(model).gradient_checkpointing_enable(settings, **more)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Any = None, **more: Any
    ) -> None:
        """The same under the name that transformers calls from 5.24 on."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **more)

    def gradient_checkpointing_disable(self) -> None:
        """Undo `gradient_checkpointing_enable`."""
        for model in filter(None, (self.lm, self.critic)):
            base_model(model).gradient_checkpointing_disable()

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed."""
        modules = base_model(self.lm).modules()
        return any(getattr(m, "gradient_checkpointing", False) for m in modules)

    def critic_parameters(self) -> list[nn.Parameter]:
        """The trained parameters that belong to the critic alone."""
        named = [
            (name, p)
            for name, p in self.named_parameters()
            if name.startswith(("critic.", "value_head.")) or f".{CRITIC_ADAPTER}." in name
        ]
        return [p for _, p in named if p.requires_grad]


def _places(module: nn.Module) -> list[tuple[nn.Parameter, list[tuple[nn.Module, str]]]]:
    """Every parameter with the places (submodule, name) that it stands in."""
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(parameter, []).append((owner, name))
    return list(places.items())


def base_model(model: Any) -> Any:
    """The transformers model inside a PeftModel, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def body_of(model: nn.Module) -> Any:
    """The transformer without its head."""
    base = base_model(model)
    body = base.base_model
    if body is base:  # the prefix names a part of a larger model (Llama4)
        body = getattr(base, "model", base)
    if body is base:
        raise ValueError(f"{type(base).__name__} has no body apart from its head")
    return body


def head_of(model: nn.Module) -> nn.Linear:
    """The scalar head of a sequence classifier."""
    from align.heads import find_head

    return find_head(base_model(model))[1]


def logit_scale(config: Any) -> float | None:
    """Factor between the head's output and the logits (Cohere multiplies, Granite divides)."""
    if getattr(config, "logits_scaling", None):
        return 1.0 / config.logits_scaling
    return getattr(config, "logit_scale", None)


def _apply(head: nn.Module, rows: Tensor) -> Tensor:
    """Head outputs in float32."""
    weight = getattr(head, "weight", None)
    return head(rows.to(weight.dtype) if weight is not None else rows).float()
