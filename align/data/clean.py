"""Cleaning raw text: repair what can be repaired, drop what cannot, count both by rule.

A paragraph goes through the repairs in the order of ``REPAIRS``, then through the filters in the
order of ``FILTERS``, then through de-duplication. Every paragraph read ends as kept or under the
one reason that dropped it. This is a first version: language identification, HTML extraction and
personal data are not looked at.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from align.config import UserError
from align.data.corpus import iter_texts, text_files, write_text
from align.data.dedup import Deduplicator
from align.jsonl import RecordError, short, write_jsonl

# NFKC would turn these into ASCII or into several characters; Chinese text needs them as they are:
# full-width punctuation, the ellipsis, circled and parenthesised numbers, list marks.
KEEP_FROM_NFKC = "！＂＃％＆＇（）＊，－．／：；＜＝＞？＠［＼］＿｛｜｝～｡｢｣､…‥⋯　" + "".join(
    map(chr, range(0x2460, 0x2500))
)
# Zero-width space, word joiner, byte order mark, soft hyphen, bidirectional marks and overrides.
INVISIBLE = (
    "\u200b\u2060\ufeff\u00ad\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
_INVISIBLE = re.compile(f"[{INVISIBLE}]")
_JOINERS = re.compile(r"[\u200c\u200d]")
_SPACES = re.compile(r"[^\S\n]+")
_KEPT = re.compile(f"([{re.escape(KEEP_FROM_NFKC)}]+)")


@dataclass(frozen=True)
class Rules:
    """What to repair and what to drop; 0 switches a limit off.

    normalise: Unicode form. nfkc leaves the characters of KEEP_FROM_NFKC alone. min_chars,
    max_chars: length after the repairs. min_letters: share of letters and digits among the
    characters that are not white space. max_run: longest run of one character. max_repeated: share
    of characters inside 10-character windows that occurred before in the same paragraph.
    near_duplicates: Jaccard similarity from which a paragraph repeats an earlier one.
    """

    fix_mojibake: bool = True
    normalise: str = "nfkc"
    min_chars: int = 5
    max_chars: int = 20000
    min_letters: float = 0.4
    max_run: int = 20
    max_repeated: float = 0.5
    exact_duplicates: bool = True
    near_duplicates: float = 0.8

    def __post_init__(self) -> None:
        if self.normalise not in ("nfc", "nfkc", "none"):
            raise UserError("normalise", self.normalise, "not a known form",
                            "Use nfkc, nfc or none.")  # fmt: skip
        for name in ("min_letters", "max_repeated", "near_duplicates"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(name, getattr(self, name), "is a share between 0 and 1",
                                "Use a number from 0 to 1; 0 switches the rule off.")  # fmt: skip
        for name in ("min_chars", "max_chars", "max_run"):
            if getattr(self, name) < 0:
                raise UserError(name, getattr(self, name), "is a number of characters",
                                "Use 0 (off) or more.")  # fmt: skip


@dataclass
class Report:
    """What cleaning did. changed: paragraphs a repair touched; dropped: by reason."""

    read: int = 0
    kept: int = 0
    chars_read: int = 0
    chars_kept: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain dict; read == kept + the sum of dropped."""
        out = asdict(self)
        out["changed"], out["dropped"] = dict(self.changed), dict(self.dropped)
        return out

    def lines(self) -> Iterator[str]:
        """The report as text, a rule a line."""
        share = self.kept / self.read if self.read else 0.0
        yield f"read {self.read} paragraphs, {self.chars_read} characters"
        for name, n in sorted(self.changed.items()):
            yield f"  repaired  {name:<20} {n:>9}"
        for name, n in sorted(self.dropped.items()):
            yield f"  dropped   {name:<20} {n:>9}   e.g. {self.examples.get(name, '')}"
        yield f"kept {self.kept} paragraphs ({share:.1%}), {self.chars_kept} characters"


def clean(texts: Iterable[str], rules: Rules, report: Report) -> Iterator[str]:
    """Yields the paragraphs that stay, repaired; fills the report as it goes."""
    # Both kinds of duplicates share one memory; near ones imply exact ones.
    wanted = rules.exact_duplicates or rules.near_duplicates
    memory = Deduplicator(rules.near_duplicates or None) if wanted else None
    for text in texts:
        report.read += 1
        report.chars_read += len(text)
        fixed = repair(text, rules, report.changed)
        reason = reject(fixed, rules) or (memory.seen(fixed) if memory else None)
        if reason is not None:
            report.dropped[reason] += 1
            report.examples.setdefault(reason, short(text, 60))
            continue
        report.kept += 1
        report.chars_kept += len(fixed)
        yield fixed


def repair(text: str, rules: Rules, changed: Counter[str] | None = None) -> str:
    """The text after every repair that the rules ask for; counts those that changed it."""
    for name, action in REPAIRS:
        fixed = action(text, rules)
        if changed is not None and fixed != text:
            changed[name] += 1
        text = fixed
    return text


def reject(text: str, rules: Rules) -> str | None:
    """The first filter that refuses the text, or None."""
    return next((name for name, bad in FILTERS if bad(text, rules)), None)


def fix_mojibake(text: str, rules: Rules) -> str:
    """Text decoded with the wrong code page, decoded again (ftfy); width and quotes stay."""
    if not rules.fix_mojibake:
        return text
    try:
        import ftfy
    except ImportError as error:
        raise UserError(
            "fix_mojibake", True, "needs the package ftfy, which is not installed",
            "pip install 'align[data]', or pass --no-fix_mojibake",
        ) from error  # fmt: skip
    # Quotes, width and control characters are other rules' business, or nobody's.
    return ftfy.fix_text(
        text, uncurl_quotes=False, fix_character_width=False, fix_latin_ligatures=False,
        normalization=None, remove_control_chars=False, fix_line_breaks=False, unescape_html=True,
        remove_terminal_escapes=True,
    )  # fmt: skip


def normalise(text: str, rules: Rules) -> str:
    """NFC, or NFKC around the characters that must stay (full-width punctuation)."""
    if rules.normalise == "none":
        return text
    if rules.normalise == "nfc":
        return unicodedata.normalize("NFC", text)
    parts = _KEPT.split(text)
    parts[::2] = [unicodedata.normalize("NFKC", part) for part in parts[::2]]
    return "".join(parts)


def drop_invisible(text: str, rules: Rules) -> str:
    """Without control and zero-width characters; joiners stay inside emoji and Indic words."""
    text = _INVISIBLE.sub("", text)
    text = _JOINERS.sub(_joiner, text)
    return "".join(c for c in text if c in "\t\n" or unicodedata.category(c) not in ("Cc", "Cs"))


def _joiner(match: re.Match[str]) -> str:
    text, at = match.string, match.start()
    around = [text[i] if 0 <= i < len(text) else " " for i in (at - 1, at + 1)]
    # Between Han, Latin or spaces a joiner does nothing; elsewhere it changes what is shown.
    idle = any(c.isspace() or c.isascii() or "\u3000" <= c <= "\u9fff" for c in around)
    return "" if idle else match.group()


def squeeze_spaces(text: str, rules: Rules) -> str:
    """Runs of white space as one space, none at the ends; a line break inside becomes a space."""
    return " ".join(_SPACES.sub(" ", text).split())


def repeated_share(text: str, window: int = 10) -> float:
    """Share of the text's characters inside windows that occurred earlier in it, in [0, 1]."""
    if len(text) < 2 * window:
        return 0.0
    seen: set[str] = set()
    covered = bytearray(len(text))
    for start in range(len(text) - window + 1):
        piece = text[start : start + window]
        if piece in seen:
            covered[start : start + window] = b"\x01" * window
        seen.add(piece)
    return sum(covered) / len(text)


def _letters(text: str) -> float:
    solid = [c for c in text if not c.isspace()]
    return sum(c.isalnum() for c in solid) / len(solid) if solid else 0.0


def _longest_run(text: str) -> int:
    best = run = 0
    previous = ""
    for char in text:
        run = run + 1 if char == previous else 1
        best, previous = max(best, run), char
    return best


REPAIRS: tuple[tuple[str, Callable[[str, Rules], str]], ...] = (
    ("mojibake", fix_mojibake),
    ("unicode_form", normalise),
    ("invisible", drop_invisible),
    ("white_space", squeeze_spaces),
)
FILTERS: tuple[tuple[str, Callable[[str, Rules], bool]], ...] = (
    ("empty", lambda text, rules: not text),
    ("too_short", lambda text, rules: len(text) < rules.min_chars),
    ("too_long", lambda text, rules: 0 < rules.max_chars < len(text)),
    ("few_letters", lambda text, rules: _letters(text) < rules.min_letters),
    ("long_run", lambda text, rules: 0 < rules.max_run < _longest_run(text)),
    ("repetitive", lambda text, rules: 0 < rules.max_repeated < repeated_share(text)),
)


def main(argv: list[str] | None = None) -> int:
    """``clean_corpus``: cleans text files into one; 0 done, 2 the input is wrong."""
    parser = argparse.ArgumentParser(
        prog="clean_corpus", description="Clean pre-training text and say what every rule did."
    )
    parser.add_argument("--input", nargs="+", required=True, help=".txt, .jsonl or folders")
    parser.add_argument(
        "--output", required=True, help="folder, or .txt (a paragraph a line) or .jsonl file"
    )
    parser.add_argument("--report", help="JSON report; default: <output>.report.json")
    for name, default in asdict(Rules()).items():
        if isinstance(default, bool):
            action = argparse.BooleanOptionalAction
            parser.add_argument(f"--{name}", action=action, default=default)
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default,
                                help=f"default {default}")  # fmt: skip
    args = parser.parse_args(argv)
    try:
        report = _run(args)
    except (UserError, RecordError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(report.lines()))
    return 0


def _run(args: argparse.Namespace) -> Report:
    output = Path(args.output)
    if not output.suffix or output.is_dir():
        output = output / "corpus.txt"
    if output.suffix not in (".txt", ".jsonl"):
        raise UserError("output", args.output, "has a suffix that says no known format",
                        "Use a folder, or a name that ends in .txt or .jsonl.")  # fmt: skip
    inputs = [file.resolve() for path in args.input for file in text_files(path)]
    if output.resolve() in inputs:
        raise UserError("output", args.output, "is also an input", "Write to another file.")
    rules = Rules(**{name: getattr(args, name) for name in asdict(Rules())})
    report = Report()
    kept = clean((text for path in args.input for text in iter_texts(path)), rules, report)
    if output.suffix == ".jsonl":
        write_jsonl(output, ({"text": text} for text in kept))
    else:
        write_text(output, "".join(f"{text}\n" for text in kept))
    path = Path(args.report) if args.report else output.with_name(f"{output.name}.report.json")
    body = {"rules": asdict(rules), **report.to_json()}
    write_text(path, json.dumps(body, ensure_ascii=False, indent=1) + "\n")
    return report
