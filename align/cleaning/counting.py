"""What became of every document: counts, bytes and examples, added up over units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

EXAMPLES, CHARS = 5, 300
# Reasons that concern a whole file: its documents are not known.
FILE_REASONS = ("unreadable_file", "damaged_file", "binary_file", "file_too_large")


@dataclass
class Tally:
    """Documents and bytes under one name, with the first examples."""

    documents: int = 0
    bytes: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)

    def add(self, size: int, **example: str) -> None:
        """Count a document of `size` bytes; keep the first few examples, cut to CHARS."""
        self.documents += 1
        self.bytes += size
        if example and len(self.examples) < EXAMPLES:
            self.examples.append({k: cut(v) for k, v in example.items()})

    def merge(self, other: Tally) -> None:
        """Add another's counts."""
        self.documents += other.documents
        self.bytes += other.bytes
        self.examples = (self.examples + other.examples)[:EXAMPLES]


def cut(text: str, limit: int = CHARS) -> str:
    """The beginning of a text."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass
class Counting:
    """read = kept + the sum of dropped. repaired: documents that a repair changed, by its name.

    lengths: documents by the power of two of their characters, before and after. files: reasons
    of whole files, with their names. sources: [documents, bytes] read and kept of each input.
    """

    read: Tally = field(default_factory=Tally)
    kept: Tally = field(default_factory=Tally)
    repaired: dict[str, Tally] = field(default_factory=dict)
    dropped: dict[str, Tally] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    pii: Counter[str] = field(default_factory=Counter)
    languages_read: Counter[str] = field(default_factory=Counter)
    languages_kept: Counter[str] = field(default_factory=Counter)
    lengths_read: Counter[int] = field(default_factory=Counter)
    lengths_kept: Counter[int] = field(default_factory=Counter)
    sources: dict[str, list[int]] = field(default_factory=dict)

    def drop(self, reason: str, size: int, text: str, where: str) -> None:
        """Count a dropped document."""
        self.dropped.setdefault(reason, Tally()).add(size, text=text, where=where)

    def file(self, reason: str, name: str) -> None:
        """Note a file that could not be read, or not to its end."""
        self.files.setdefault(reason, []).append(name)

    def source(self, name: str, kept: bool, size: int) -> None:
        """Count a document of an input as read, or as kept."""
        row = self.sources.setdefault(name, [0, 0, 0, 0])
        row[2 if kept else 0] += 1
        row[3 if kept else 1] += size

    def merge(self, other: Counting) -> None:
        """Add another's counts."""
        self.read.merge(other.read)
        self.kept.merge(other.kept)
        for mine, theirs in ((self.repaired, other.repaired), (self.dropped, other.dropped)):
            for name, tally in theirs.items():
                mine.setdefault(name, Tally()).merge(tally)
        for reason, names in other.files.items():
            self.files.setdefault(reason, []).extend(names)
        for name in ("pii", "languages_read", "languages_kept", "lengths_read", "lengths_kept"):
            getattr(self, name).update(getattr(other, name))
        for name, row in other.sources.items():
            mine_row = self.sources.setdefault(name, [0, 0, 0, 0])
            mine_row[:] = [a + b for a, b in zip(mine_row, row, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        out: dict[str, Any] = {"read": _plain(self.read), "kept": _plain(self.kept)}
        for name in ("repaired", "dropped"):
            out[name] = {k: _plain(t) for k, t in getattr(self, name).items()}
        for name in ("files", "sources"):
            out[name] = getattr(self, name)
        for name in ("pii", "languages_read", "languages_kept", "lengths_read", "lengths_kept"):
            out[name] = {str(k): v for k, v in sorted(getattr(self, name).items())}
        return out

    @classmethod
    def from_json(cls, obj: dict[str, Any]) -> Counting:
        """The inverse of to_json."""
        out = cls(Tally(**obj["read"]), Tally(**obj["kept"]))
        for name in ("repaired", "dropped"):
            setattr(out, name, {k: Tally(**t) for k, t in obj[name].items()})
        out.files, out.sources = obj["files"], obj["sources"]
        for name in ("pii", "languages_read", "languages_kept"):
            setattr(out, name, Counter(obj[name]))
        for name in ("lengths_read", "lengths_kept"):
            setattr(out, name, Counter({int(k): v for k, v in obj[name].items()}))
        return out

    def lines(self) -> Iterator[str]:
        """The counts as text, a rule a line."""
        share = self.kept.documents / self.read.documents if self.read.documents else 0.0
        yield f"read {self.read.documents} documents, {megabytes(self.read.bytes)}"
        for name, tally in self.repaired.items():
            if tally.documents:
                yield f"  repaired  {name:<20} {tally.documents:>9}"
        for name, n in self.pii.items():
            yield f"  replaced  {name:<20} {n:>9}"
        for reason, tally in self.dropped.items():
            example = tally.examples[0]["text"] if tally.examples else ""
            shown = " ".join(cut(example, 60).split())
            yield f"  dropped   {reason:<20} {tally.documents:>9}   e.g. {shown}"
        for reason, names in self.files.items():
            yield f"  file      {reason:<20} {len(names):>9}   e.g. {names[0]}"
        yield f"kept {self.kept.documents} documents ({share:.1%}), {megabytes(self.kept.bytes)}"


def named(names: list[str], few: int = 5) -> str:
    """Names for people, who do not read thousands of them."""
    more = f" and {len(names) - few} more" if len(names) > few else ""
    return ", ".join(names[:few]) + more


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def _plain(tally: Tally) -> dict[str, Any]:
    return {"documents": tally.documents, "bytes": tally.bytes, "examples": tally.examples}
