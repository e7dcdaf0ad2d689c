"""Adopting another base: its tokenizer with further tokens for the texts at hand, and its model.

A BPE goes on learning where it stopped: the texts are encoded with the base, and merges of
neighbouring tokens are appended to its own. Every old id keeps its meaning, a text without new
tokens is encoded as before, and undoing the new merges gives the base's ids on every text. A
unigram model gets the same pieces with scores from their counts; any other model whole words as
added tokens. What the base cannot write at all (a character, or a byte that its corpus never had)
comes first, the most frequent ahead.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config_errors import UserError
from align.data.tokenizer_learn_more import learn_merges
from align.data.tokenizer_parts import ALPHABET_SHARE, counted, sampled, too_large, word_pattern

if TYPE_CHECKING:
    from align.config_schema import Tokenizer

_CHECKED, _LONG = 1000, 10_000
# Files of tokenizers that say what tokenizer.json says, and would say it wrongly afterwards.
_STALE = ("vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "vocab.txt")


@dataclass
class Extension:
    """New tokens by id in order: their names, and the base's ids of the same text."""

    names: list[str] = field(default_factory=list)
    parts: dict[int, list[int]] = field(default_factory=dict)

    def add(self, name: str, number: int, parts: Iterable[int]) -> None:
        """Take in one token."""
        self.names.append(name)
        self.parts[number] = list(parts)


def extend_folder(
    texts: Iterable[str],
    settings: Tokenizer,
    target: Path,
    *,
    seed: int = 42,
    chat_template: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Any:
    """Write the extended tokenizer, and the model where the base holds one; return the base's.

    settings.extend: the base's folder or hub id; settings.vocab_size: entries afterwards. Special
    tokens and the chat template (unless one is given) are the base's. Raises UserError for a size
    that leaves nothing to add, or more than the texts can give (it names the limits).
    """
    from align.checkpoints import read_tokenizer
    from align.data.tokenizer_embeddings import check_base, extend_model

    base_path = str(settings.extend)
    check_base(base_path)
    try:
        base = read_tokenizer(base_path)
        backend = base.backend_tokenizer
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = f"has no fast tokenizer ({str(error).strip().splitlines()[0]})"
        fix = "Give a folder with tokenizer.json"
        raise UserError("tokenizer.extend", base_path, reason, fix) from error
    first: list[str] = []
    chosen = counted(sampled(texts, settings.sample_sentences, seed), say)
    words = count_words(backend, _remembered(chosen, first))
    tree, new = extend_backend(backend, words, settings)
    tokenizer = _save(base, tree, target, settings, new)
    # A model that ignores merges takes a whole word that it knows, however its merges would go.
    if tree["model"]["type"] == "BPE" and not tree["model"].get("ignore_merges"):
        _check_ids(base, tokenizer, new, first)
    if chat_template is not None:
        from align.chat import prepare_tokenizer

        prepare_tokenizer(tokenizer, chat_template)
        tokenizer.save_pretrained(target)
    if extend_model(base_path, target, new.parts, say) and say:
        _tell_of_auto(target, tokenizer, first, say)
    return base


def _remembered(texts: Iterable[str], first: list[str]) -> Iterable[str]:
    for text in texts:
        if len(first) < _CHECKED:
            first.append(text[:_LONG])
        yield text


def count_words(backend: Any, texts: Iterable[str]) -> Counter[str]:
    """Pre-tokens of the texts as the model sees them.

    Where the base has no pre-tokeniser, or one that cuts at most before spaces, they are cut into
    words as well: there is nothing else that keeps a merge inside a word.
    """
    from tokenizers import Regex, pre_tokenizers

    own = backend.pre_tokenizer
    kind = json.loads(backend.to_str())["pre_tokenizer"] or {}
    cuts = pre_tokenizers.Split(Regex(word_pattern()), behavior="isolated")
    coarse = kind.get("type") in (None, "Metaspace", "Split")
    counts: Counter[str] = Counter()
    for text in texts:
        plain = backend.normalizer.normalize_str(text) if backend.normalizer else text
        parts = [p for p, _ in own.pre_tokenize_str(plain)] if own else [plain]
        if coarse:  # spaces may be written U+2581 by now
            mark = "\u2581" if any("\u2581" in p for p in parts) else " "
            spaced = (p.replace("\u2581", " ") for p in parts)
            parts = [w.replace(" ", mark) for p in spaced for w, _ in cuts.pre_tokenize_str(p)]
        counts.update(parts)
    return counts


def extend_backend(
    backend: Any, words: Counter[str], settings: Tokenizer
) -> tuple[dict[str, Any], Extension]:
    """(tokenizer.json of the extended tokenizer, its new tokens); words: as `count_words`."""
    tree = json.loads(backend.to_str())
    taken = backend.get_vocab(with_added_tokens=True)
    size = max(taken.values()) + 1
    own = [s for s in (*settings.control_symbols, *settings.user_defined_symbols) if s not in taken]
    room = settings.vocab_size - size - len(own)
    if room <= 0:
        reason = f"is not above the {size + len(own)} entries that {settings.extend} has"
        fix = f"Use more than {size + len(own)}: it is the size after the extension"
        raise UserError("tokenizer.vocab_size", settings.vocab_size, reason, fix)
    new, model = Extension(), tree["model"]
    subword = not model.get("continuing_subword_prefix") and not model.get("end_of_word_suffix")
    if model["type"] == "Unigram" or (model["type"] == "BPE" and subword):
        _all_in_model(model, taken, size)
        _add_symbols(backend, tree, words, room, settings, new, size)
        _add_merges(tree, words, room - len(new.names), settings, new)
    else:
        _add_words(tree, backend, words, room, settings, new, size)
    if len(new.names) < room:
        note = f" at tokenizer.min_frequency={settings.min_frequency}"
        raise too_large(settings.vocab_size, size + len(own) + len(new.names), note)
    for name in own:
        number, special = size + len(new.names), name in settings.control_symbols
        new.add(name, number, backend.encode(name, add_special_tokens=False).ids)
        tree["added_tokens"].append(_added(name, number, special))
    return tree, new


def _added(name: str, number: int, special: bool = False) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": name, **flags, "special": special}


def _all_in_model(model: dict[str, Any], taken: dict[str, int], size: int) -> None:
    """Give the model the added tokens as well: a gap would shift their ids when it is read."""
    if model["type"] == "BPE":
        model["vocab"].update({n: i for n, i in taken.items() if n not in model["vocab"]})
        return
    lowest = min(score for _, score in model["vocab"])
    by_id = {i: name for name, i in taken.items()}
    for number in range(len(model["vocab"]), size):
        model["vocab"].append([by_id.get(number, f"<unused_{number}>"), lowest])


def _add_symbols(
    backend: Any, tree: dict[str, Any], words: Counter[str], room: int, settings: Tokenizer,
    new: Extension, size: int,
) -> None:  # fmt: skip
    """Single characters that the base lacks; for a byte-level base every byte of UTF-8."""
    model, known = tree["model"], backend.get_vocab(with_added_tokens=True)
    counts: Counter[str] = Counter()
    for word, times in words.items():
        for char in word:
            counts[char] += times
    lacking = {c: n for c, n in counts.items() if c not in known and n >= settings.min_frequency}
    ranked = sorted(lacking, key=lambda c: (-lacking[c], c))[: int(room * ALPHABET_SHARE)]
    if "ByteLevel" in json.dumps([tree["pre_tokenizer"], tree["decoder"]]):
        ranked += [c for c in utf8_symbols() if c not in known and c not in ranked]
    total = max(sum(counts.values()), 1)
    for char in ranked[:room]:
        number = size + len(new.names)
        new.add(char, number, [t.id for t in backend.model.tokenize(char)])
        if model["type"] == "BPE":
            model["vocab"][char] = number
        else:
            lowest = min(score for _, score in model["vocab"])
            model["vocab"].append([char, max(math.log(counts[char] / total), lowest)])


def utf8_symbols() -> list[str]:
    """Signs by which a byte-level model writes the bytes that occur in UTF-8, sorted."""
    from tokenizers import pre_tokenizers

    # One character of each first byte and each last byte.
    points = [*range(0x800), *range(0x800, 0xD800, 0x400), *range(0xE000, 0x110000, 0x400)]
    step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return sorted({c for p, _ in step.pre_tokenize_str("".join(map(chr, points))) for c in p})


def _add_merges(
    tree: dict[str, Any], words: Counter[str], room: int, settings: Tokenizer, new: Extension
) -> None:
    """Concatenations of the base's tokens that occur most, as merges or as scored pieces."""
    from tokenizers import Tokenizer as Backend

    if room <= 0:
        return
    model = tree["model"]
    step = Backend.from_str(json.dumps(tree))
    more = learn_merges(step, words, room, settings)
    first = max(step.get_vocab(with_added_tokens=True).values()) + 1
    # Ids below stand for the base's tokens or for the symbols added just before.
    flat = {number: [number] for number in range(first)} | new.parts
    for i, piece in enumerate(more.pieces):
        parts = [p for number in piece.parts for p in flat[number]]
        new.add(piece.name, first + i, parts)
        if model["type"] == "BPE":
            model["vocab"][piece.name] = first + i
        else:
            lowest = min(score for _, score in model["vocab"])
            scores = [model["vocab"][number][1] for number in piece.parts]
            better = max(math.log(max(piece.count, 1) / more.total), math.fsum(scores) + 2**-4)
            model["vocab"].append([piece.name, max(better, lowest)])
    if model["type"] == "BPE":
        model["merges"] = [*model["merges"], *map(list, more.merges)]


def _add_words(
    tree: dict[str, Any], backend: Any, words: Counter[str], room: int, settings: Tokenizer,
    new: Extension, size: int,
) -> None:  # fmt: skip
    """Whole words that the base writes with several tokens, as added tokens."""
    taken = backend.get_vocab(with_added_tokens=True)
    for word, times in sorted(words.items(), key=lambda pair: (-pair[1], pair[0])):
        if len(new.names) == room or times < settings.min_frequency:
            break
        parts = backend.encode(word, add_special_tokens=False).ids
        if len(parts) > 1 and word not in taken and len(word) <= settings.max_token_length:
            token = _added(word, size + len(new.names)) | {"single_word": True, "normalized": True}
            tree["added_tokens"].append(token)
            new.add(word, token["id"], parts)


def _save(
    base: Any, tree: dict[str, Any], target: Path, settings: Tokenizer, new: Extension
) -> Any:
    """Write the folder: everything the base's tokenizer says, with another tokenizer.json."""
    from align.checkpoints import read_tokenizer

    base.save_pretrained(target)
    for name in _STALE:
        (target / name).unlink(missing_ok=True)
    text = json.dumps(tree, ensure_ascii=False)
    (target / "tokenizer.json").write_text(text, encoding="utf-8")
    file = target / "tokenizer_config.json"
    saved = json.loads(file.read_text(encoding="utf-8"))
    # A class of the base's family would be built from the files that are gone.
    saved["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in ("vocab_file", "merges_file", "is_local", "local_files_only"):
        saved.pop(name, None)
    file.write_text(json.dumps(saved, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    tokenizer = read_tokenizer(target)
    vocab = tokenizer.get_vocab()
    wrong = [n for n, i in zip(new.names, new.parts, strict=True) if vocab.get(n) != i]
    if wrong or len(tokenizer) != settings.vocab_size:
        shown = f"{wrong[0]!r}" if wrong else f"{len(tokenizer)} entries"
        raise RuntimeError(f"the extended tokenizer is read back with other ids ({shown})")
    return tokenizer


def _tell_of_auto(
    target: Path, tokenizer: Any, texts: list[str], say: Callable[[str], None]
) -> None:
    """Say so where AutoTokenizer builds another tokenizer, as it does beside Qwen2 models.

    It then goes by the model's type (transformers 5.24); `align.checkpoints.read_tokenizer` does
    not, but a server may.
    """
    from transformers import AutoTokenizer

    auto = AutoTokenizer.from_pretrained(str(target), trust_remote_code=False)
    for text in texts:
        ids = [t(text, add_special_tokens=False, verbose=False) for t in (auto, tokenizer)]
        if ids[0]["input_ids"] != ids[1]["input_ids"]:
            kind = type(auto).__name__
            say(f"warning: AutoTokenizer reads {target.name} as {kind}, with other ids")
            return


def _check_ids(base: Any, tokenizer: Any, new: Extension, texts: list[str]) -> None:
    """Undoing the new merges must give the base's own ids."""
    unknown = base.unk_token_id if base.unk_token_id != base.eos_token_id else None
    for text in texts:
        before = base(text, add_special_tokens=False, verbose=False)["input_ids"]
        after = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        undone = [*itertools.chain.from_iterable(new.parts.get(i, [i]) for i in after)]
        if undone != before and unknown not in before:
            raise RuntimeError(f"the extended tokenizer changes old tokens of {text[:80]!r}")
