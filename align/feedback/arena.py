"""The arena without its page: next comparison, votes, own prompts, what is on disk.

Everything a page or a program does goes through `Arena`, whose methods any number of threads may
call. What is in the log is all that there is: a server that starts again reads it.
"""

from __future__ import annotations

import random
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from align.config_errors import UserError
from align.feedback.queue import Item, Queue, Shown, make_item
from align.feedback.records import Completion, FeedbackLog, FeedbackRecord, read_log
from align.jsonl import write_jsonl
from align.records import Message, PreferenceGroup
from reward_models.annotations.base import Row
from reward_models.annotations.feedback import FORMAT, PAIR_VOTES
from reward_models.annotations.intake import Intake

VOTES, PREFERENCES = "votes.jsonl", "preferences.jsonl"
CHOICES = (*PAIR_VOTES, "skip")
WITHOUT_CONSENT = ("drop", "vote_only")
MAX_NAME = 80
# Model names and one conversation → each model's answer, or None where it has none.
Ask = Callable[[Sequence[str], Sequence[Message]], Sequence[str | None]]


class Arena:
    """One arena: its comparisons, its annotators and its log in `output`."""

    def __init__(
        self,
        items: Iterable[Item],
        output: str | Path,
        *,
        models: Sequence[str] = (),
        ask: Ask | None = None,
        overlap: float = 0.0,
        seed: int = 0,
        without_consent: str = "drop",
        lease_s: float = 1800.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """ask: answers prompts that people write themselves; None: there are none.

        without_consent: what is kept of those who did not agree: "drop" nothing, "vote_only" the
        vote, the models and the times.
        """
        self.output = Path(output)
        self.log = FeedbackLog(self.output / VOTES)
        self.queue = Queue(items, overlap=overlap, seed=seed, lease_s=lease_s, clock=clock)
        self.models, self._ask = sorted(models), ask
        self._keeps_votes = without_consent == "vote_only"
        self._clock, self._lock = clock, threading.RLock()
        self._asking = threading.Lock()
        self._rng = random.Random(seed)
        self._own: Counter[tuple[str, str]] = Counter()
        self._written_at, self._writing_took, self._stale = -float("inf"), 0.0, True
        rows, self.torn = read_log(self.log.path)
        self.resumed = self.queue.restore(rows)

    @property
    def takes_prompts(self) -> bool:
        """Whether people may write prompts of their own."""
        return self._ask is not None and len(self.models) > 1

    def next(self, annotator: str) -> Shown | None:
        """What an annotator sees now; None when nothing is left for them."""
        with self._lock:
            return self.queue.next(annotator)

    def vote(self, annotator: str, item: str, vote: str, *, consent: bool) -> bool:
        """Take a vote or "skip" on what the annotator sees; False where it came too late.

        It is on disk when this returns, unless there is no consent.
        """
        if vote not in CHOICES:
            raise UserError("vote", vote, "is not known", f"Use one of {', '.join(CHOICES)}")
        with self._lock:
            said = None if vote == "skip" else vote
            shown = self.queue.settle(annotator, item, voted=said is not None)
            if shown is None:
                return False
            record = self._record(annotator, shown, said, consent)
            if consent or self._keeps_votes:
                self.log.write(record if consent else record.without_text())
                self._stale = True
            self._write_soon()
        return True

    def own_prompt(self, annotator: str, text: str) -> Shown:
        """Ask two models what the annotator wrote and show the answers; UserError where not."""
        if self._ask is None or len(self.models) < 2:
            raise UserError("prompt", text[:80], "cannot be answered: no model is loaded")
        if not text.strip():
            raise UserError("prompt", text, "is empty", "Write something")
        prompt = (Message("user", text.strip()),)
        with self._lock:
            pairs = list(combinations(self.models, 2))
            fewest = min(self._own[pair] for pair in pairs)
            pair = self._rng.choice([p for p in pairs if self._own[p] == fewest])
            self._own[pair] += 1
        with self._asking:  # votes go on while the models write
            answers = list(self._ask(pair, prompt))
        if not all(isinstance(a, str) and a.strip() for a in answers):
            raise UserError(
                "prompt", text[:80], "got no answer from one of the models", "Try again"
            )
        if answers[0] == answers[1]:
            raise UserError("prompt", text[:80], "got the same answer twice", "Try another")
        with self._lock:
            one, other = (Completion(m, a) for m, a in zip(pair, answers, strict=True))
            item = replace(make_item(prompt, one, other), owner=annotator)
            if item.id in self.queue.items and self.queue.is_done(annotator, item.id):
                raise UserError("prompt", text[:80], "was asked and judged before", "Try another")
            return self.queue.show(annotator, item)

    def progress(self, annotator: str) -> tuple[int, int]:
        """(done, done and still to do) of an annotator."""
        with self._lock:
            return self.queue.progress(annotator)

    def flush(self) -> Counter[str]:
        """Write preferences.jsonl from the log, whole or not at all; what was left out and why."""
        with self._lock:
            started = time.monotonic()
            rows, self.torn = read_log(self.log.path)
            groups, dropped = to_groups(rows)
            write_jsonl(self.output / PREFERENCES, groups)
            self._stale, self._written_at = False, time.monotonic()
            self._writing_took = self._written_at - started
            return dropped

    def close(self) -> None:
        """Bring preferences.jsonl up to date."""
        if self._stale:
            self.flush()

    def _record(
        self, annotator: str, shown: Shown, vote: str | None, consent: bool
    ) -> FeedbackRecord:
        return FeedbackRecord(
            prompt=shown.item.prompt,
            completions=shown.completions,
            vote=vote,
            consent=consent,
            annotator=annotator,
            item=shown.item.id,
            position=shown.position,
            seconds=round(max(0.0, self._clock() - shown.at), 2),
        )

    def _write_soon(self) -> None:
        """Rewrite preferences.jsonl, but spend a twentieth of the time on it at most."""
        if time.monotonic() - self._written_at >= 20 * self._writing_took:
            self.flush()


def to_groups(rows: Iterable[dict[str, Any]]) -> tuple[list[PreferenceGroup], Counter[str]]:
    """A log's lines as canonical groups, one for each vote, and what was left out and why."""
    intake = Intake()
    lines = [Row(VOTES, i, i, row) for i, row in enumerate(rows, 1)]
    return list(FORMAT.parse(lines, intake)), intake.rows.dropped


def annotator_name(text: str) -> str:
    """A name as it is logged: NFKC, no control characters, one space between words.

    UserError for an empty or very long one.
    """
    plain = unicodedata.normalize("NFKC", text or "")
    name = " ".join("".join(c if c.isprintable() else " " for c in plain).split())
    if not name:
        raise UserError("name", text, "is empty", "Give any name, always the same")
    if len(name) > MAX_NAME:
        raise UserError("name", text, f"is longer than {MAX_NAME} characters", "Shorten it")
    return name
