"""One unit, from its files to texts that only other units can still take out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from align.cleaning import minhash, normalise, pii
from align.cleaning.counting import FILE_REASONS, Counting, Tally
from align.cleaning.filters import Figures, refused
from align.cleaning.phrases import Phrases, evaluation_texts, word_list
from align.cleaning.readers import Reader
from align.cleaning.repetition import line_keys
from align.cleaning.settings import Settings
from align.cleaning.sources import InputFile, Unit
from align.cleaning.store import LINE, ROW, Writer
from align.cleaning.tokens import Batch
from align.config_errors import UserError

# Arrays of a batch stay in the processor's cache.
BATCH_CHARS = 1 << 17
# Longer documents are cut where a paragraph ends: a batch, and a row, stay small.
DOCUMENT_CHARS = 1 << 20


@dataclass
class Tools:
    """What a worker loads once: models and phrase sets that the settings name."""

    settings: Settings

    @cached_property
    def words(self) -> Phrases | None:
        """Unwanted words."""
        return word_list(self.settings.word_lists) if self.settings.word_lists else None

    @cached_property
    def evaluation(self) -> Phrases | None:
        """What evaluation files hold."""
        paths = self.settings.decontaminate
        if not paths:
            return None
        return Phrases.parts(evaluation_texts(paths), self.settings.overlap)

    @cached_property
    def perplexity(self) -> Any:
        """Scorer, or None."""
        from align.cleaning.perplexity import load_scorer

        return load_scorer(self.settings.perplexity) if self.settings.perplexity else None

    @cached_property
    def quality(self) -> Any:
        """Quality model, or None."""
        from align.cleaning.quality import Quality

        return Quality.load(self.settings.quality) if self.settings.quality else None

    @cached_property
    def classifier(self) -> Callable[[list[str]], Any] | None:
        """The user's function, or None."""
        from align.rewards.function import load_function

        name = self.settings.classifier
        return load_function(name, "classifier") if name else None

    def check(self) -> None:
        """Load everything now, so that what is wrong is said before work begins."""
        for name in ("words", "evaluation", "perplexity", "quality", "classifier"):
            getattr(self, name)


class UnitRun:
    """Reads, repairs, filters and writes one unit."""

    def __init__(self, tools: Tools, sources: list[str], files: dict[str, int], folder: Path):
        self.tools, self.settings = tools, tools.settings
        self.sources = {name: i for i, name in enumerate(sources)}
        self.files = files
        self.counting = Counting()
        self.writer = Writer(folder)
        self._scored: tuple[Batch, np.ndarray] | None = None

    def run(self, unit: Unit) -> None:
        """Process all documents of a unit; its folder appears at the end."""
        try:
            reader = Reader(self.settings, self._refuse)
            for form in ("text", "markdown", "code"):
                self._form(reader, unit, form)
            self.writer.close(self.counting)
        except BaseException:
            self.writer.abandon()
            raise

    def _form(self, reader: Reader, unit: Unit, form: str) -> None:
        files = tuple(f for f in unit.files if form_of(f) == form)
        if not files:
            return
        kept: list[tuple[InputFile, int, str]] = []
        size = 0
        for file, places in reader.documents(Unit(files, unit.start, unit.end)):
            for place, text in places:
                for piece in pieces(text):
                    kept.append((file, place, piece))
                    size += len(piece) + 1
                    if size > BATCH_CHARS:
                        self._batch(kept, form)
                        kept, size = [], 0
        if kept:
            self._batch(kept, form)

    def _refuse(self, file: InputFile, place: int, reason: str, sample: str) -> None:
        if reason in FILE_REASONS:
            self.counting.file(reason, f"{file.name}: {sample}" if sample else file.name)
            return
        size = len(sample.encode("utf-8", "replace"))
        self.counting.read.add(size)
        self.counting.source(file.source, False, size)
        self._drop(reason, size, sample, file, place)

    def _drop(self, reason: str, size: int, text: str, file: InputFile, place: int) -> None:
        where = f"{file.name}:{place}"
        self.counting.drop(reason, size, text, where)
        if self.settings.keep_rejected:
            self.writer.reject({"text": text, "reason": reason, "source": file.source,
                                "where": where})  # fmt: skip

    def _batch(self, documents: list[tuple[InputFile, int, str]], form: str) -> None:
        texts = self._repaired([text.replace("\0", "") for _, _, text in documents], form)
        batch = Batch(texts)
        texts = self._redacted(batch)
        batch = batch if texts is batch.texts else Batch(texts)
        figures = Figures(batch, self.settings)
        found = figures.languages() if form != "code" else ["code"] * len(batch)
        self._count(documents, batch, found)
        reasons = self._reasons(figures, form)
        for i, reason in enumerate(reasons):
            if reason is not None:
                file, place, _ = documents[i]
                self._drop(reason, int(batch.bytes[i]), texts[i], file, place)
        good = [i for i, reason in enumerate(reasons) if reason is None]
        if good:
            self._write(documents, batch, found, good)

    def _count(
        self, documents: list[tuple[InputFile, int, str]], batch: Batch, found: list[str]
    ) -> None:
        counting, sizes = self.counting, batch.bytes.tolist()
        counting.read.documents += len(batch)
        counting.read.bytes += sum(sizes)
        counting.languages_read.update(found)
        counting.lengths_read.update(size.bit_length() for size in batch.sizes.tolist())
        for (file, _, _), size in zip(documents, sizes, strict=True):
            counting.source(file.source, False, size)

    def _repaired(self, texts: list[str], form: str) -> list[str]:
        joined = "\0".join(texts)
        for name, action in normalise.repairs(self.settings, form):
            after = action(joined, self.settings)
            tally = self.counting.repaired.setdefault(name, Tally())
            if after == joined:
                continue
            new = after.split("\0")
            for old, text in zip(texts, new, strict=True):
                if old != text:
                    shown = _difference(old, text) if len(tally.examples) < 5 else {}
                    tally.add(len(text.encode("utf-8", "replace")), **shown)
            texts, joined = new, after
        return texts

    def _redacted(self, batch: Batch) -> list[str]:
        kinds = [kind for kind in self.settings.pii if kind != "none"]
        if not kinds:
            return batch.texts
        likely = {kind: where for kind, where in pii.likely(batch).items() if kind in kinds}
        tally = self.counting.repaired.setdefault("pii", Tally())
        texts, counts = list(batch.texts), Counter()
        for i in np.flatnonzero(np.logical_or.reduce(list(likely.values()))).tolist():
            text = texts[i]
            texts[i] = pii.redact(text, [k for k in kinds if likely[k][i]], counts)
            if texts[i] != text:
                tally.add(len(texts[i].encode("utf-8", "replace")), after=_around(texts[i]))
        self.counting.pii.update(counts)
        return texts if counts else batch.texts

    def _reasons(self, figures: Figures, form: str) -> list[str | None]:
        batch, tools, settings = figures.batch, self.tools, self.settings
        reasons = refused(figures, form)
        checks: list[tuple[str, np.ndarray]] = []
        if tools.words is not None:
            share = tools.words.hits(batch) / np.maximum(1, batch.words.counts)
            checks.append(("listed_words", share > settings.max_listed))
        if tools.perplexity is not None and settings.max_perplexity:
            values = tools.perplexity.score(batch)
            checks.append(("perplexity", values > settings.max_perplexity))
        if tools.quality is not None:
            checks.append(("quality", self._quality(batch) < settings.min_quality))
        if tools.classifier is not None:
            scores = np.asarray(tools.classifier(batch.texts), float)
            if scores.shape != (len(batch),):
                raise UserError("classifier", settings.classifier, f"gave {scores.shape} scores "
                                f"for {len(batch)} texts", "Return one number a text.")  # fmt: skip
            checks.append(("classifier", ~(scores < settings.max_score)))
        if tools.evaluation is not None:
            checks.append(("contaminated", tools.evaluation.hits(batch) > 0))
        for name, bad in checks:
            reasons = [r or (name if b else None) for r, b in zip(reasons, bad, strict=True)]
        return reasons

    def _quality(self, batch: Batch) -> np.ndarray:
        """(D,) the quality model's scores, asked for once a batch."""
        if self._scored is None or self._scored[0] is not batch:
            self._scored = (batch, self.tools.quality.score(batch))
        return self._scored[1]

    def _write(
        self, documents: list[tuple[InputFile, int, str]], batch: Batch, found: list[str],
        good: list[int],
    ) -> None:  # fmt: skip
        """Store the good texts of a batch; what is known of all of them is not computed again."""
        settings, keys = self.settings, batch.keys()
        rows = np.zeros(len(good), ROW)
        rows["chars"], rows["key"] = batch.sizes[good], keys[good]
        rows["language"] = [found[i].encode() for i in good]
        rows["source"] = [self.sources[documents[i][0].source] for i in good]
        rows["file"] = [self.files[documents[i][0].path] for i in good]
        rows["place"] = [documents[i][1] for i in good]
        if self.tools.quality is not None:
            rows["score"] = self._quality(batch)[good]
        arrays: dict[str, np.ndarray | None] = {}
        if settings.near_duplicates:
            signatures = minhash.signatures(batch, keys)[good]
            arrays = {"signatures": signatures,
                      "bands": minhash.bands(signatures, settings.near_duplicates)}  # fmt: skip
        if settings.repeated_lines:
            lines, doc, _, _ = line_keys(batch, settings.min_line)
            place = np.full(len(batch), -1)
            place[good] = np.arange(len(good))
            stays = place[doc] >= 0
            arrays["lines"] = np.zeros(int(stays.sum()), LINE)
            arrays["lines"]["key"], arrays["lines"]["row"] = lines[stays], place[doc[stays]]
        self.writer.add([batch.texts[i] for i in good], rows, **arrays)


def form_of(file: InputFile) -> str:
    """Which repairs and rules a file gets."""
    return file.kind if file.kind in ("markdown", "code") else "text"


def pieces(text: str) -> list[str]:
    """A document cut into parts of at most DOCUMENT_CHARS, where a paragraph or line ends."""
    parts = []
    while len(text) > DOCUMENT_CHARS:
        at = max(text.rfind(end, DOCUMENT_CHARS // 2, DOCUMENT_CHARS) for end in ("\n\n", "\n"))
        if at <= 0:
            at = max(text.rfind(e, DOCUMENT_CHARS // 2, DOCUMENT_CHARS - 1) for e in "。. ！") + 1
        at = at if at > 0 else DOCUMENT_CHARS
        parts.append(text[:at])
        text = text[at:]
    parts.append(text)
    return [part for part in parts if part.strip()]


def _difference(old: str, new: str) -> dict[str, str]:
    """Both texts from a little before they part."""
    at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b),
              min(len(old), len(new)))  # fmt: skip
    start = max(0, at - 20)
    return {"before": old[start : start + 80], "after": new[start : start + 80]}


def _around(text: str) -> str:
    at = max(0, text.find("<") - 40)
    return text[at : at + 120]
