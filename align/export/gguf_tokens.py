"""Which tokenizers llama.cpp reads with the same ids, what the converter is given, and the proof.

llama.cpp has tokenizers of its own and a list of known ones. A GGUF file with another tokenizer is
read without complaint and cut into other ids, so every file is compared with the model's tokenizer
before it is kept.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.config_errors import Failed, UserError
from align.export.gguf_server import Asked
from align.files import read_object

# What is compared: both languages, digits, spaces, rare characters, emoji, code. U+2581 and the
# spelled-out names of unknown or byte tokens are left out: sentencepiece reads them otherwise.
TEXTS = (
    "The quick brown fox jumps over 13 lazy dogs, doesn't it?", "今天天气很好，我们去公园散步。",
    "价格是 3.14 元（约合 $0.44），2026年11月30日。",
    "  two  spaces\n\n\tand tabs\n", " leading", "trailing ",
    "def f(x):\n    return x**2  # 平方\n", "罕见字：𠮷龘㐂",
    "\U0001f600 \U0001f468\u200d\U0001f469 ok",
    "中文English混排123，测试！",
    "ÀÉÎõü ß Ελληνικά русский 한국어 العربية हिन्दी", "!!!???......------",
    "a", "字", "0", "\n", "哈哈哈哈哈哈 0000000 aaaaaaa", "I'll we've THEY'RE don't",
)  # fmt: skip
CHATS = (
    [{"role": "user", "content": "你好，world 3.14"}],
    [{"role": "user", "content": "Write a poem."}, {"role": "assistant", "content": "床前明月光"},
     {"role": "user", "content": "再写一首\n\n谢谢"}],
)  # fmt: skip


def kind_of(folder: Path) -> str:
    """How tokenizer.json cuts text: bytes, pieces (sentencepiece's BPE), own, or unigram, other.

    own: a regular expression of ours cuts first, which llama.cpp does not know.
    """
    found = read_object(folder / "tokenizer.json")
    model = found.get("model") or {}
    before = json.dumps(found.get("pre_tokenizer") or {}, ensure_ascii=False)
    if model.get("type") == "Unigram":
        return "unigram"
    if model.get("type") != "BPE":
        return "other"
    if r"\p{Han}+|" in before:
        return "own"
    if "ByteLevel" in before:
        return "bytes"
    if model.get("byte_fallback") and not found.get("pre_tokenizer"):
        return "pieces"
    return "other"


def check(folder: Path) -> None:
    """UserError for a tokenizer that llama.cpp would read with other ids."""
    if not (folder / "tokenizer.json").is_file():
        return  # an adapter without one; its base's is checked once it lies beside the weights
    reasons = {
        "unigram": "cannot be made: llama.cpp has no unigram tokenizer that gives this one's ids",
        "own": "cannot be made: the tokenizer (byte_bpe or char_bpe of recipes/train_tokenizer.py) "
        "cuts text by a pattern that llama.cpp does not know, and would get other ids",
        "other": "cannot be made: the tokenizer is none of those that llama.cpp has",
    }
    reason = reasons.get(kind_of(folder))
    if reason:
        fix = "Use another form, or train with tokenizer.kind: bpe, whose ids are kept"
        raise UserError("--to", "gguf", reason, fix)


def folder_for_converter(source: Path, folder: Path) -> Path:
    """A folder of links to `source` that the converter reads with the right tokenizer.

    For sentencepiece's BPE a tokenizer.model is made from tokenizer.json: without one the converter
    writes no scores, and llama.cpp merges by scores. It is also told to put neither a space nor a
    BOS before a text where this tokenizer puts none.
    """
    folder.mkdir(parents=True)
    for file in source.iterdir():
        os.symlink(file.resolve(), folder / file.name)
    found = read_object(source / "tokenizer.json")
    if kind_of(source) != "pieces" or found.get("normalizer"):
        return folder
    config = folder / "tokenizer_config.json"
    told = read_object(source / config.name)
    told |= {"add_prefix_space": False, "add_bos_token": False, "add_eos_token": False}
    config.unlink(missing_ok=True)
    config.write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer.model").unlink(missing_ok=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(found))
    return folder


def sentencepiece_model(found: dict[str, Any]) -> bytes:
    """A sentencepiece BPE with the pieces of a tokenizer.json; a piece's score is minus its id.

    Needs sentencepiece and protobuf. The pieces of align.data.tokenizer_sentencepiece are numbered
    by falling score, so that minus the id orders the merges as their scores did.
    """
    pb: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    types = pb.ModelProto.SentencePiece
    added = {entry["id"]: entry for entry in found.get("added_tokens") or []}
    unknown = found["model"].get("unk_token")
    model = pb.ModelProto()
    model.trainer_spec.model_type = pb.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    vocab = dict(found["model"]["vocab"]) | {e["content"]: i for i, e in added.items()}
    for name, number in sorted(vocab.items(), key=lambda item: item[1]):
        if number != len(model.pieces):
            raise UserError("--to", "gguf", "cannot be made: the tokenizer's ids have gaps", "")
        piece = model.pieces.add()
        piece.piece, piece.score = name.replace(" ", "▁"), -float(number)
        if name == unknown:
            piece.type = types.UNKNOWN
        elif number in added:
            piece.type = types.CONTROL if added[number]["special"] else types.USER_DEFINED
        elif len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            piece.type = types.BYTE
        else:
            piece.type = types.NORMAL
    return model.SerializeToString()


def check_ids(asked: Asked, tokenizer: Any) -> int:
    """How many texts and chats were compared; Failed for one whose ids differ."""
    from align.chat import render_prompt

    for text in TEXTS:
        wanted = tokenizer(text, add_special_tokens=False)["input_ids"]
        _same(text, wanted, asked.ids(text))
    if not tokenizer.chat_template:
        return len(TEXTS)
    for messages in CHATS:
        wanted = render_prompt(tokenizer, messages)
        _same(messages[-1]["content"], wanted, asked.rendered(messages))
    return len(TEXTS) + len(CHATS)


def _same(text: str, wanted: Sequence[int], got: Sequence[int]) -> None:
    if list(wanted) != list(got):
        raise Failed(
            f"gguf: llama.cpp reads {text[:40]!r} as {list(got)[:12]}, the model's tokenizer as "
            f"{list(wanted)[:12]}; nothing was written"
        )


def model_file(names: Sequence[str], tokenizer: Any, stops: Sequence[int]) -> str:
    """Ollama's Modelfile of the first of the files; the others are named in comments.

    Ollama reads no Jinja. Its TEMPLATE is written for templates that render as ChatML, found by
    rendering; for others a comment says what is missing.
    """
    lines = [f"FROM ./{names[0]}", *(f"# FROM ./{name}" for name in names[1:])]
    lines += [f"PARAMETER stop {json.dumps(t)}" for t in tokenizer.convert_ids_to_tokens(stops)]
    # The policy was trained on its own distribution: Ollama's defaults would cut it.
    lines += ["PARAMETER temperature 1", "PARAMETER top_k 0", "PARAMETER top_p 1"]
    lines += ["PARAMETER min_p 0", "PARAMETER repeat_penalty 1"]
    system = chatml_system(tokenizer)
    if system is None:
        lines.append("# No TEMPLATE: this chat template is not ChatML. Without one Ollama sends "
                     "prompts as they are; llama-server --jinja renders them right.")  # fmt: skip
    else:
        lines.append(
            'TEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n'
            '{{ end }}<|im_start|>assistant\n"""'
        )
        lines += [f'SYSTEM """{system}"""'] if system else []
    return "\n".join(lines) + "\n"


def chatml_system(tokenizer: Any) -> str | None:
    """The system text that a ChatML template puts first by itself; None for another template."""
    if not tokenizer.chat_template:
        return None
    turns = [
        {"role": "user", "content": "甲"}, {"role": "assistant", "content": "乙"},
        {"role": "user", "content": "丙"},
    ]  # fmt: skip
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    plain = "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in turns)
    head, found, tail = text.partition(plain)
    if not found or tail != "<|im_start|>assistant\n":
        return None
    start, end = "<|im_start|>system\n", "<|im_end|>\n"
    if not head:
        return ""
    is_system = head.startswith(start) and head.endswith(end) and head.count(start) == 1
    return head.removeprefix(start).removesuffix(end) if is_system else None


def drop(folder: Path) -> None:
    """Remove a folder of links, not what they point to."""
    shutil.rmtree(folder, ignore_errors=True)
