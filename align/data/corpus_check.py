"""A look at the corpora of pre-training before anything is loaded or written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.config_errors import UserError
from align.data.corpus import iter_texts, readable
from align.data.token_shards import is_token_folder

if TYPE_CHECKING:
    from align.config import Config


def check_corpus(config: Config) -> None:
    """Raise UserError for a corpus that can be seen to hold too little, before anything is written.

    No tokenizer is loaded: a text has at most a token a byte, and its EOS. What passes here and has
    too few tokens all the same is refused when it has been tokenised.
    """
    block = config.pretrain.block_size
    for path in config.texts:
        if is_token_folder(path):
            continue  # its own reader knows what it holds
        most = 0
        with readable(path, "data.text"):
            for text in iter_texts(path):
                most += len(text.encode("utf-8", "surrogatepass")) + 1
                if most >= block:
                    break
        if not most:
            raise UserError("data.text", path, "holds no text", "Give .txt or .jsonl with {text}")
        if most < block:
            reason = f"has at most {most} tokens, fewer than a row of pretrain.block_size={block}"
            raise UserError("data.text", path, reason, "Lower block_size, or give more text")
