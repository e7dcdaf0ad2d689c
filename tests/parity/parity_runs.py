"""One small Llama, one data set, two trainers: what the parity tests share.

Our side is the public entry: a YAML, `load_config`, the stage's `train`, and the figures are read
from metrics.jsonl. trl's side is its trainer through the public constructor. Both get the same
model folder and the same `TrainingArguments` values.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

STEPS = 5
# What both sides read. Adam's first steps divide a gradient by its own size, so the rate is small
# enough for rounding not to grow, and large enough for the policy to leave its reference.
TRAINING: dict[str, Any] = {
    "learning_rate": 5e-4,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_steps": STEPS,
    "max_grad_norm": 1.0,
    "weight_decay": 0.01,
    "logging_steps": 1,
    "seed": 3,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
}
# Nothing follows the end-of-turn token, so both sides agree where an answer ends.
TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] + '<|im_end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
PAIRS = [  # prompt, chosen, rejected
    ("写一条酒店评论", "房间很干净，服务很好，下次还会来。", "太差了。"),
    ("Rate the food.", "The soup was hot and the bread was fresh.", "Bad, bad, bad."),
    ("早餐怎么样？", "早餐不错，种类也多。", "没有吃，不知道，随便写一点。"),
    ("How was the staff?", "Kind.", "They never answered the phone, not even once."),
    ("介绍一下位置", "离地铁站五分钟，很方便。", "不方便"),
    ("Write one line about the view", "You can see the sea from the bed.", "There is a wall."),
    ("价格合适吗？", "这个价格很合适。", "贵得离谱，再也不来了。"),
    ("Is it quiet?", "Yes, the rooms face the garden.", "No idea"),
    ("晚上吵不吵", "不吵，睡得很好。", "吵。"),
    ("Would you come back?", "Next year, with the children.", "Never again, the bed was broken."),
    ("写一条差评", "空调坏了，前台也没人管。", "好的"),
    ("Describe the room", "Small, bright and clean.", "It is a room with a door and a window."),
]
STRENGTHS = [0.5, 1.0, 0.25, 2.0, 0.0, 1.5, 0.75, 1.25, 0.1, 3.0, 0.6, 0.9]


def make_tokenizer(texts: list[str] | None = None, template: str = TEMPLATE):
    """Byte-level BPE over the texts (default: those above), pad and end-of-turn apart."""
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    core.train_from_iterator(
        texts or [text for pair in PAIRS for text in pair],
        tokenizers.trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=special,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=special[0], eos_token=special[2],
        additional_special_tokens=special[1:2], chat_template=template,
    )  # fmt: skip


def make_model(folder: Path, tokenizer: Any = None) -> Path:
    """A random Llama in float32 with its tokenizer, log-probs well away from uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        initializer_range=0.15, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(model: Path, folder: Path, moved: float = 0.0) -> Path:
    """A LoRA adapter as peft saves it; moved: standard deviation of B, 0 in a fresh one."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    adapted = peft.get_peft_model(
        load_lm(model),
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]),
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name and moved:
            torch.nn.init.normal_(parameter, std=moved)
    adapted.save_pretrained(folder)
    return folder


def load_lm(path: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def load_peft(model: Path, adapter: Path, lm: Any = None):
    """The model with an adapter to train. lm: another model of that body."""
    peft = pytest.importorskip("peft")
    return peft.PeftModel.from_pretrained(lm or load_lm(model), adapter, is_trainable=True)


def load_tokenizer(path: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def chat(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def preference_rows(
    pairs: list[tuple[str, str, str]] = PAIRS, margins: list[float] | None = None
) -> list[dict[str, Any]]:
    """Rows that both sides read: a prompt and two answers, as messages."""
    rows: list[dict[str, Any]] = []
    for prompt, chosen, rejected in pairs:
        answers = {"chosen": chat("assistant", chosen), "rejected": chat("assistant", rejected)}
        rows.append({"prompt": chat("user", prompt), **answers})
    for row, margin in zip(rows, margins or [], strict=False):
        row["margin"] = margin
    return rows


def our_config(method: str, model: Path, rows: list[dict[str, Any]], run_dir: Path, **sections):
    """`load_config` on a YAML in run_dir; sections are added to what every run has."""
    from align.config import load_config
    from align.run import use_device

    run_dir.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (run_dir / "data.jsonl").write_text(lines, encoding="utf-8")
    name = "sft" if method == "sft" else "preferences"
    document: dict[str, Any] = {
        "policy": {"path": str(model), "dtype": "float32"},
        "data": {name: str(run_dir / "data.jsonl"), "shuffle": False},
        "train": {**TRAINING, "output_dir": str(run_dir / "run"), "resume": "never"},
    }
    for section, values in sections.items():
        document[section] = {**document.get(section, {}), **values}
    file = run_dir / "run.yaml"
    file.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    config = load_config(method, ["--config", str(file)])
    use_device(config)
    return config


def our_run(
    method: str, model: Path, rows: list[dict[str, Any]], run_dir: Path, **sections
) -> list[dict[str, float]]:
    """Train with align and return the rows of metrics.jsonl that hold a training loss."""
    from align.run import TRAINERS

    config = our_config(method, model, rows, run_dir, **sections)
    importlib.import_module(TRAINERS[method]).train(config)
    lines = (run_dir / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row and "grad_norm" in row]


def trl_arguments(run_dir: Path, **options) -> dict[str, Any]:
    """TRAINING and what makes trl read the rows in order, in float32, without recomputation."""
    own = {"train_sampling_strategy": "sequential", "bf16": False, "gradient_checkpointing": False}
    return {**TRAINING, **own, "output_dir": str(run_dir / "trl"), "disable_tqdm": True, **options}


def trl_run(trainer: Any) -> list[dict[str, float]]:
    """Train and return the log rows of the steps."""
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row and "grad_norm" in row]


def our_groups(method: str, model: Path, rows: list[dict[str, Any]], run_dir: Path, **sections):
    """The training groups that align makes of the rows, as the stage itself builds them."""
    from align.policy_loading import load_tokenizer as load
    from align.train import examples

    config = our_config(method, model, rows, run_dir, **sections)
    tokenizer = load(str(model), config)
    if method == "sft":
        return examples.sft_groups(config, tokenizer)[0]
    return examples.preference_groups(config, tokenizer, keep_end_token=method == "reward")[0]


def group_rows(groups) -> list[tuple[list[int], list[int]]]:
    """(token ids, mask) of every candidate, prompt included."""
    return [
        (group.prompt_ids + ids, [0] * len(group.prompt_ids) + list(group.mask_of(k)))
        for group in groups
        for k, ids in enumerate(group.completions)
    ]


def dataset(rows: list[dict[str, Any]]):
    return pytest.importorskip("datasets").Dataset.from_list(rows)


def assert_equal_runs(
    ours: list[dict[str, float]], theirs: list[dict[str, float]], steps: int = STEPS
) -> None:
    """Loss and gradient norm of every step to 1e-4, and a policy that moved."""
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    assert len(ours) == steps
    for name in ("loss", "grad_norm"):
        found = [row[name] for row in ours]
        expected = [row[name] for row in theirs]
        assert found == pytest.approx(expected, rel=1e-4), name
        # A gradient of 0 or a model that stands still would pass without having shown anything.
        assert all(value > 0 for value in expected), name
        assert steps == 1 or len(set(expected)) > 1, name
