"""A chat model as a judge: which of two answers is better, or a grade from 1 to 10.

Zheng et al. 2023 (arXiv:2306.05685): pairs in both orders, verdicts in double brackets. A verdict
that cannot be read is counted, never guessed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align.evaluation.endpoint import Endpoint
from align.evaluation.judges.swapped import Shown, SwappedJudge
from align.evaluation.judges.wording import (
    GRADE,
    PAIR,
    conversation_text,
    fill,
    language_of,
    parse_grade,
    parse_verdict,
)
from align.records import Message


class _Asker:
    """Fills a template for each question, asks all at once, reads the answers."""

    def __init__(
        self, endpoint: Endpoint, templates: Mapping[str, str], language: str, own: str | None
    ) -> None:
        self.endpoint, self._templates = endpoint, templates
        self._language, self._own = language, own
        self.counts: Counter[str] = Counter(unanswered=0, unparsed=0)
        self.last_error: str | None = None

    def __call__(
        self,
        prompts: Sequence[Sequence[Message]],
        parts: Sequence[Mapping[str, str]],
        parse: Callable[[str | None], Any],
    ) -> list[Any]:
        questions = [
            [Message("user", fill(self._template(p), {"prompt": conversation_text(p), **texts}))]
            for p, texts in zip(prompts, parts, strict=True)
        ]
        found = []
        for answer in self.endpoint.ask(questions):
            value = parse(answer.text)
            if answer.text is None:
                self.counts["unanswered"] += 1
                self.last_error = answer.error
            elif value is None:
                self.counts["unparsed"] += 1
            found.append(value)
        return found

    def _template(self, prompt: Sequence[Message]) -> str:
        if self._own is not None:
            return self._own
        chosen = language_of(prompt) if self._language == "auto" else self._language
        return self._templates[chosen]

    def report(self) -> dict[str, Any]:
        """Failures by kind, the last reason without an answer, and the endpoint's counts."""
        return {**self.counts, "last_error": self.last_error, **self.endpoint.to_json()}


class LLMJudge(SwappedJudge):
    """A chat model that compares two answers, each pair in both orders.

    template: text with {prompt}, {a} and {b}; else the built-in one in the language of the prompt,
    or always in `language` ("zh" or "en"). An answer with a reason and without a verdict, and a
    request without an answer, make the pair a tie and are counted.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        template: str | None = None,
        language: str = "auto",
        name: str | None = None,
    ) -> None:
        super().__init__(lambda prompt, first, second: "", name or f"llm:{endpoint.model}")
        self._ask = _Asker(endpoint, PAIR, language, template)
        self._verdicts = self._compare

    def check(self) -> None:
        """UserError where the server does not answer: better now than after hours of sampling."""
        self._ask.endpoint.check("judge")

    def _compare(self, shown: list[Shown]) -> list[str | None]:
        parts = [{"a": first, "b": second} for _, first, second in shown]
        return self._ask([s[0] for s in shown], parts, parse_verdict)

    def report(self) -> dict[str, Any]:
        """Counts of pairs, flips, failures, tokens and cost."""
        return {"kind": "llm", **super().report(), **self._ask.report()}


class LLMGrader:
    """A chat model that grades single answers from 1 to 10.

    template: text with {prompt} and {answer}. A completion without a readable grade gets NaN.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        template: str | None = None,
        language: str = "auto",
        name: str | None = None,
    ) -> None:
        self.name = name or f"llm_grade:{endpoint.model}"
        self._ask = _Asker(endpoint, GRADE, language, template)
        self._graded = 0

    def check(self) -> None:
        """UserError where the server does not answer: better now than after hours of sampling."""
        self._ask.endpoint.check("judge")

    def score(
        self, prompts: Sequence[Sequence[Message]], completions: Sequence[str]
    ) -> list[float]:
        """Grades in [1, 10], NaN without one."""
        grades = self._ask(prompts, [{"answer": c} for c in completions], parse_grade)
        self._graded += len(grades)
        return [math.nan if g is None else g for g in grades]

    def report(self) -> dict[str, Any]:
        """Counts of grades, failures, tokens and cost."""
        return {"kind": "llm_grade", "graded": self._graded, **self._ask.report()}
