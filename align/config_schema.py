# ruff: noqa: RUF009 - key() is dataclasses.field() with a help text and a range
"""The sections of the configuration: every key, its type, default, range and meaning.

One file serves every method (`recipes/dpo.py` and `recipes/ppo.py` read the same YAML), so all
sections are always present and always checked; a method uses those it needs. Key names follow
`TrainingArguments` where such a name exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from align.config_iteration import Iterate
from align.config_key import key
from align.config_rollout import Rollout

DPO_LOSSES = Literal[
    "sigmoid", "ipo", "hinge", "robust", "exo", "apo_zero", "apo_down", "sppo", "aot",
    "discopop", "simpo", "cpo",
]  # fmt: skip


@dataclass
class Lora:
    """Low-rank adapters; `null` trains all weights."""

    r: int = key(16, "rank", ge=1)
    alpha: float = key(32.0, "scale; the update is multiplied by alpha / r", gt=0)
    dropout: float = key(0.0, "dropout on the adapter's input", ge=0, lt=1)
    target_modules: str | list[str] = key("all-linear", "module names, or all-linear")
    path: str | None = key(None, "an existing adapter to continue from")


@dataclass
class Policy:
    """The model that is trained, and its reference."""

    path: str | None = key(
        "auto", "folder or hub id; auto: the previous stage, built if missing; null: a tiny model"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = key("auto", "weights' type")
    attn_implementation: str | None = key(None, "eager, sdpa, flash_attention_2 …; null: sdpa")
    reference: Literal["auto", "adapter_off", "frozen", "cached", "none"] = key(
        "auto", "auto: adapter_off with LoRA, frozen without, none where a method has no reference"
    )
    lora: Lora | None = key(None, "null: full fine-tuning")
    quantization: Literal["4bit", "8bit"] | None = key(None, "k-bit base under LoRA")
    layout: Literal["auto", "grouped", "plain"] = key("auto", "shared-prefix rows or plain rows")
    allow_pickle: bool = key(False, "read weights from .bin and .pt files, which may run code")
    trust_remote_code: bool = key(False, "run Python code that comes with the model")


@dataclass
class Data:
    """The files, and how records become tokens."""

    text: str | dict[str, float] | None = key(
        None,
        "pre-training text: .txt (a paragraph a line), .jsonl {text}, a folder of them or of "
        "token shards; {path: weight, …} mixes several",
    )
    sft: str | None = key(None, "{instruction, input, output} or {messages} records")
    preferences: str | None = key(None, "preference groups or {prompt, chosen, rejected} records")
    prompts: str | None = key(None, "prompts for PPO; null: those of data.preferences")
    validation: str | None = key(None, "held-out file of the method's own kind")
    validation_fraction: float = key(0.0, "share held out when validation is null", ge=0, lt=1)
    max_length: int = key(1024, "tokens of prompt and completion together", ge=2)
    max_prompt_length: int | None = key(None, "tokens of the prompt", ge=1)
    truncation: Literal["keep_start", "keep_end"] = key("keep_end", "which end of a prompt stays")
    shuffle: bool = key(True, "shuffle the training records every epoch")
    chat_template: str | None = key(
        None,
        "chatml, zh_instruction, inst, a .jinja file; null: the tokenizer's own; auto: the same, "
        "and zh_instruction where it has none",
    )
    num_proc: int | None = key(None, "processes for tokenising", ge=1)


@dataclass
class LossSpike:
    """What to do when the loss jumps or is not finite."""

    action: Literal["stop", "continue"] = key("stop", "stop keeps the last good checkpoint")
    factor: float = key(5.0, "a spike is a loss above factor × the recent median", gt=1)


@dataclass
class Train:
    """The optimisation loop; every other `TrainingArguments` name is taken too."""

    output_dir: str = key("auto", "run directory; auto: <demo.root>/<method>")
    resume: str = key("auto", "auto: the last checkpoint in output_dir; never; or a path")
    max_tokens_per_batch: int | None = key(None, "token budget of a pass; null: 512 on a CPU", ge=1)
    loss_spike: LossSpike = key(factory=LossSpike)
    early_stopping_patience: int | None = key(None, "evaluations without improvement", ge=1)
    rank_timeout_s: float = key(
        60.0, "several processes: one that gives no sign of life this long is lost", gt=0
    )
    args: dict[str, Any] = key(factory=dict)


@dataclass
class Sft:
    """Supervised fine-tuning."""

    packing: bool = key(False, "several examples in one row, isolated from each other")
    loss_on: Literal["completion", "assistant", "all"] = key(
        "assistant", "completion: last answer; assistant: every answer; all: every token"
    )


@dataclass
class RewardModel:
    """Training of the reward model."""

    center_coef: float = key(0.0, "weight of the squared mean score, keeps scores near 0", ge=0)
    margin: bool = key(False, "use the strength of a judgement as a margin")
    aggregate: Literal["soft", "majority", "per_annotator", "dawid_skene", "noisy_bt"] = key(
        "soft", "how several judgements become one target; the last two as the import found them"
    )
    length_coef: float = key(0.0, "log-odds that length alone is granted, per doubling")
    heads: int = key(1, "score heads, averaged; with attributes a multiple of their number", ge=1)
    bootstrap: bool = key(True, "each of several heads draws its own prompts, so that they differ")
    attributes: list[str] = key(factory=list, help="ratings to predict; see pair_coef")
    attribute_weights: list[float] | None = key(
        None, "weights of the attributes in the score; null: their mean"
    )
    pair_coef: float = key(
        0.0, "beside attributes: a prompt's comparisons count like so many ratings", ge=0
    )

    def __post_init__(self) -> None:
        # Every attribute is an output of its own; the written configuration says how many.
        if self.attributes and self.heads == 1:
            self.heads = len(self.attributes)

    @property
    def members(self) -> int:
        """Heads that give a score each, which is more than one for an ensemble."""
        return self.heads // max(1, len(self.attributes))


@dataclass
class Dpo:
    """Direct preference optimisation and its relatives."""

    beta: float = key(0.1, "strength of the pull to the reference", gt=0)
    loss_type: DPO_LOSSES = key("sigmoid", "see docs/dpo.md")
    label_smoothing: float = key(0.0, "probability that a judgement is wrong", ge=0, lt=0.5)


@dataclass
class Orpo:
    """Odds-ratio preference optimisation (needs no reference)."""

    beta: float = key(0.1, "weight of the odds-ratio term", ge=0)


@dataclass
class MissingEos:
    """What a completion without a stop token scores."""

    mode: Literal["none", "set", "subtract"] = key("none", "set: score := value; subtract: −value")
    value: float | None = key(None, "penalty, null: 1; with mode set the score itself, null: −1")


@dataclass
class Ppo:
    """Proximal policy optimisation from a reward."""

    kl_coef: float = key(0.05, "weight of the per-token KL to the reference", ge=0)
    kl_target: float | None = key(None, "KL per sequence (a sum) an adaptive kl_coef aims at", gt=0)
    kl_horizon: float = key(10000.0, "samples over which kl_coef adapts", gt=0)
    kl_estimator: Literal["k1", "k2", "k3"] = key("k1", "estimator used in the reward")
    gamma: float = key(1.0, "discount", ge=0, le=1)
    lam: float = key(0.95, "GAE lambda", ge=0, le=1)
    clip_range: float = key(0.2, "policy ratio clip, below (and above)", gt=0, lt=1)
    clip_range_high: float | None = key(None, "clip above, if different", gt=0)
    dual_clip: float | None = key(None, "bound on the loss of negative advantages", gt=1)
    value_clip_range: float | None = key(0.2, "value clip; null: none", gt=0)
    vf_coef: float = key(0.1, "weight of the value loss", ge=0)
    ppo_epochs: int = key(4, "passes over each rollout", ge=1)
    num_minibatches: int = key(1, "optimiser steps a pass", ge=1)
    whiten_rewards: bool = key(False, "scale shaped rewards to unit variance, mean kept")
    critic: Literal["auto", "adapter", "separate", "shared"] = key(
        "auto", "adapter with LoRA, separate model without; shared: a head on the policy"
    )
    critic_path: str | None = key(None, "start of a separate critic; null: the policy's path")
    critic_learning_rate: float | None = key(None, "null: the policy's", ge=0)
    critic_warmup_updates: int = key(0, "updates with the policy frozen", ge=0)
    missing_eos: MissingEos = key(factory=MissingEos)
    score_at: Literal["eos", "after_eos"] = key("eos", "the token that carries the score")
    target_kl: float | None = key(None, "approx_kl that ends the passes over a rollout", gt=0)
    score_norm: Literal["none", "std", "mean_std"] = key("none", "running normalisation of scores")
    score_clip: float | None = key(10.0, "scores are clipped to ± this; null: no clip", gt=0)
    length_penalty: float = key(0.0, "subtracted from the score, per completion token", ge=0)
    entropy_coef: float = key(0.0, "entropy bonus", ge=0)
    ptx_coef: float = key(0.0, "weight of the data.sft loss mixed in", ge=0)
    ema_decay: float | None = key(None, "keep a moving average of the policy", gt=0, lt=1)


@dataclass
class RewardSource:
    """One term of the reward; terms are summed with their weights."""

    kind: Literal["model", "function", "http"] = key("model", "what gives the score")
    path: str = key("auto", "checkpoint, module:function, file.py:function or URL")
    weight: float = key(1.0, "factor of this term")
    calibrated: bool = key(False, "model, http: in deviations of its reference samples")
    timeout_s: float = key(600.0, "model, function: seconds for the scores of a rollout", gt=0)


@dataclass
class Eval:
    """Held-out evaluation."""

    prompts: str | None = key(None, "held-out prompts; null: data.validation or a split")
    suite: str | None = key(None, "suite file or shipped suite, run at every evaluation")
    judge: str | None = key(None, "naive Bayes JSON or reward-model folder that scores samples")
    num_samples: int = key(64, "prompts sampled at an evaluation", ge=1)
    n: int = key(1, "ppo: completions of each prompt at an evaluation", ge=1)
    pass_score: float | None = key(None, "ppo: a score from which a completion passes (pass@k)")
    temperature: float = key(0.0, "sampling temperature at evaluation; 0: greedy", ge=0)
    seeds: list[int] = key(factory=lambda: [0], help="sampling seeds; training uses the first")


@dataclass
class Pretrain:
    """Pre-training, and the architecture of a model trained from nothing."""

    preset: Literal["mini", "small", "1b"] | None = key(
        None, "arch and sizes that are not given: 384×4×6, GPT-2's 124M, a Llama of 1 billion"
    )
    arch: Literal["gpt2", "llama", "qwen3", "bert"] = key(
        "gpt2", "model family; bert learns masked tokens"
    )
    n_embd: int = key(384, "hidden size", ge=1)
    n_layer: int = key(4, "layers", ge=1)
    n_head: int = key(6, "attention heads", ge=1)
    n_kv_head: int | None = key(None, "key/value heads (llama, qwen3); null: n_head", ge=1)
    intermediate_size: int | None = key(
        None, "null: 4 × n_embd (gpt2, bert), 8/3 (llama, qwen3)", ge=1
    )
    block_size: int = key(256, "tokens of a training row and positions of the model", ge=2)
    dropout: float = key(0.0, "dropout", ge=0, lt=1)
    document_mask: bool = key(False, "a text of a row sees itself alone, positions restart with it")
    z_loss: float = key(0.0, "weight of the mean of logsumexp(logits)²", ge=0)
    mask_probability: float = key(0.15, "bert: share of tokens to predict", gt=0, lt=1)
    streaming: bool = key(False, "read and tokenise as needed, keep no token shards; max_steps")
    shuffle_buffer: int = key(10_000, "streaming: texts held to be mixed", ge=1)
    shard_tokens: int = key(1 << 26, "token ids in a file of the token shards, at least", ge=1)
    sample_prompts: list[str] = key(factory=list, help="continued at every evaluation")
    samples: int = key(1, "samples of each of sample_prompts", ge=1)
    sample_tokens: int = key(64, "tokens of a sample", ge=1)
    tokenizer: str | None = key(
        None, "tokenizer folder; auto: the tokenizer stage; null: policy.path's, or a tiny one"
    )


@dataclass
class Tokenizer:
    """Training of a tokenizer, or the extension of one."""

    kind: Literal["bpe", "unigram", "byte_bpe", "char_bpe"] = key(
        "bpe", "bpe, unigram: sentencepiece; byte_bpe: BPE over bytes; char_bpe: over characters"
    )
    vocab_size: int = key(4096, "entries, special tokens and bytes included", ge=260)
    character_coverage: float = key(
        0.9995, "share of the text's characters that get an entry (bpe, unigram)", gt=0, le=1
    )
    byte_fallback: bool = key(True, "a character without entry becomes bytes; false: <unk>")
    user_defined_symbols: list[str] = key(factory=list, help="texts that are always one token")
    control_symbols: list[str] = key(factory=list, help="further special tokens")
    split_digits: bool = key(True, "every digit is a token (not char_bpe, which always does)")
    sample_sentences: int | None = key(None, "paragraphs drawn to learn from; null: all", ge=1)
    min_frequency: int = key(2, "a merge must occur this often (byte_bpe, char_bpe, extend)", ge=1)
    max_token_length: int = key(
        16, "longest learned token in characters, for byte_bpe in bytes", ge=1, le=512
    )
    extend: str | None = key(
        None, "a model or tokenizer folder that gets further tokens, also written --extend BASE"
    )
    compare_with: list[str] = key(factory=list, help="tokenizer folders that the report compares")


@dataclass
class Demo:
    """Where the demo's stages live."""

    root: str = key("runs/demo", "folder of the stages that `auto` refers to")
    build: bool = key(True, "build a missing stage that `auto` refers to; false: error")


SECTIONS: dict[str, type] = {
    "policy": Policy,
    "data": Data,
    "train": Train,
    "sft": Sft,
    "reward": RewardModel,
    "dpo": Dpo,
    "orpo": Orpo,
    "ppo": Ppo,
    "rollout": Rollout,
    "eval": Eval,
    "pretrain": Pretrain,
    "tokenizer": Tokenizer,
    "iterate": Iterate,
    "demo": Demo,
}
