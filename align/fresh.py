"""A model from nothing: random weights shaped by the `pretrain` section, and its tokenizer."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config_pretrain import SHAPE
from align.files import fingerprint, whole_folder

if TYPE_CHECKING:
    from align.config import Config

MASK_TOKEN = "<|mask|>"
_TEXTS_READ = 20_000


def fresh_config(config: Config, vocabulary: int) -> Any:
    """Return the transformers config that the `pretrain` section describes."""
    from transformers import AutoConfig

    p = config.pretrain
    positions = _positions(config)
    if p.arch == "bert":
        return AutoConfig.for_model(
            "bert", vocab_size=vocabulary, hidden_size=p.n_embd, num_hidden_layers=p.n_layer,
            num_attention_heads=p.n_head, intermediate_size=p.intermediate_size or 4 * p.n_embd,
            max_position_embeddings=positions,
        )  # fmt: skip
    if p.arch == "gpt2":
        return AutoConfig.for_model(
            "gpt2", vocab_size=vocabulary, n_embd=p.n_embd, n_layer=p.n_layer, n_head=p.n_head,
            n_inner=p.intermediate_size, n_positions=positions,
        )  # fmt: skip
    return AutoConfig.for_model(
        p.arch, vocab_size=vocabulary, hidden_size=p.n_embd, num_hidden_layers=p.n_layer,
        num_attention_heads=p.n_head, num_key_value_heads=p.n_kv_head or p.n_head,
        intermediate_size=p.intermediate_size or 8 * p.n_embd // 3, head_dim=p.n_embd // p.n_head,
        max_position_embeddings=max(positions, 2048), tie_word_embeddings=True,
    )  # fmt: skip


def _positions(config: Config) -> int:
    """Places that a model from nothing has: a row's, and for other methods an example's.

    Learned positions that pre-training never shows would stay random.
    """
    block = config.pretrain.block_size
    return block if config.method == "pretrain" else max(block, config.data.max_length)


def made_once(folder: Path, source: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """Fill `folder` with `make` unless it was made from the same `source`; return it.

    A run that starts again in its directory finds its own model there, never that of other
    settings.
    """
    text = json.dumps(source, sort_keys=True, ensure_ascii=False, indent=2) + "\n"
    note = folder / "made_from.json"
    if note.is_file() and note.read_text(encoding="utf-8") == text:
        return folder
    with whole_folder(folder) as temporary:
        make(temporary)
        (temporary / note.name).write_text(text, encoding="utf-8")
    return folder


def make_fresh(config: Config, folder: Path) -> Path:
    """Write a random model and its tokenizer to `folder`, unless they are there; return it.

    The weights depend on train.seed and the shape alone. Call on one rank.
    """
    seed, p = config.train.args.get("seed", 42), config.pretrain
    source = {
        "seed": seed,
        "pretrain": {name: getattr(p, name) for name in (*SHAPE, "tokenizer")},
        "tokenizer": fingerprint(p.tokenizer) if p.tokenizer else None,
        "texts": None if p.tokenizer else [fingerprint(path) for path in _text_paths(config)],
        "settings": None if p.tokenizer else dataclasses.asdict(config.tokenizer),
        "chat_template": config.data.chat_template,
        "positions": _positions(config),
    }
    return made_once(folder, source, lambda target: _write_fresh(config, target, seed))


def _write_fresh(config: Config, folder: Path, seed: int) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, set_seed

    tokenizer = fresh_tokenizer(config)
    masked = config.pretrain.arch == "bert"
    if masked:
        add_mask_token(tokenizer)
    shape = fresh_config(config, len(tokenizer))
    for name, token in (("eos", tokenizer.eos_token_id), ("pad", tokenizer.pad_token_id)):
        setattr(shape, f"{name}_token_id", token)
    shape.bos_token_id = tokenizer.bos_token_id
    set_seed(seed)
    kind = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    kind.from_config(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def add_mask_token(tokenizer: Any) -> None:
    """Give the tokenizer a mask token unless it has one."""
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": MASK_TOKEN})


def fresh_tokenizer(config: Config) -> Any:
    """Return pretrain.tokenizer, or one trained on the texts that the method reads."""
    from transformers import AutoTokenizer

    from align.data.tokenizer import learn_tokenizer
    from align.model_safety import code_options

    if path := config.pretrain.tokenizer:
        return AutoTokenizer.from_pretrained(path, **code_options(path, "pretrain.tokenizer"))
    texts = itertools.islice(training_texts(config), _TEXTS_READ)
    learned = learn_tokenizer(
        texts,
        config.tokenizer,
        seed=config.train.args.get("seed", 42),
        chat_template=config.data.chat_template,
    )
    return learned.tokenizer


def training_texts(config: Config) -> Iterable[str]:
    """Yield data.text's paragraphs; without it, every string in the method's own data file."""
    from align.json_text import texts_in
    from align.jsonl import read_rows

    if config.data.text:
        # Of several corpora by turns: the first texts of all, not all of the first.
        found = [iter(paragraphs(path, "data.text")) for path in config.texts]
        yield from (t for texts in itertools.zip_longest(*found) for t in texts if t is not None)
        return
    for path in _text_paths(config):
        for _, row in read_rows(path):
            yield from texts_in(row)


def paragraphs(path: str, field: str, split: str = "train") -> Iterable[str]:
    """Yield the paragraphs of a text file or folder; UserError about `field` on errors.

    split: which shards of a cleaned corpus.
    """
    from align.data.corpus import iter_texts, readable

    with readable(path, field):
        yield from iter_texts(path, split)


def _text_paths(config: Config) -> list[str]:
    from align.config_checks import NEEDED

    if config.texts:
        return [*config.texts]
    path = config.prompts_path if config.method == "ppo" else None
    return [path or getattr(config.data, NEEDED[config.method])]
