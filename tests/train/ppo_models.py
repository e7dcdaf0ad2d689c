"""What the PPO tests share: a tiny model whose samples end at times, configurations, trainers."""

from __future__ import annotations

import atexit
import functools
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
)

from align.chat import stop_ids
from align.config import Config, load_config, merge
from align.data.tokenizer import train_tokenizer
from align.groups import TokenGroup
from align.policy import Policy
from align.run import use_device
from align.train import examples, ppo
from align.train.ppo_prompts import load_prompt_items
from align.train.runner import training_arguments

VOCAB = 330
DROP = "<drop>"  # a key of the base configuration that a test leaves out
TEXTS = [
    "房间很干净，服务很好，下次还会来。", "早餐不错，位置也很方便。", "太差了，再也不来了。",
    "The room was clean and the staff were kind.", "Terrible food, never again.",
    "写一条酒店评论", "Write a review of a hotel",
] * 3  # fmt: skip
PROMPTS = [
    {"prompt": "写一条酒店评论"},
    {"prompt": "Write a review of a hotel"},
    {"prompt": "早餐怎么样？"},
    {"prompt": "Was the room clean?"},
    {"prompt": "位置方便吗？"},
    {"prompt": "Describe the staff."},
    {"prompt": "再来一次吗？"},
    {"prompt": "The food"},
]
SFT = [
    {"instruction": "写一条酒店评论", "output": "房间很干净。"},
    {"instruction": "Was the room clean?", "output": "The room was clean and the staff were kind."},
    {"instruction": "早餐怎么样？", "output": "早餐不错，位置也很方便。"},
]


@functools.cache
def _place() -> Path:
    """A folder that lives as long as the test process."""
    folder = tempfile.mkdtemp(prefix="align-ppo-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@functools.cache
def tokenizer():
    return train_tokenizer(TEXTS, VOCAB, chat_template="chatml")


@functools.cache
def base(arch: str = "gpt2", end: float = 0.08, pad_is_eos: bool = False) -> str:
    """Folder of a random causal LM with dropout in its configuration.

    Its next-token distributions are far from uniform, and it ends a completion with a probability
    of about `end` a token, so that rollouts hold finished and unfinished completions.
    """
    words = tokenizer()
    torch.manual_seed(0)
    if arch == "gpt2":
        shape = GPT2Config(
            vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128,
            initializer_range=0.15, bos_token_id=0, eos_token_id=0, pad_token_id=1,
        )  # fmt: skip
        model: Any = GPT2LMHeadModel(shape)
        with torch.no_grad():
            # One hidden dimension is 1 everywhere and only stop tokens read it.
            model.transformer.ln_f.bias[0], model.transformer.ln_f.weight[0] = 1.0, 0.0
            model.transformer.wte.weight[:, 0] = 0.0
            for stop in stop_ids(words):
                model.transformer.wte.weight[stop, 0] = math.log(end * VOCAB / 2)
    else:
        shape = LlamaConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
            initializer_range=0.15, bos_token_id=None, eos_token_id=0, pad_token_id=1,
            attention_dropout=0.1,
        )  # fmt: skip
        model = LlamaForCausalLM(shape)
    folder = _place() / f"{arch}-{end}-{pad_is_eos}"
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    if pad_is_eos:
        from transformers import AutoTokenizer

        again = AutoTokenizer.from_pretrained(folder)
        again.pad_token = again.eos_token
        again.save_pretrained(folder)
    return str(folder)


def length_score(prompts: list, completions: list[str]) -> list[float]:
    """The reward of the configuration below: a tenth of the number of characters."""
    return [len(text) / 10 for text in completions]


def config(folder: Path, **sections: Any) -> Config:
    """A checked PPO configuration; sections: what differs from the base below."""
    prompts, sft = folder / "prompts.jsonl", folder / "sft.jsonl"
    for path, rows in ((prompts, PROMPTS), (sft, SFT)):
        if not path.exists():
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    tree: dict[str, Any] = {
        "policy": {"path": base(), "dtype": "float32"},
        "data": {"prompts": str(prompts), "sft": str(sft), "max_length": 96,
                 "chat_template": "chatml"},
        "train": {"output_dir": str(folder / "run"), "resume": "never", "learning_rate": 1e-3,
                  "lr_scheduler_type": "constant", "per_device_train_batch_size": 8,
                  "per_device_eval_batch_size": 4, "max_steps": 1, "max_grad_norm": 0.0,
                  "weight_decay": 0.0, "logging_steps": 1, "save_strategy": "no", "seed": 3},
        "ppo": {"ppo_epochs": 1, "num_minibatches": 1},
        "rollout": {"prompts_per_update": 4, "n": 2, "max_new_tokens": 10, "batch_size": 8},
        "rewards": [{"kind": "function", "path": f"{__file__}:length_score"}],
    }  # fmt: skip
    file = folder / "config.yaml"
    kept = {
        name: {k: v for k, v in part.items() if v != DROP} if isinstance(part, dict) else part
        for name, part in merge(tree, sections).items()
    }
    file.write_text(yaml.safe_dump(kept, allow_unicode=True), encoding="utf-8")
    return load_config("ppo", ["--config", str(file)])


def trainer(settings: Config, reward: Any = None, callbacks: Any = ()) -> ppo.PpoTrainer:
    """What `align.train.ppo.train` builds, not yet run."""
    from align.rewards import make_reward

    use_device(settings)
    args = training_arguments(settings, **ppo.batch_arguments(settings))
    ppo.check(settings)
    policy = Policy.load(settings, critic=True)
    prompts, held_out, _ = load_prompt_items(settings, policy.tokenizer)
    ptx: list[TokenGroup] = []
    if settings.ppo.ptx_coef > 0:
        ptx = examples.sft_groups(settings, policy.tokenizer)[0]
    reward = reward or make_reward(settings.rewards)
    made = ppo.PpoTrainer(policy, settings, args, prompts, held_out, reward, ptx, callbacks)
    if made.ema:
        made.add_callback(made.ema)
    for known in (PrinterCallback, ProgressCallback):
        made.remove_callback(known)
    return made


def build(folder: Path, reward: Any = None, callbacks: Any = (), **sections: Any):
    """`trainer` of `config`."""
    return trainer(config(folder, **sections), reward, callbacks)


class Gradients(TrainerCallback):
    """Keeps the gradients of every optimiser step, by parameter name."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        named = model.named_parameters()
        self.steps.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def gradient(folder: Path, reward: Any = None, disturb: float = 0.0, **sections: Any):
    """Gradients of the first step, and the trainer after it."""
    seen = Gradients()
    made = build(folder, reward, [seen], **sections)
    if disturb:
        move(made, disturb)
    made.train()
    return seen.steps[0], made


def move(made: ppo.PpoTrainer, size: float, head: float = 0.3, seed: int = 0) -> None:
    """Push the policy away from its reference, and give the critic a head that says something.

    head: size of the critic's head; 0 leaves its values at 0.
    """
    drawn = torch.Generator().manual_seed(seed)
    module = made.policy.module
    critic = {id(p) for p in module.critic_parameters()}
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.requires_grad and id(p) not in critic and p.dim() > 1:
                p += size * p.std().clamp(min=0.02) * torch.randn(p.shape, generator=drawn)
            if name.endswith(("score.weight", "value_head.weight")):
                p += head * torch.randn(p.shape, generator=drawn)
    made._reference_checked = True  # the two differ on purpose


def logged(made: ppo.PpoTrainer, name: str) -> list[float]:
    """A figure's values in the order of the log."""
    return [row[name] for row in made.state.log_history if name in row]


def plain_logps(model, prompt: list[int], completion: list[int], temperature: float = 1.0):
    """Log-probs of a completion from one forward pass: no padding, no batch, no shared prompt."""
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0].double()
    scaled = torch.log_softmax(logits[len(prompt) - 1 : -1] / temperature, -1)
    return scaled.gather(1, torch.tensor(completion)[:, None])[:, 0].tolist()


def flat(rollout, name: str) -> torch.Tensor:
    """An extra of a rollout, all completions end to end."""
    return torch.tensor([x for g in rollout.groups for row in g.extras[name] for x in row])


def completions(rollout) -> list[tuple[list[int], list[int]]]:
    """(prompt, completion) pairs in order."""
    return [(g.prompt_ids, c) for g in rollout.groups for c in g.completions]
