"""Tiny models on disk, configurations without a YAML file, and what several tests compare."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from align.config import Config, build
from align.data.tokenizer import train_tokenizer
from align.groups import TokenGroup
from align.policy import Policy
from align.policy_module import PolicyModule

VOCAB = 320
TEXTS = [
    "房间很干净，服务很好，下次还会来。", "早餐不错，位置也很方便。",
    "The room was clean and the staff were kind.", "Write a review of a hotel",
] * 3  # fmt: skip
SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}


@functools.cache
def words(vocab: int = VOCAB, template: str | None = "chatml"):
    return train_tokenizer(TEXTS, vocab, chat_template=template)


def save(folder: Path, kind: str = "llama", *, heads: int = 0, seed: int = 0, **more) -> str:
    """A random model with its tokenizer; heads: a classifier with so many."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**SHAPE, **(GPT2 if kind == "gpt2" else {}), **more})
    if heads:
        config.num_labels = heads
    auto = AutoModelForSequenceClassification if heads else AutoModelForCausalLM
    auto.from_config(config).save_pretrained(folder)
    words().save_pretrained(folder)
    return str(folder)


def configure(method: str, path: str | None, run_dir: Path, **sections) -> Config:
    """The configuration of a run; sections as in the YAML file, policy without its path."""
    raw = {"data": {"max_length": 64}, **sections}
    raw["policy"] = {"path": path, **sections.get("policy", {})}
    raw["train"] = {"output_dir": str(run_dir), **sections.get("train", {})}
    return build(method, raw)


def load(method: str, path: str | None, run_dir: Path, *, critic: bool = False, **sections):
    """The policy of a run, in evaluation mode."""
    role = "reward" if method == "reward" else "policy"
    policy = Policy.load(configure(method, path, run_dir, **sections), role=role, critic=critic)
    policy.module.eval()
    return policy


def groups() -> list[TokenGroup]:
    """Two prompts, with three and two candidates; 20 predicted tokens."""
    drawn = torch.Generator().manual_seed(1)

    def some(n: int) -> list[int]:
        return torch.randint(10, VOCAB, (n,), generator=drawn).tolist()

    return [
        TokenGroup(some(5), [some(3), some(6), some(4)]),
        TokenGroup(some(7), [some(2), some(5)]),
    ]


def ask(policy: Policy, *want: str, **more) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """What the module gives for `groups`, without gradients."""
    with torch.no_grad():
        out = policy.module(policy.collate(groups()), want=want or ("logps",), **more)
    found = tuple(out[name] for name in want or ("logps",))
    return found if len(found) > 1 else found[0]


def own_logps(model) -> torch.Tensor:
    """Log-probs of the candidates' tokens from a transformers model itself, a row at a time."""
    found = []
    for group in groups():
        for completion in group.completions:
            row, start = torch.tensor([group.prompt_ids + completion]), len(group.prompt_ids)
            with torch.no_grad():
                logps = model(input_ids=row).logits[0].float().log_softmax(-1)
            found.append(logps[start - 1 : -1].gather(1, row[0, start:, None])[:, 0])
    return torch.cat(found)


def own_scores(model) -> torch.Tensor:
    """A transformers classifier's own outputs for the candidates, a row at a time."""
    rows = [g.prompt_ids + c for g in groups() for c in g.completions]
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([row])).logits for row in rows])


def causal(path: str | Path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def disturb(module: PolicyModule, part: str = "", seed: int = 7) -> None:
    """Move the trained weights whose names contain `part`, as training would."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and part in name:
                parameter.add_(torch.randn(parameter.shape, generator=drawn) * 0.05)


def state(policy: Policy) -> dict[str, torch.Tensor]:
    """The trained weights by name, as the Trainer hands them to `Policy.save`."""
    named = policy.module.named_parameters()
    return {n: p.detach().clone() for n, p in named if p.requires_grad}


def trained(policy: Policy) -> set[str]:
    return {n for n, p in policy.module.named_parameters() if p.requires_grad}


def adapter(folder: Path, base: str, seed: int = 3, **more) -> str:
    """A LoRA adapter that changes `base`, saved by peft itself."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **more}
    get_peft_model(causal(base), LoraConfig(**settings)).save_pretrained(folder)
    return str(folder)


def close(a, b, tolerance: float = 1e-5) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance)
