"""Sets of phrases, looked up in all texts of a batch at once: word lists and evaluation texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from align.cleaning.tokens import Batch
from align.config_errors import UserError, missing_file

# An evaluation text shorter than this is a phrase that anybody may write.
SHORTEST = 8


class Phrases:
    """Word sequences by their length; letter case, width and punctuation do not count."""

    def __init__(self) -> None:
        self._hashes: dict[int, np.ndarray] = {}

    @classmethod
    def whole(cls, texts: Iterable[str]) -> Phrases:
        """Each text as one phrase."""
        found = cls()
        by_length: dict[int, list[np.ndarray]] = defaultdict(list)
        for batch in _batches(texts):
            counts = batch.words.counts
            for n in np.unique(counts[counts > 0]).tolist():
                hashes, _ = batch.words.ngrams(n)
                by_length[n].append(hashes[batch.words.first[:-1][counts == n]])
        found._hashes = {n: np.unique(np.concatenate(parts)) for n, parts in by_length.items()}
        return found

    @classmethod
    def parts(cls, texts: Iterable[str], n: int, shortest: int = SHORTEST) -> Phrases:
        """All n words in a row of each text; of a shorter one, down to `shortest`, the whole."""
        found = cls()
        by_length: dict[int, list[np.ndarray]] = defaultdict(list)
        for batch in _batches(texts):
            counts = batch.words.counts
            hashes, whole = batch.words.ngrams(n)
            by_length[n].append(hashes[whole])
            for short in range(shortest, n):
                hashes, _ = batch.words.ngrams(short)
                by_length[short].append(hashes[batch.words.first[:-1][counts == short]])
        for length, parts in by_length.items():
            if sum(map(len, parts)):
                found._hashes[length] = np.unique(np.concatenate(parts))
        return found

    def __len__(self) -> int:
        """Number of phrases."""
        return sum(map(len, self._hashes.values()))

    def hits(self, batch: Batch) -> np.ndarray:
        """(D,) int64: places in each text where a phrase begins."""
        out = np.zeros(len(batch), np.int64)
        for n, known in self._hashes.items():
            hashes, whole = batch.words.ngrams(n)
            place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
            found = (known[place] == hashes) & whole
            out += np.bincount(batch.words.doc[found], minlength=len(batch))
        return out


def _batches(texts: Iterable[str], size: int = 2000) -> Iterator[Batch]:
    kept: list[str] = []
    for text in texts:
        kept.append(text)
        if len(kept) == size:
            yield Batch(kept)
            kept = []
    if kept:
        yield Batch(kept)


def word_list(paths: list[str]) -> Phrases:
    """Phrases of files with one a line; lines that begin with # are comments."""
    lines: list[str] = []
    for path in paths:
        if not Path(path).is_file():
            raise missing_file("word_lists", path)
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError("word_lists", path, f"is not UTF-8 at byte {error.start}",
                            "Save it as UTF-8.") from None  # fmt: skip
        lines += [s for line in text.splitlines() if (s := line.strip()) and s[0] != "#"]
    return Phrases.whole(lines)


def evaluation_texts(paths: list[str]) -> Iterator[str]:
    """Every text in evaluation files, whatever their fields are called.

    paths: .txt, .json, .jsonl, compressed or not, or folders of them. Raises UserError for what is
    not there or cannot be read.
    """
    from align.cleaning.sources import find_files
    from align.cleaning.streams import open_bytes
    from align.json_text import texts_in
    from align.jsonl import RecordError, read_rows

    for given in paths:
        if not Path(given).exists():
            raise missing_file("decontaminate", given)
    files, _ = find_files(paths)
    for file in files:
        if file.kind == "jsonl" and not file.path.endswith((".zst", ".bz2", ".xz")):
            try:
                for _, row in read_rows(file.path):
                    yield from texts_in(row)
            except RecordError as error:
                raise UserError("decontaminate", file.path, f"cannot be read: {error}",
                                "Correct the file.") from None  # fmt: skip
        elif file.kind in ("text", "markdown"):
            with open_bytes(file.path) as stream:
                yield from stream.read().decode("utf-8", "replace").splitlines()
        else:
            raise UserError("decontaminate", file.path, "is not text or JSON lines",
                            "Give .txt, .json or .jsonl files.")  # fmt: skip
