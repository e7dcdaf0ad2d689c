"""One model folder and one set of rows that both sides read as the same token ids.

Peers and align render text in different ways. So the rows are plain strings under a template that
only joins them, the tokenizer adds nothing of its own, and a row whose prompt and completion would
merge into one token at the border is left out (and counted). Rows are cut to the limit beforehand:
what is measured is then the work, not whose rule of cutting leaves less of it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
PAIRED = ("dpo", "orpo", "reward")


@dataclass
class Rows:
    """groups: (prompt, candidates best first), as text. tokens: their lengths, in ids."""

    groups: list[tuple[str, list[str]]] = field(default_factory=list)
    tokens: list[tuple[int, list[int]]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1


def model_folder(source: str, folder: Path, method: str, lora: bool) -> Any:
    """Copy a model with a plain tokenizer and a start for heads, adapters; return the tokenizer.

    Both sides begin with these numbers, so that their losses can be compared step by step.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from align.heads import init_head

    tokenizer = AutoTokenizer.from_pretrained(source)
    if tokenizer.eos_token is None:
        raise SystemExit(f"{source}: the tokenizer has no end-of-text token")
    if tokenizer.pad_token in (None, tokenizer.eos_token):
        tokenizer.pad_token = _unused(tokenizer)
    # Llama's fast tokenizer puts one before every text, and trl's ORPO before every prompt.
    tokenizer.bos_token, tokenizer.add_bos_token = None, False
    if method == "ppo":  # a token that is never drawn, so that no completion ends early
        tokenizer.eos_token = _unused(tokenizer, tokenizer.eos_token, tokenizer.pad_token)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    if method == "reward":
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            source, num_labels=1, dtype=torch.float32
        )
        init_head(model)
    else:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.bos_token_id = tokenizer.bos_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.bos_token_id = tokenizer.bos_token_id
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if lora:
        from peft import get_peft_model

        adapted = get_peft_model(model, lora_config(method))
        adapted.save_pretrained(folder / "adapter")
    return tokenizer


def lora_config(method: str) -> Any:
    """The adapter of both sides: r 16 on every linear layer but the head."""
    from peft import LoraConfig

    return LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear",
        exclude_modules=r".*(lm_head|score|classifier)",
        task_type="SEQ_CLS" if method == "reward" else "CAUSAL_LM",
    )  # fmt: skip


def _unused(tokenizer: Any, *more: str | None) -> str:
    """A special token that stands for nothing else; peers take what equals it for padding."""
    taken = (None, tokenizer.eos_token, tokenizer.bos_token, *more)
    listed = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    for token in [tokenizer.unk_token, *tokenizer.all_special_tokens, *reversed(listed)]:
        if token not in taken:
            return token
    raise SystemExit("the tokenizer has no special token that could be padding")


def read_rows(file: str, method: str, count: int, tokenizer: Any, options: Any) -> Rows:
    """The first `count` usable rows of a preference (or, for sft, instruction) file.

    options: max_length, candidates (answers a prompt; more than the file has are borrowed from the
    next prompts) and prompt_repeat (the prompt so many times over, for long prompts).
    """
    rows = Rows()
    source = _groups(file, method, options.candidates)
    for prompt, answers in source:
        if len(rows.groups) == count:
            break
        fitted = _fit(tokenizer, prompt * options.prompt_repeat, answers, options.max_length)
        if isinstance(fitted, str):
            rows.drop(fitted)
            continue
        rows.groups.append(fitted)
        lengths = [len(tokenizer(c).input_ids) + 1 for c in fitted[1]]
        rows.tokens.append((len(tokenizer(fitted[0]).input_ids), lengths))
    if not rows.groups:
        raise SystemExit(f"{file}: no row can be used ({rows.dropped})")
    return rows


def _groups(file: str, method: str, candidates: int) -> list[tuple[str, list[str]]]:
    if method == "sft" and not _has_pairs(file):
        from align.data.sft import load_sft

        examples = load_sft(file)[0]
        return [
            ("\n".join(m.content for m in e.messages[:-1]) + "\n", [e.messages[-1].content])
            for e in examples
        ]
    from align.data.pairs import load_preferences
    from reward_models.preferences import targets

    found = []
    for group in load_preferences(file)[0]:
        pairs = targets(group)
        wins = dict.fromkeys(range(len(group.candidates)), 0.0)
        for pair in pairs:
            wins[pair.a] += pair.target
            wins[pair.b] += 1 - pair.target
        order = sorted(wins, key=lambda i: -wins[i])
        prompt = "\n".join(m.content for m in group.prompt) + "\n"
        found.append((prompt, [group.candidates[i].text for i in order]))
    if method == "reward" and candidates > 2:
        found = [
            (prompt, [a for _, more in found[i : i + candidates] for a in more][:candidates])
            for i, (prompt, _) in enumerate(found)
        ]
        return [(p, a) for p, a in found if len(a) == candidates]
    return [(prompt, answers[:2]) for prompt, answers in found]


def _has_pairs(file: str) -> bool:
    """Whether the records are preferences; their preferred answer serves as an example."""
    from align.config_errors import UserError
    from align.data.pairs import load_preferences

    try:
        return bool(load_preferences(file)[0])
    except UserError:
        return False


def _fit(
    tokenizer: Any, prompt: str, answers: list[str], limit: int
) -> tuple[str, list[str]] | str:
    """Prompt and answers cut to `limit` ids together, the answers first; or why not."""
    ids = tokenizer(prompt).input_ids
    if len(ids) > limit - 32:
        prompt = tokenizer.decode(ids[-(limit - 32) :])
        ids = tokenizer(prompt).input_ids
    room = limit - len(ids) - 1
    cut = []
    for answer in answers:
        tokens = tokenizer(answer).input_ids
        if len(tokens) > room:
            answer = tokenizer.decode(tokens[:room])
            tokens = tokenizer(answer).input_ids
        if not tokens or len(tokens) > room:
            return "does not fit"
        if tokenizer(prompt + answer).input_ids != ids + tokens:
            return "merges at the border"
        cut.append(answer)
    return (prompt, cut) if len(set(cut)) == len(cut) else "identical"


def write_prompts(options: Any, tokenizer: Any, folder: Path, count: int) -> None:
    """Prompts of exactly options.prompt_tokens ids, cut from the file's own and made by repeating.

    ours.jsonl has the text, peer.jsonl the ids.
    """
    size, found = options.prompt_tokens, {}
    for prompt, _ in _groups(options.data, "dpo", 2):
        ids = tokenizer(prompt * 8).input_ids[:size]
        text = tokenizer.decode(ids)
        if len(ids) == size and tokenizer(text).input_ids == ids:
            found[text] = ids
        if len(found) == count:
            break
    if not found:
        raise SystemExit(f"{options.data}: no prompt gives {size} tokens")
    texts = list(found)
    chosen = [texts[i % len(texts)] for i in range(count)]
    lines = {
        "ours": [{"prompt": text} for text in chosen],
        "peer": [{"input_ids": found[text]} for text in chosen],
    }
    for name, rows in lines.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def write_rows(rows: Rows, method: str, folder: Path) -> None:
    """ours.jsonl and peer.jsonl: the same texts in the form that each side reads.

    A ranked group is one row of ours, and all its pairs, one after the other, for the peer.
    """
    ours, peer = [], []
    for prompt, answers in rows.groups:
        if method == "sft":
            turns = (("user", prompt), ("assistant", answers[0]))
            ours.append({"messages": [{"role": r, "content": c} for r, c in turns]})
            peer.append({"prompt": prompt, "completion": answers[0]})
            continue
        pairs = [(a, b) for a in range(len(answers)) for b in range(a + 1, len(answers))]
        ours.append(
            {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
            if len(answers) == 2
            else {
                "prompt": prompt,
                "candidates": [{"id": str(i), "content": text} for i, text in enumerate(answers)],
                "judgements": [
                    {"kind": "rank", "value": {str(i): i + 1 for i in range(len(answers))}}
                ],
            }
        )
        peer += [{"prompt": prompt, "chosen": answers[a], "rejected": answers[b]} for a, b in pairs]
    for name, lines in (("ours", ours), ("peer", peer)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
