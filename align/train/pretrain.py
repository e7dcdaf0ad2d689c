"""Pre-training: all paragraphs end to end, EOS between them, cut into rows of block_size tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from align.config_errors import UserError
from align.data.corpus import iter_texts
from align.groups import TokenGroup
from align.jsonl import Counts, RecordError
from align.policy import Policy
from align.train.runner import callbacks, run_training, training_arguments, write_counts
from align.train.sft import TokenTrainer

if TYPE_CHECKING:
    from align.config import Config

_TEXTS_AT_ONCE = 1000


class Blocks(Sequence[TokenGroup]):
    """Rows of at most `block` tokens; each but the first token of the stream is predicted once.

    Rows overlap by one token: the last of a row is the first context of the next. Attention crosses
    the border between two texts of a row, as in GPT-2: the EOS between them is there to be learned.
    """

    def __init__(self, ids: np.ndarray, block: int) -> None:
        self.ids, self.block = ids, block

    def __len__(self) -> int:
        """Number of rows."""
        return -(-(len(self.ids) - 1) // (self.block - 1))

    def __getitem__(self, index: Any) -> Any:
        """Row `index` as a group of one token of context and one completion."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = index * (self.block - 1)
        row = self.ids[start : start + self.block].tolist()
        return TokenGroup(row[:1], [row[1:]])


def stream(texts: Iterable[str], tokenizer: Any) -> tuple[np.ndarray, int]:
    """(token ids of all texts, EOS after each; number of texts)."""
    parts: list[np.ndarray] = []
    eos, count, batch = tokenizer.eos_token_id, 0, []

    def flush() -> None:
        for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]:
            parts.append(np.array([*ids, eos], dtype=np.int32))
        batch.clear()

    for text in texts:
        batch.append(text)
        count += 1
        if len(batch) == _TEXTS_AT_ONCE:
            flush()
    if batch:
        flush()
    return (np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)), count


def load_blocks(path: str, tokenizer: Any, block: int, field: str) -> tuple[Blocks, Counts]:
    """Rows of a text file or folder; UserError when it cannot be read or holds under two tokens."""
    try:
        ids, count = stream(iter_texts(path), tokenizer)
    except RecordError as error:
        raise UserError(field, path, f"cannot be read: {error}", "Correct the file") from None
    if len(ids) < 3:
        raise UserError(field, path, "holds no text", "Give .txt or .jsonl with {text}")
    return Blocks(ids, block), Counts(str(path), count)


def train(config: Config) -> dict[str, float]:
    """Pre-train on data.text and return the last figures."""
    args = training_arguments(config)
    policy = Policy.load(config)
    if policy.tokenizer.eos_token_id is None:
        raise UserError("pretrain.tokenizer", policy.path, "has no EOS token", "Add one")
    positions = getattr(policy.module.config, "max_position_embeddings", None)
    block = config.pretrain.block_size
    if positions and block > positions:
        reason = f"is above the {positions} positions of {policy.path}"
        raise UserError("pretrain.block_size", block, reason, f"Use at most {positions}")
    assert config.data.text is not None
    blocks, counts = load_blocks(config.data.text, policy.tokenizer, block, "data.text")
    kept = [counts]
    held_out: Sequence[TokenGroup] = []
    if config.data.validation:
        held_out, more = load_blocks(
            config.data.validation, policy.tokenizer, block, "data.validation"
        )
        kept.append(more)
    elif config.data.validation_fraction and len(blocks) > 1:
        # The last rows: neighbours share a token at most.
        held = max(1, round(len(blocks) * config.data.validation_fraction))
        cut = (len(blocks) - held) * (block - 1)
        held_out, blocks = Blocks(blocks.ids[cut:], block), Blocks(blocks.ids[: cut + 1], block)
    write_counts(config, kept)
    trainer = TokenTrainer(policy, config, args, blocks, held_out, callbacks(config))
    return run_training(trainer, config)
