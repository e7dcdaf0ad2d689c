# ruff: noqa: RUF009 - option() is dataclasses.field() with a help text and a range
"""What cleaning does: one dataclass, of which the command line and the config are made."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from align.config_errors import UserError, nearest


def option(default: Any, help: str, **limits: Any) -> Any:
    """Return a dataclass field with its help text, range (ge, le) and choices."""
    metadata = {"help": help, **limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


PII_KINDS = ("email", "phone", "id_number", "bank_card", "ip")


@dataclass(frozen=True)
class Settings:
    """Every step's switch and limit; 0, false or an empty list switches a step off."""

    # Reading
    text_field: str = option("auto", "field of JSON and Parquet rows; auto: text, content, …")
    documents: str = option(
        "auto", "what a document of a .txt file is; auto: the file where it has blank lines, else "
        "a line", choices=("auto", "line", "paragraph", "file"),
    )  # fmt: skip
    encoding: str = option("auto", "of files that are not UTF-8; auto: found out file by file")
    extract_html: bool = option(
        True, "main text of HTML pages (trafilatura); off: all visible text"
    )
    # Repairs
    fix_mojibake: bool = option(True, "decode again what was decoded with the wrong code page")
    unescape_html: bool = option(True, "&amp; and its like become the characters they stand for")
    normalise: str = option(
        "nfkc", "Unicode form; nfkc: letters and digits to half width, Chinese punctuation kept",
        choices=("nfkc", "nfc", "none"),
    )  # fmt: skip
    invisible: bool = option(True, "drop control and zero-width characters")
    punctuation: bool = option(
        True, "one form of punctuation: full width after Han, half elsewhere"
    )
    quotes: str = option("keep", "quotation marks", choices=("keep", "straight", "curly"))
    white_space: bool = option(True, "one space for runs of them, none at the ends of lines")
    chinese: str = option(
        "keep", "characters (OpenCC)", choices=("keep", "simplified", "traditional")
    )
    pii: list[str] = option(
        list(PII_KINDS), "personal data to replace by <EMAIL>, <PHONE> …; none: keep them",
        choices=(*PII_KINDS, "none"),
    )  # fmt: skip
    # Filters
    rules: str = option(
        "general", "limits that stand where none is given; web: Gopher, C4 and FineWeb for crawled "
        "pages", choices=("general", "web", "none"),
    )  # fmt: skip
    languages: list[str] = option([], "languages that stay, as zh en; empty: all")
    min_chars: int | None = option(None, "characters of a document", ge=0)
    max_chars: int | None = option(None, "characters of a document", ge=0)
    min_words: int | None = option(None, "words, a Han character being one", ge=0)
    min_letters: float | None = option(
        None, "share of letters and digits, spaces aside", ge=0, le=1
    )
    max_symbols: float | None = option(None, "share of symbols and emoji, spaces aside", ge=0, le=1)
    max_digits: float | None = option(None, "share of digits, spaces aside", ge=0, le=1)
    max_urls: float | None = option(None, "share of characters inside URLs", ge=0, le=1)
    max_broken: float | None = option(None, "share of U+FFFD and private characters", ge=0, le=1)
    max_run: int | None = option(None, "longest run of one character that is no space", ge=0)
    max_repeated: float | None = option(
        None, "share of characters in runs of 5 to 10 words that occur twice", ge=0, le=1
    )
    max_top_ngram: float | None = option(
        None, "share of characters that the most frequent 2, 3 or 4 words in a row take", ge=0, le=1
    )
    max_repeated_lines: float | None = option(None, "share of lines that occur twice", ge=0, le=1)
    min_stops: float | None = option(
        None, "share of lines that end in a punctuation mark", ge=0, le=1
    )
    max_bullets: float | None = option(None, "share of lines that begin with a bullet", ge=0, le=1)
    max_ellipses: float | None = option(None, "share of lines that end in an ellipsis", ge=0, le=1)
    max_word_length: float | None = option(None, "mean characters of a word (spaced scripts)", ge=0)
    placeholders: bool = option(True, "drop pages of lorem ipsum or of a script's source")
    word_lists: list[str] = option([], "files of unwanted words, one a line")
    max_listed: float = option(0.0, "words of the lists that a document may have, per word", ge=0)
    perplexity: str | None = option(
        None, "text file for a character 5-gram model, or a model folder"
    )
    max_perplexity: float = option(0.0, "characters' perplexity under it; 0: off", ge=0)
    quality: str | None = option(None, "quality model from align.cleaning.quality")
    min_quality: float = option(0.5, "probability that a document is of the good class", ge=0, le=1)
    classifier: str | None = option(None, "module:function or file.py:function, texts to scores")
    max_score: float = option(0.5, "score from which the classifier's documents go")
    decontaminate: list[str] = option([], "evaluation files whose texts must not be learned")
    overlap: int = option(
        13, "words in a row that a document may not share with them", ge=4, le=100
    )
    # Duplicates
    exact_duplicates: bool = option(True, "drop copies, letter case and white space aside")
    near_duplicates: float = option(0.8, "Jaccard similarity from which a copy goes", ge=0, le=1)
    repeated_lines: int = option(
        0, "drop later copies of a line that stands in this many documents", ge=0
    )
    min_line: int = option(10, "characters of a line that repeated_lines looks at", ge=1)
    # Output
    validation_fraction: float = option(0.01, "share of the documents held out", ge=0, le=0.5)
    shuffle: bool = option(True, "documents in a seeded random order")
    repeat: list[str] = option(
        [], "INPUT=FACTOR: how often a source's documents stand in the output"
    )
    share: list[str] = option([], "INPUT=SHARE: byte shares of the sources, the smaller up-sampled")
    format: str = option("jsonl", "of the shards", choices=("jsonl", "parquet", "txt"))
    shard_mb: int = option(256, "size of a shard", ge=1)
    keep_rejected: bool = option(False, "write what was dropped, with its reason")
    seed: int = option(0, "of split, order and up-sampling", ge=0)

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            for one in value if isinstance(value, list) else [value]:
                _check(f.name, one, f.metadata)
        if self.repeat and self.share:
            raise UserError("share", self.share, "says the same as repeat in another way",
                            "Give one of the two.")  # fmt: skip
        for name in ("repeat", "share"):
            factors(getattr(self, name), name)

    def limit(self, name: str) -> float:
        """The limit of a filter: the one given, else that of the set of rules."""
        given = getattr(self, name)
        return DEFAULTS[self.rules].get(name, 0) if given is None else given


# "general" keeps reviews, poems and chats; "web" is for crawled pages: Gopher (Rae et al. 2021,
# arXiv:2112.11446, tables A1 and A3), C4 (Raffel et al. 2020) and FineWeb (arXiv:2406.17557).
DEFAULTS: dict[str, dict[str, float]] = {
    "none": {},
    "general": {
        "min_chars": 5, "min_letters": 0.4, "max_symbols": 0.4, "max_urls": 0.5, "max_broken": 0.05,
        "max_run": 20, "max_repeated": 0.5, "max_top_ngram": 0.5,
    },
    "web": {
        "min_chars": 50, "min_words": 50, "min_letters": 0.6, "max_symbols": 0.1, "max_urls": 0.2,
        "max_digits": 0.3, "max_broken": 0.01, "max_run": 20, "max_repeated": 0.15,
        "max_top_ngram": 0.2, "max_repeated_lines": 0.3, "min_stops": 0.12, "max_bullets": 0.9,
        "max_ellipses": 0.3, "max_word_length": 10,
    },
}  # fmt: skip


def _check(name: str, value: Any, limits: Any) -> None:
    choices = limits.get("choices")
    if choices and value not in choices:
        raise UserError(name, value, f"is not one of {', '.join(choices)}",
                        f"Use {nearest(str(value), choices) or choices[0]}.")  # fmt: skip
    low, high = limits.get("ge"), limits.get("le")
    if value is None or (low is None and high is None):
        return
    if (low is not None and value < low) or (high is not None and value > high):
        reason = f"must be {f'at least {low}' if high is None else f'between {low} and {high}'}"
        raise UserError(name, value, reason, "0 switches the step off." if low == 0 else "")


def factors(pairs: list[str], name: str) -> dict[str, float]:
    """``INPUT=NUMBER`` pairs as a mapping; UserError for what is none."""
    found = {}
    for pair in pairs:
        source, _, number = pair.rpartition("=")
        try:
            found[source] = float(number)
        except ValueError:
            found[source] = -1.0
        if not source or not 0 <= found[source] <= 1000:
            raise UserError(
                name,
                pair,
                "is not INPUT=NUMBER",
                "Write the input as it stands after --input, = and a number up to 1000.",
            )
    return found


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give the parser an option for each field of Settings."""
    for f in fields(Settings):
        default = f.default if f.default is not MISSING else []
        text = f.metadata["help"].replace("%", "%%")
        shown = f" (default {default})" if default not in (None, [], "") else ""
        if isinstance(default, bool):
            parser.add_argument(f"--{f.name}", action=argparse.BooleanOptionalAction,
                                default=default, help=text)  # fmt: skip
            continue
        kind: Any = str
        if "int" in str(f.type):
            kind = int
        elif "float" in str(f.type):
            kind = float
        many: dict[str, Any] = {"nargs": "*"} if "list" in str(f.type) else {}
        given = f.default_factory() if f.default_factory is not MISSING else default
        parser.add_argument(f"--{f.name}", type=kind, default=given, help=text + shown, **many)


def from_arguments(args: argparse.Namespace) -> Settings:
    """The settings that a command line gives."""
    return Settings(**{f.name: getattr(args, f.name) for f in fields(Settings)})
