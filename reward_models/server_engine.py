"""The scorer behind the server, and texts that another trainer has already rendered.

OpenRLHF sends prompt and answer as one text in the chat template of its policy. Where that is the
reward model's own template the text is read as it stands, and the score equals that of the same
messages. Plain text becomes a user turn and its answer. A text in another template is refused:
read as plain text its marks would be scored too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from align.records import Message, RecordError
from reward_models.server_requests import Item, Query

# How the usual templates mark turns, beginnings and ends; the reward model's own come to these.
MARKS = re.compile(r"<\|[\w-]+\|>|<[｜▁\w]*｜>|\[/?INST\]|</?s>|<(?:start|end)_of_turn>|<[be]os>")
FIX = "Render with the reward model's own template, or send plain prompts, or use /score"


class ScorerEngine:
    """Encodes and scores the server's items with a Scorer; one thread at a time."""

    def __init__(self, scorer: Any, *, calibrated: bool = False) -> None:
        self.scorer, self.calibrated = scorer, calibrated

    def encode(self, item: Item | Query) -> tuple[list[int], bool]:
        """(token ids, whether the text was shortened). RecordError where it cannot be read."""
        if isinstance(item, Query):
            rendered = self._rendered(item)
            if rendered is not None:
                return self._fit(*rendered)
            item = self._plain(item)
        before = self.scorer.truncated
        ids = self.scorer.encode(item.prompt, item.completion)
        return ids, self.scorer.truncated > before

    def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """One score per row of token ids; heads averaged."""
        return self.scorer.reduce(self.scorer.score_ids(rows), calibrated=self.calibrated)

    def _rendered(self, query: Query) -> tuple[list[int], list[int]] | None:
        """(prompt ids, answer ids) of a text in the model's own template; None where it is none."""
        from align.chat_turns import encode, turn_of

        tokenizer = self.scorer.tokenizer
        turn = turn_of(tokenizer)
        tail, text = turn.tail.rstrip(), query.text
        if not tail:
            return None
        if query.prompt is not None and tail not in query.prompt:
            return None
        if query.prompt is not None and text.startswith(query.prompt):
            at = len(query.prompt)
        elif (found := text.rfind(turn.tail)) >= 0:
            at = found + len(turn.tail)
        else:
            return None
        start = text[:at]
        body = self._answer(text[at:], turn.end)
        head, full = encode(tokenizer, start), encode(tokenizer, start + body + turn.end)
        joined = full[: len(head)] == head  # else a token reaches over the border
        answer = full[len(head) :] if joined else encode(tokenizer, body + turn.end)
        return head, answer if turn.end else [*answer, tokenizer.eos_token_id]

    def _plain(self, query: Query) -> Item:
        if query.prompt is None:
            reason = "has no answer in this model's chat template, and there are no prompts"
            raise RecordError(f"{reason}. {FIX}", code="no_answer")
        if not query.text.startswith(query.prompt):
            raise RecordError(f"does not begin with its prompt. {FIX}", code="no_answer")
        marks = MARKS.search(query.prompt)
        if marks:
            reason = f"is in another chat template than this model's: it has {marks[0]}"
            raise RecordError(f"{reason}. {FIX}", code="other_template")
        answer = self._answer(query.text[len(query.prompt) :], "")
        return Item((Message("user", query.prompt),), answer)

    def _answer(self, text: str, end: str) -> str:
        """The answer without what ends it: the template's mark, then EOS and padding."""
        if end and end in text:
            return text[: text.index(end)]
        tokenizer = self.scorer.tokenizer
        own = [t for t in (tokenizer.eos_token, tokenizer.pad_token) if t]
        while True:
            bare = text.rstrip()
            last = next((t for t in own if bare.endswith(t)), None)
            if last is None:
                found = [m for m in MARKS.finditer(bare) if m.end() == len(bare)]
                last = found[0][0] if found else None
            if last is None:
                return text
            text = bare.removesuffix(last)

    def _fit(self, head: list[int], tail: list[int]) -> tuple[list[int], bool]:
        """Cut as the scorer cuts messages: the end-of-turn token stays."""
        from align.chat import header_len
        from align.data.fit import fit_group

        scorer = self.scorer
        fitted = fit_group(
            head,
            [tail],
            max_length=scorer.max_length,
            max_prompt_length=scorer.contract.max_prompt_length,
            truncation=scorer.contract.truncation,
            header_len=header_len(scorer.tokenizer),
        )
        if isinstance(fitted, str):
            reason = f"no room for a completion in {scorer.max_length} tokens"
            raise RecordError(reason, code=fitted)
        kept = fitted.completions[0]
        cut = fitted.prompt_truncated or len(kept) < len(tail)
        return fitted.prompt_ids + kept[:-1] + tail[-1:], cut
