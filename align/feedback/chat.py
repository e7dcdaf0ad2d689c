"""A conversation with one model, thumbs up or down for its answers, and the log of both."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import Any

from align.config_errors import UserError
from align.feedback.answers import Given
from align.feedback.records import Completion, FeedbackLog, FeedbackRecord
from align.records import Message
from reward_models.annotations.feedback import SINGLE_VOTES

FEEDBACK = "feedback.jsonl"


class Chat:
    """One person's conversation; an answer is logged when it is judged or no longer can be.

    Without consent nothing is logged, or with `keeps_votes` the vote without any text. source: what
    the log calls this server.
    """

    def __init__(
        self, model: Any, log: FeedbackLog, annotator: str | None = None, *,
        consent: bool = False, keeps_votes: bool = False, seed: int = 0, source: str = "chat",
    ) -> None:  # fmt: skip
        """model: an `align.feedback.answers.Answerer`."""
        self.messages: list[Message] = []
        self.session = uuid.uuid4().hex
        self._model, self._log, self._annotator = model, log, annotator
        self._consent, self._keeps, self._seed, self._source = consent, keeps_votes, seed, source
        self._pending: Given | None = None
        self._lock = threading.RLock()

    @property
    def can_vote(self) -> bool:
        """Whether the last answer is still to be judged."""
        return self._pending is not None

    def say(self, text: str) -> str:
        """Ask and return the answer; UserError for an empty text or where there is no answer."""
        if not text.strip():
            raise UserError("message", text, "is empty", "Write something")
        with self._lock:
            self._settle(None)
            asked = [*self.messages, Message("user", text.strip())]
            (given,) = self._model.answer([asked], self._seed + len(self.messages))
            if given.text is None:
                reason = "got no answer: the conversation is too long, or the server refused it"
                raise UserError("message", text[:80], reason, "Start a new one")
            self.messages = [*asked, Message("assistant", given.text)]
            self._pending = given
            return given.text

    def vote(self, vote: str) -> bool:
        """Judge the last answer; False where there is none that has not been judged."""
        if vote not in SINGLE_VOTES:
            raise UserError("vote", vote, "is not known", f"Use one of {', '.join(SINGLE_VOTES)}")
        with self._lock:
            return self._settle(vote)

    def reset(self) -> None:
        """Begin a new conversation."""
        with self._lock:
            self._settle(None)
            self.messages, self.session = [], uuid.uuid4().hex

    def _settle(self, vote: str | None) -> bool:
        given, self._pending = self._pending, None
        if given is None:
            return False
        record = FeedbackRecord(
            prompt=tuple(self.messages[:-1]),
            completions=(Completion(self._model.name, given.text),),
            vote=vote,
            consent=self._consent,
            source=self._source,
            annotator=self._annotator,
            session=self.session,
            latency_s=given.latency_s,
            tokens=given.tokens,
        )
        if self._consent:
            self._log.write(record)
        elif self._keeps and vote is not None:
            self._log.write(record.without_text())
        return True


def open_log(output: str | Path) -> FeedbackLog:
    """The log of the chat page in an output folder."""
    return FeedbackLog(Path(output) / FEEDBACK)
