"""The tokenizer, its template and the generation config, as servers of several kinds read them.

What is changed is only what a server needs and training did not: a pad token that ends nothing, a
template that opens the answer itself, and files that readers older than transformers 5 understand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from align.files import read_object, write_atomic

# Marks for training masks alone. minijinja (TGI) and others do not know the statement; a comment
# in its place trims the same white space.
_GENERATION = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
_PAD_NAMES = ("<pad>", "<|pad|>", "[PAD]", "<PAD>", "<|padding|>", "<|finetune_right_pad_id|>")
_SPARE = re.compile(r"pad\b|_pad|reserved|unused|placeholder|extra_id|endoftext", re.IGNORECASE)
_PROBE = [
    {"role": "system", "content": "s"}, {"role": "user", "content": "u"},
    {"role": "assistant", "content": "a"}, {"role": "user", "content": "v"},
]  # fmt: skip
NEW_PAD = "<|pad|>"


def serving_tokenizer(tokenizer: Any, rows: int) -> tuple[Any, list[str]]:
    """A copy that servers can use, and what about it differs from training, in words.

    rows: of the embedding. Message texts get the same ids as before.
    """
    import copy

    served, notes = copy.deepcopy(tokenizer), []
    if served.chat_template:
        served.chat_template = _finished_template(served)
    stops = stops_of(tokenizer)
    if served.pad_token_id is None or served.pad_token_id in stops:
        notes.append(_set_pad(served, stops, rows))
    return served, notes


def stops_of(tokenizer: Any) -> list[int]:
    """Ids that end an answer: the template's end of turn and EOS."""
    from align.chat import stop_ids

    return list(stop_ids(tokenizer)) if tokenizer.chat_template else [tokenizer.eos_token_id]


def set_generation_config(model: Any, tokenizer: Any) -> None:
    """Give a server what it must know to stop: every stop token, pad, and plain sampling."""
    from transformers import GenerationConfig

    stops = stops_of(tokenizer)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=stops if len(stops) > 1 else stops[0],
        do_sample=True,
        # The policy was trained on its own distribution: no hidden truncation of it.
        top_k=0,
        top_p=1.0,
        temperature=1.0,
    )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, name, getattr(tokenizer, name))


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer so that readers before transformers 5 understand it too.

    transformers 5 writes the template to chat_template.jinja alone, which TGI does not look for
    (https://github.com/huggingface/text-generation-inference/issues/3247); a class name that
    transformers 4 does not have; and a list where it expects a mapping. The same template is put
    into tokenizer_config.json as well, and the names of transformers 4 are used, which 5 reads.
    Remove when no maintained server reads with transformers 4 and TGI reads the jinja file.
    """
    tokenizer.save_pretrained(str(folder))
    file = folder / "tokenizer_config.json"
    said = read_object(file)
    if tokenizer.chat_template:
        said["chat_template"] = tokenizer.chat_template
    if said.get("tokenizer_class") == "TokenizersBackend":
        said["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(said.get("extra_special_tokens"), list):
        said["additional_special_tokens"] = said.pop("extra_special_tokens")
    for name in ("is_local", "local_files_only"):  # how it was loaded here, not what it is
        said.pop(name, None)
    write_atomic(file, json.dumps(said, ensure_ascii=False, indent=2, sort_keys=True) + "\n")


def _finished_template(tokenizer: Any) -> str:
    """The template without training marks, with the header that training adds to a prompt."""
    from align.chat_turns import turn_of

    template = _GENERATION.sub(r"{#\1 \2generation \3#}", tokenizer.chat_template)
    header = turn_of(tokenizer).header
    if header:
        text = json.dumps(header, ensure_ascii=False)
        template += f"{{%- if add_generation_prompt -%}}{{{{- {text} -}}}}{{%- endif -%}}"
    return template


def _set_pad(tokenizer: Any, stops: list[int], rows: int) -> str:
    """Choose a pad token that is no stop token; returns what was done, in words.

    In this order: a special token that nothing uses; a new token where the embedding has a row
    without one; else the stop token stays. Never BOS: a caller without an attention mask would
    have the first token of every prompt masked.
    """
    was = tokenizer.pad_token
    why = f"was {was}, which ends an answer" if was else "was missing"
    found = _unused(tokenizer, stops)
    if found is not None:
        tokenizer.pad_token = found
        return f"pad token {found} (id {tokenizer.pad_token_id}): it {why}"
    if len(tokenizer) < rows and NEW_PAD not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"pad_token": NEW_PAD})
        if tokenizer.pad_token_id < rows:
            return f"pad token {NEW_PAD} on unused row {tokenizer.pad_token_id}: it {why}"
    tokenizer.pad_token = was or tokenizer.eos_token
    return (
        f"pad token {tokenizer.pad_token} ends an answer too: the vocabulary has no unused special "
        "token and the embedding no spare row. Pass an attention mask with padded batches"
    )


def _unused(tokenizer: Any, stops: list[int]) -> str | None:
    """The special token to pad with: no stop, not BOS, not in the template, never for a text."""
    added = {str(t): i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    taken = {*stops, tokenizer.bos_token_id, *_template_ids(tokenizer)}
    if _emits_unknown(tokenizer):
        taken.add(tokenizer.unk_token_id)
    free = [name for name, i in added.items() if i not in taken]
    named = [name for name in _PAD_NAMES if name in free]
    spare = [name for name in free if _SPARE.search(name) or name == tokenizer.unk_token]
    return next(iter([*named, *spare]), None)


def _template_ids(tokenizer: Any) -> set[int]:
    from align.chat_turns import encode, render_text
    from align.records import RecordError

    if not tokenizer.chat_template:
        return set()
    found: set[int] = set()
    for turns in (_PROBE, _PROBE[1:2]):
        try:
            found |= set(encode(tokenizer, render_text(tokenizer, turns, header=True)))
        except RecordError:
            continue
    return found


def _emits_unknown(tokenizer: Any) -> bool:
    """Whether a text can hold the unknown token: not where every byte has one of its own."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if tokenizer.unk_token_id is None or backend is None:
        return tokenizer.unk_token_id is not None
    model = json.loads(backend.to_str())["model"]
    if model.get("byte_fallback"):
        return False
    return model.get("unk_token") is not None or model.get("unk_id") is not None
