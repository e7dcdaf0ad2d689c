"""Which two answers a person sees next: pairs in balance, sides by chance, nothing twice.

Pure and deterministic: the seed, the items and what has been voted decide everything, so a server
that starts again goes on where it was.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from align.feedback.records import Completion
from align.records import Message, Prompt, messages_json, prompt_key


@dataclass(frozen=True)
class Item:
    """Two answers to compare; a's model comes first by name.

    shared: every annotator gets it. owner: the one annotator who asked for it and sees it.
    """

    id: str
    prompt: tuple[Message, ...]
    a: Completion
    b: Completion
    shared: bool = False
    owner: str | None = None

    @property
    def pair(self) -> tuple[str, str]:
        """The two models' names, in order."""
        return str(self.a.model), str(self.b.model)


@dataclass(frozen=True)
class Shown:
    """An item as one annotator sees it. at: the clock when it was first shown."""

    item: Item
    swapped: bool
    at: float

    @property
    def completions(self) -> tuple[Completion, Completion]:
        """Left and right."""
        return (self.item.b, self.item.a) if self.swapped else (self.item.a, self.item.b)

    @property
    def position(self) -> str:
        """Text ab where the models stand in the order of their names, else ba."""
        return "ba" if self.swapped else "ab"


def make_item(prompt: Sequence[Message], one: Completion, other: Completion) -> Item:
    """An item whose id depends on prompt, models and texts, not on the order of the two."""
    a, b = sorted((one, other), key=lambda c: (str(c.model), str(c.text)))
    parts = [prompt_key(prompt), a.model, a.text, b.model, b.text]
    return Item(_digest(*parts).hex()[:24], tuple(prompt), a, b)


def build_items(
    prompts: Sequence[Prompt],
    answers: Mapping[tuple[str, str], str | None],
    models: Sequence[str],
    *,
    overlap: float = 0.0,
    seed: int = 0,
) -> tuple[list[Item], Counter[str]]:
    """All comparisons in the order in which they are handed out, and what cannot be compared.

    answers: by (prompt_id, model). Any beginning of the list holds each pair of models equally
    often, to within one, as long as no pair has run out. overlap: the share of each pair's items
    that every annotator gets. Dropped: identical, empty, missing.
    """
    pairs = list(combinations(sorted(models), 2))
    dropped: Counter[str] = Counter()
    of_pair: dict[tuple[str, str], list[Item]] = {}
    for pair in pairs:
        rng = random.Random(_number(seed, "order", *pair))
        order = list(prompts)
        rng.shuffle(order)
        offset, items = rng.random(), []
        for prompt in order:
            texts = [answers.get((prompt.prompt_id, name)) for name in pair]
            if any(t is None for t in texts):
                dropped["missing"] += 1
            elif not all(str(t).strip() for t in texts):
                dropped["empty"] += 1
            elif texts[0] == texts[1]:
                dropped["identical"] += 1
            else:
                one, other = (Completion(n, t) for n, t in zip(pair, texts, strict=True))
                rank = len(items)
                item = make_item(prompt.messages, one, other)
                shared = math.floor((rank + 1) * overlap + offset) > math.floor(
                    rank * overlap + offset
                )
                items.append(Item(item.id, item.prompt, item.a, item.b, shared))
        of_pair[pair] = items
    out: list[Item] = []
    for turn in range(max(map(len, of_pair.values()), default=0)):
        row = [items[turn] for items in of_pair.values() if turn < len(items)]
        random.Random(_number(seed, "turn", turn)).shuffle(row)
        out += row
    return list({item.id: item for item in out}.values()), dropped


class Queue:
    """Who sees what. Not thread-safe: `align.feedback.arena.Arena` holds the lock.

    An item that is not shared goes to one annotator; whoever lets it lie for `lease_s` seconds, or
    skips it, leaves it to others.
    """

    def __init__(
        self,
        items: Iterable[Item],
        *,
        overlap: float = 0.0,
        seed: int = 0,
        lease_s: float = 1800.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """clock: seconds; given in tests."""
        self.items = {item.id: item for item in items}
        self._overlap, self._seed, self._lease, self._clock = overlap, seed, lease_s, clock
        self._done: dict[str, set[str]] = defaultdict(set)
        self._shared_done: Counter[str] = Counter()
        self._taken: set[str] = set()  # voted on by somebody
        self._open: dict[str, Shown] = {}  # what an annotator has on the screen

    def restore(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Take the votes of an earlier server from its log; return how many were about items."""
        known = 0
        for row in rows:
            annotator, item = row.get("annotator"), row.get("item")
            if isinstance(annotator, str) and item in self.items:
                known += 1
                self._settle(annotator, item, voted=row.get("vote") is not None)
        return known

    def next(self, annotator: str) -> Shown | None:
        """What the annotator sees now; the same until they vote or skip. None: nothing is left."""
        shown = self._open.get(annotator)
        if shown is not None and shown.item.id not in self._done[annotator]:
            return shown
        item = self._choose(annotator)
        return None if item is None else self.show(annotator, item)

    def show(self, annotator: str, item: Item) -> Shown:
        """Put an item on an annotator's screen."""
        self.items.setdefault(item.id, item)
        swapped = bool(_number(self._seed, "side", annotator, item.id) & 1)
        self._open[annotator] = Shown(item, swapped, self._clock())
        return self._open[annotator]

    def settle(self, annotator: str, item_id: str, *, voted: bool) -> Shown | None:
        """Mark an item as done; return how it was shown, None where it was not to be voted on.

        That is the case for an item that is not on the annotator's screen: voted on in another
        window, or twice by an impatient click.
        """
        shown = self._open.get(annotator)
        if shown is None or shown.item.id != item_id or item_id in self._done[annotator]:
            return None
        self._settle(annotator, item_id, voted=voted)
        del self._open[annotator]
        return shown

    def is_done(self, annotator: str, item_id: str) -> bool:
        """Whether the annotator has voted on an item or skipped it."""
        return item_id in self._done[annotator]

    def progress(self, annotator: str) -> tuple[int, int]:
        """(what the annotator has done, that and what is still there for them)."""
        done = len(self._done[annotator])
        left = sum(1 for item in self.items.values() if self._is_free(annotator, item))
        return done, done + left

    def _settle(self, annotator: str, item_id: str, *, voted: bool) -> None:
        if item_id not in self._done[annotator]:
            self._done[annotator].add(item_id)
            self._shared_done[annotator] += self.items[item_id].shared
        if voted:
            self._taken.add(item_id)

    def _choose(self, annotator: str) -> Item | None:
        count = len(self._done[annotator]) + 1
        # After k items floor(k · overlap) of them are shared ones, while there are both kinds.
        wants_shared = math.floor(count * self._overlap) > self._shared_done[annotator]
        second: Item | None = None
        for item in self.items.values():
            if not self._is_free(annotator, item):
                continue
            if item.shared == wants_shared:
                return item
            second = second or item
        return second

    def _is_free(self, annotator: str, item: Item) -> bool:
        if item.id in self._done[annotator] or item.owner not in (None, annotator):
            return False
        if item.shared:
            return True
        return item.id not in self._taken and not self._is_held(annotator, item.id)

    def _is_held(self, annotator: str, item_id: str) -> bool:
        """Whether somebody else has it on the screen, and not for too long."""
        late = self._clock() - self._lease
        return any(
            shown.item.id == item_id and name != annotator and shown.at > late
            for name, shown in self._open.items()
        )


def to_json(shown: Shown) -> dict[str, Any]:
    """What a page may know of an item: no model's name."""
    left, right = shown.completions
    prompt = messages_json(shown.item.prompt)
    return {"item": shown.item.id, "prompt": prompt, "left": left.text, "right": right.text}


def _digest(*parts: Any) -> bytes:
    text = "\x1f".join(map(str, parts))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _number(*parts: Any) -> int:
    """A number that looks random and depends on the parts alone."""
    return int.from_bytes(_digest(*parts)[:8], "big")
