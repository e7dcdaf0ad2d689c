"""`--dry_run`: what a run would do, without training or writing anything.

Shown: the resolved configuration, the batch arithmetic, one decoded example with its loss marked,
and parameter and memory estimates from a model on the meta device.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import launch_env
from align.config_checks import NEEDED, USES_REFERENCE
from align.prerequisites import fill

if TYPE_CHECKING:
    from align.config import Config

OPEN, CLOSE = "⟦", "⟧"  # around the tokens that are in the loss
_MIB = 1 << 20


def dry_run(config: Config) -> int:
    """Print the plan of a run; return the exit code."""
    print("# configuration\n" + config.to_yaml())
    plan = copy.deepcopy(config)
    stages = fill(plan)
    root = Path(plan.demo.root)
    missing = [stage for stage in stages if not (root / stage / "final").is_dir()]
    if missing:
        print(f"# built first, because `auto` refers to them: {', '.join(missing)}\n")
    print("# batches\n" + "\n".join(batch_lines(plan)) + "\n")
    tokenizer = load_tokenizer(plan)
    print(f"# one example ({OPEN}…{CLOSE} is in the loss)\n" + example(plan, tokenizer) + "\n")
    if plan.method != "tokenizer":
        vocabulary = len(tokenizer) if tokenizer is not None else plan.tokenizer.vocab_size
        print("# size\n" + "\n".join(size_lines(plan, vocabulary)))
    print("\nNothing was trained or written.")
    return 0


def batch_lines(config: Config) -> list[str]:
    """Return the batch arithmetic as lines."""
    if config.method == "tokenizer":
        return [f"  the whole of {config.data.text}, vocabulary {config.tokenizer.vocab_size}"]
    args, world = config.train.args, launch_env.asked_world()
    device = args.get("per_device_train_batch_size", 8)
    accumulate = args.get("gradient_accumulation_steps", 1)
    unit = {"pretrain": "rows", "sft": "examples", "ppo": "completions"}.get(config.method, "pairs")
    lines = [
        f"  {device} per device × {world} process(es) × {accumulate} accumulation = "
        f"{device * world * accumulate} {unit} a step"
    ]
    if config.method == "pretrain":
        tokens = device * world * accumulate * config.pretrain.block_size
        lines.append(f"  × block_size {config.pretrain.block_size} = {tokens} tokens a step")
    if config.method == "ppo":
        rollout, ppo = config.rollout, config.ppo
        total = rollout.prompts_per_update * rollout.n
        lines = [
            f"  rollout: {rollout.prompts_per_update} prompts × {rollout.n} = {total} completions "
            f"of at most {rollout.max_new_tokens} tokens, {total // world} on each of {world}",
            f"  {ppo.ppo_epochs} passes × {ppo.num_minibatches} minibatches of "
            f"{total // ppo.num_minibatches} = {ppo.ppo_epochs * ppo.num_minibatches} optimiser "
            f"steps an update, {device} completions at once on a device",
        ]
    if config.train.max_tokens_per_batch:
        lines.append(f"  at most {config.train.max_tokens_per_batch} tokens in a micro-batch")
    steps = args.get("max_steps", -1)
    what = f"{steps} steps" if steps > 0 else f"{args.get('num_train_epochs', 3.0)} epochs"
    return [*lines, f"  for {what}"]


def load_tokenizer(config: Config) -> Any:
    """Return the tokenizer that the run would use, or None if it has yet to be built."""
    from transformers import AutoTokenizer

    from align.chat import prepare_tokenizer

    path = config.policy.path
    if config.method == "pretrain" and path is None:
        path = config.pretrain.tokenizer
    if config.method == "tokenizer" or path is None:
        tokenizer = _tiny_tokenizer(config)
    elif not Path(path).exists() and path.startswith(config.demo.root):
        return None
    else:
        tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer is None or config.method in ("tokenizer", "pretrain"):
        return tokenizer
    if tokenizer.chat_template is None and config.data.chat_template is None:
        return prepare_tokenizer(tokenizer, "chatml")
    return prepare_tokenizer(tokenizer, config.data.chat_template)


def _tiny_tokenizer(config: Config) -> Any:
    from align.data.corpus import iter_texts
    from align.data.tokenizer import train_tokenizer

    if config.data.text is None or not Path(config.data.text).exists():
        return None
    texts = itertools.islice(iter_texts(config.data.text), 2000)
    settings = config.tokenizer
    return train_tokenizer(texts, settings.vocab_size, min_frequency=settings.min_frequency)


def example(config: Config, tokenizer: Any) -> str:
    """Return the first training example, decoded, with the loss marked."""
    from align import chat

    if tokenizer is None:
        return "  (the tokenizer has yet to be built)"
    method = config.method
    path: Any = config.prompts_path if method == "ppo" else getattr(config.data, NEEDED[method])
    if method in ("tokenizer", "pretrain"):
        from align.data.corpus import iter_texts

        ids = tokenizer(next(iter(iter_texts(path))), add_special_tokens=False)["input_ids"]
        return marked(tokenizer, ids, [1] * len(ids))
    if method == "sft":
        from align.data.sft import load_sft

        examples, _ = load_sft(path)
        return marked(
            tokenizer,
            *chat.render_conversation(tokenizer, examples[0].messages, config.sft.loss_on),
        )
    if method == "ppo":
        from align.data.prompts import load_prompts

        prompts = load_prompts(path)
        ids = chat.render_prompt(tokenizer, prompts[0].messages)
        return marked(tokenizer, ids, [0] * len(ids)) + f"{OPEN}sampled completion{CLOSE}"
    from align.data.pairs import load_preferences

    groups, _ = load_preferences(path)
    lines = []
    for candidate in groups[0].candidates:
        prompt, answer, mask = chat.render_completion(
            tokenizer, groups[0].prompt, candidate.content
        )
        text = marked(tokenizer, prompt + answer, [0] * len(prompt) + list(mask))
        lines.append(f"[candidate {candidate.id}] {text}")
    return "\n".join(lines)


def marked(tokenizer: Any, ids: list[int], mask: list[int], limit: int = 400) -> str:
    """Return decoded ids with runs of mask 1 between OPEN and CLOSE."""
    out = []
    pairs = list(zip(ids, mask, strict=True))[:limit]
    for inside, run in itertools.groupby(pairs, key=lambda pair: bool(pair[1])):
        text = tokenizer.decode([token for token, _ in run], skip_special_tokens=False)
        out.append(f"{OPEN}{text}{CLOSE}" if inside else text)
    return "".join(out) + (" …" if len(ids) > limit else "")


def size_lines(config: Config, vocabulary: int) -> list[str]:
    """Return parameters and memory as lines."""
    model = meta_model(config, vocabulary)
    if model is None:
        return ["  (the model has yet to be built)"]
    total = sum(p.numel() for p in model.parameters())
    trained = total if config.policy.lora is None else lora_parameters(config, model)
    weight = {"4bit": 0.55, "8bit": 1.0, None: 4.0}[config.policy.quantization]
    if config.policy.dtype == "bfloat16" and config.policy.quantization is None:
        weight = 2.0
    copies = 1
    if config.method in USES_REFERENCE and config.reference == "frozen":
        copies += 1
    separate_critic = config.method == "ppo" and (
        config.ppo.critic == "separate"
        or (config.ppo.critic == "auto" and config.policy.lora is None)
    )
    if separate_critic:
        copies, trained = copies + 1, trained * 2
    rewards = sum(r.kind == "model" for r in config.rewards) if config.method == "ppo" else 0
    base, states = total * weight * copies / _MIB, trained * 12 / _MIB
    return [
        f"  {total:,} parameters, {trained:,} trained",
        f"  weights {base:.0f} MiB ({copies} × {weight:g} bytes), gradients and Adam {states:.0f} "
        "MiB (12 bytes a trained parameter); activations come on top"
        + (f"; {rewards} reward model(s) too" if rewards else ""),
    ]


def meta_model(config: Config, vocabulary: int) -> Any:
    """Return the model without storage, or None if it has yet to be built."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path = config.policy.path
    if path is None:
        shape = from_nothing(config, vocabulary)
    elif not Path(path).exists() and path.startswith(config.demo.root):
        return None
    else:
        shape = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(shape)


def from_nothing(config: Config, vocabulary: int) -> Any:
    """Return the transformers config that the `pretrain` section describes."""
    from transformers import AutoConfig

    p = config.pretrain
    if p.arch == "gpt2":
        return AutoConfig.for_model(
            "gpt2", vocab_size=vocabulary, n_embd=p.n_embd, n_layer=p.n_layer, n_head=p.n_head,
            n_inner=p.intermediate_size, n_positions=max(p.block_size, config.data.max_length),
        )  # fmt: skip
    return AutoConfig.for_model(
        p.arch, vocab_size=vocabulary, hidden_size=p.n_embd, num_hidden_layers=p.n_layer,
        num_attention_heads=p.n_head, num_key_value_heads=p.n_kv_head or p.n_head,
        intermediate_size=p.intermediate_size or 8 * p.n_embd // 3, head_dim=p.n_embd // p.n_head,
    )  # fmt: skip


def lora_parameters(config: Config, model: Any) -> int:
    """Return the size of the adapters: r × (in + out) of every adapted linear layer."""
    lora = config.policy.lora
    assert lora is not None
    total = 0
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if (
            weight is None
            or weight.dim() != 2
            or not type(module).__name__.startswith(("Lin", "Conv"))
        ):
            continue
        leaf = name.rsplit(".", 1)[-1]
        wanted = lora.target_modules
        if leaf != "lm_head" if wanted == "all-linear" else leaf in wanted:
            total += lora.r * sum(weight.shape)
    return total
