"""From data.text to rows: token shards or a stream of each corpus, weighted; what is held out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from align import launch_env
from align.config_errors import UserError
from align.data import token_shards
from align.data.corpus import iter_texts, readable
from align.data.splits import assign
from align.data.token_rows import (
    CorpusRows,
    HeldOutRows,
    MemoryTokens,
    StreamRows,
    TokenView,
    row_groups,
)
from align.data.token_shards import TokenShards, is_token_folder
from align.files import fingerprint
from align.groups import TokenGroup
from align.jsonl import Counts
from align.tokenizer_identity import tokenizer_fingerprint
from align.train import token_cache
from align.train.batches import FILLER, StepBatches, filler
from align.train.resume import batch_of

if TYPE_CHECKING:
    from align.config import Config

Key = tuple[int, int]
"""(corpus, row): row k of a corpus, counted over all passes."""

_HELD_OUT_TEXTS = 1000
_LOOKED_AT = 200
_READ_WHOLE = 1 << 26  # bytes, as in align.files.fingerprint


class Mixture(Dataset):
    """Rows of several corpora. sources: CorpusRows or StreamRows; rows: of an epoch.

    Of any number of rows from the start of an epoch each corpus has its share, to less than a row
    per corpus: the next row is that of the corpus which is furthest behind. A corpus that is used
    up starts its next pass.
    """

    def __init__(
        self, sources: Sequence[Any], weights: Sequence[float], rows: int, *, eos: int,
        masked: bool,
    ) -> None:  # fmt: skip
        self.sources, self.rows, self.eos, self.masked = sources, rows, eos, masked
        self.draws = False  # whether groups say which row they are
        self.shares = [weight / sum(weights) for weight in weights]

    @cached_property
    def _an_epoch(self) -> list[int]:
        """Rows of each corpus in an epoch."""
        turns = np.fromiter(islice(self._turns(), self.rows), dtype=np.int64, count=self.rows)
        return np.bincount(turns, minlength=len(self.sources)).tolist()

    def __len__(self) -> int:
        """Rows of an epoch."""
        return self.rows

    def _turns(self) -> Iterator[int]:
        """Whose turn it is, row by row; the first of those that are equally far behind."""
        taken = [0] * len(self.shares)
        for number in count(1):
            behind = [share * number - t for share, t in zip(self.shares, taken, strict=True)]
            source = behind.index(max(behind))
            taken[source] += 1
            yield source

    def keys(self, epoch: int) -> Iterator[Key]:
        """The rows of an epoch in their order."""
        if len(self.sources) == 1:
            yield from ((0, epoch * self.rows + i) for i in range(self.rows))
            return
        places = [epoch * n for n in self._an_epoch] if epoch else [0] * len(self.sources)
        for source in islice(self._turns(), self.rows):
            yield source, places[source]
            places[source] += 1

    def __getitem__(self, key: Key | int) -> list[TokenGroup]:
        """The groups of a row; FILLER gives one without loss."""
        if isinstance(key, int):
            return [filler()]
        source, place = key
        row = self.sources[source].row(place)
        groups = row_groups(row, self.eos, self.masked)
        for group in groups if self.draws else ():
            group.extras["draw"] = [float(place)]
        return groups


class MixtureBatches(StepBatches):
    """`StepBatches` of a mixture's keys."""

    def __init__(self, mixture: Mixture, *args: Any, **kwargs: Any) -> None:
        super().__init__(len(mixture), *args, shuffle=False, seed=0, **kwargs)
        self.mixture = mixture

    def __iter__(self) -> Iterator[list[Any]]:
        """Yield the epoch's micro-batches."""
        keys: Iterator[Any] = chain(self.mixture.keys(self.epoch))
        for _ in range(len(self)):
            for rank in range(self.world):
                part: list[Any] = list(islice(keys, self.micro))
                if rank == self.rank:
                    yield part + [FILLER] * (self.micro - len(part))


@dataclass
class Loaded:
    """What pre-training reads. held_out: may be empty. text_tokens: mean length of a text."""

    train: Mixture
    held_out: Sequence[TokenGroup]
    counts: list[Counts]
    text_tokens: float


def load(config: Config, tokenizer: Any) -> Loaded:
    """Open the corpora of data.text and data.validation; token shards are built where they miss.

    Raises UserError for a corpus without text, one that cannot be read, or one smaller than a row.
    """
    p, seed = config.pretrain, config.train.args
    drawn = seed.get("data_seed")
    options: dict[str, Any] = {
        "seed": seed.get("seed", 42) if drawn is None else drawn, "shuffle": config.data.shuffle,
    }  # fmt: skip
    opened = (
        _stream(config, tokenizer, options) if p.streaming else _shards(config, tokenizer, options)
    )
    sources, held_out, counts, lengths, rows = opened
    if config.data.validation:
        shards = _open(config, config.data.validation, tokenizer, "data.validation")
        if len(shards) < 2:
            raise UserError("data.validation", config.data.validation, "holds no text", "Give some")
        held_out = [_held_out(config, TokenView(shards), tokenizer)]
        counts.append(Counts(config.data.validation, shards.documents))
    _compare_lengths(np.concatenate(lengths), p.block_size, p.document_mask)
    return Loaded(
        Mixture(
            sources, [*config.texts.values()], rows, eos=tokenizer.eos_token_id,
            masked=p.document_mask,
        ),
        [*chain.from_iterable(held_out)] if len(held_out) > 1 else held_out[0] if held_out else [],
        counts,
        float(np.concatenate(lengths).mean()) + 1,
    )  # fmt: skip


def _held_out(config: Config, view: TokenView, tokenizer: Any) -> HeldOutRows:
    p = config.pretrain
    return HeldOutRows(view, p.block_size, eos=tokenizer.eos_token_id, masked=p.document_mask)


def _shards(config: Config, tokenizer: Any, options: dict[str, Any]) -> tuple[Any, ...]:
    """Sources, held-out rows, counts, lengths of texts and rows of an epoch, from token shards."""
    block, share = config.pretrain.block_size, config.data.validation_fraction
    sources, held_out, counts, lengths = [], [], [], []
    for number, path in enumerate(config.texts):
        shards = _open(config, path, tokenizer, "data.text")
        if len(shards) < block:
            reason = f"has {len(shards)} tokens, fewer than a row of pretrain.block_size={block}"
            raise UserError("data.text", path, reason, "Lower block_size, or give more text")
        view, rows = TokenView(shards), -(-(len(shards) - 1) // (block - 1))
        if share and not config.data.validation and rows > 1:
            # The last rows: neighbours share a token at most.
            cut = (rows - min(max(1, round(rows * share)), rows - 1)) * (block - 1)
            held_out.append(_held_out(config, TokenView(shards, cut), tokenizer))
            view = TokenView(shards, 0, cut + 1)
        sources.append(
            CorpusRows(view, block, eos=tokenizer.eos_token_id, source=number, **options)
        )
        counts.append(Counts(path, shards.documents))
        lengths.append(shards.lengths())
    return sources, held_out, counts, lengths, sum(s.per_pass for s in sources)


def _stream(config: Config, tokenizer: Any, options: dict[str, Any]) -> tuple[Any, ...]:
    """The same from texts that are read as they are needed; an epoch is the whole run."""
    p, share = config.pretrain, config.data.validation_fraction
    share = 0.0 if config.data.validation else share
    sources, held_out, counts, lengths = [], [], [], []
    for number, path in enumerate(config.texts):
        if is_token_folder(path):
            reason = f"cannot stream {path}, whose tokens are on disk already"
            raise UserError("pretrain.streaming", True, reason, "Use false")
        with readable(path, "data.text"):
            kept = list(islice(_part(path, share, held=False), _LOOKED_AT))
            if not kept and share:
                reason = f"has no text outside the held-out share of {share:g}"
                raise UserError("data.text", path, reason, "Lower data.validation_fraction")
            if not kept:
                raise UserError(
                    "data.text", path, "holds no text", "Give .txt or .jsonl with {text}"
                )
            seen = MemoryTokens(kept, tokenizer)
            if len(kept) < _LOOKED_AT and len(seen) < p.block_size:
                reason = f"has {len(seen)} tokens, fewer than pretrain.block_size={p.block_size}"
                raise UserError("data.text", path, reason, "Lower block_size, or give more text")
            if share:
                texts = list(islice(_part(path, share, held=True), _HELD_OUT_TEXTS))
                if texts:
                    held_out.append(
                        _held_out(config, TokenView(MemoryTokens(texts, tokenizer)), tokenizer)
                    )
        lengths.append(seen.lengths())
        sources.append(
            StreamRows(
                _reader(path, share), tokenizer, p.block_size, source=number,
                buffer=p.shuffle_buffer, **options,
            )
        )  # fmt: skip
        counts.append(Counts(f"{path} (streamed)", 0))
    return sources, held_out, counts, lengths, config.train.args["max_steps"] * batch_of(config)


def _part(path: str, share: float, *, held: bool) -> Iterator[str]:
    """Texts that the hash of each puts into the held-out share, or those that it does not."""
    fractions = {"held_out": share, "train": 1 - share}
    for text in iter_texts(path):
        if not share or (assign(text, fractions) == "held_out") is held:
            yield text


def _reader(path: str, share: float) -> Callable[[], Iterable[str]]:
    def texts() -> Iterator[str]:
        with readable(path, "data.text"):
            yield from _part(path, share, held=False)

    return texts


def _open(config: Config, path: str, tokenizer: Any, field: str) -> TokenShards:
    """The token shards that a path is, or those of the text that it names, built if they miss."""
    if is_token_folder(path):
        return TokenShards(path, tokenizer, field)
    split = "validation" if field == "data.validation" else "train"
    said = f"{token_shards.FORMAT} {split} {fingerprint(path)} {tokenizer_fingerprint(tokenizer)} "
    said += f"{_changed(Path(path))} "
    key = hashlib.sha256(f"{said}{tokenizer.eos_token_id}".encode()).hexdigest()[:24]
    root = token_cache.folder(config) or Path(config.train.output_dir) / ".cache"
    folder = root / f"tokens-{key}"
    if is_token_folder(folder):
        if launch_env.rank() == 0:
            print(f"[align] token ids from {folder}", flush=True)
    elif launch_env.local_rank() == 0:
        with readable(path, field):
            token_shards.build(
                folder, lambda: iter_texts(path, split), tokenizer, field=field, source=path,
                shard_tokens=config.pretrain.shard_tokens, num_proc=config.data.num_proc or 1,
            )  # fmt: skip
    while not is_token_folder(folder):  # the launcher ends this rank if the one that builds fails
        time.sleep(0.2)
    return TokenShards(folder, tokenizer, field)


def _changed(path: Path) -> list[int]:
    """When large files were changed: of those a fingerprint reads some parts only."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [p.stat().st_mtime_ns for p in files if p.stat().st_size > _READ_WHOLE]


def _compare_lengths(lengths: np.ndarray, block: int, masked: bool) -> None:
    """Say where rows and texts have lengths that do not go together. lengths: tokens of texts."""
    if launch_env.rank() or not len(lengths):
        return
    middle = float(np.median(lengths)) + 1
    field = f"pretrain.block_size={block}"
    found = ""
    if middle > block:
        found = f"""more than {field}: most texts are cut, and nothing is learned of what is
            further apart. Raise block_size"""
    elif middle < block / 8 and not masked:
        found = f"""so a row of {field} holds about {block / middle:.0f} texts that see each other.
            Set pretrain.document_mask: true, or lower block_size"""
    if found:
        print(
            f"[align] the median text has {middle:.0f} tokens, {' '.join(found.split())}",
            flush=True,
        )
