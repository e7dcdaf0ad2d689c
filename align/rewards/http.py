"""A reward model on another machine, or in another process, asked over HTTP.

The client of ``python -m reward_models serve``. Messages and texts are sent, and the server renders
them with its own template.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from align.config_errors import UserError
from align.config_files import check_url
from align.http_link import (
    Answer,
    Links,
    address,
    header_token,
    named,
    reason,
    retry_after,
)
from align.records import Message
from align.rewards.base import RewardError, checked

TOKEN = "ALIGN_REWARD_TOKEN"
MODEL = "Reward-Model"  # header of answers: what gave the scores
TEXTS = 64  # in one request
ANSWER_S = 180.0
ATTEMPTS = 16
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
MAX_ASKED_WAIT_S = 120.0  # a server that asks for more is tried again after this
# No attempt begins later: other ranks wait meanwhile, and give up after ten minutes.
PATIENCE_S = 360.0
QUIET_S = 4.0  # of waiting, before a word is said about it
RETRIED = {408, 425, 429, *range(500, 600)}


class HttpReward:
    """Scores with a reward server; scores come back in the order of the texts, or not at all.

    path: http(s)://host:port, to which /score is added, or a whole URL that takes
    ``{"items": [{"prompt", "completion"}, …]}`` and answers ``{"scores": [number, …]}``; with
    ``?model=NAME`` the server of ``serve`` refuses where it serves another model.
    calibrated: what scores must be, where the server says it; None: either.
    token: sent as ``Authorization: Bearer``; by default ALIGN_REWARD_TOKEN_<i> of the environment
    where the reward is the i-th, else ALIGN_REWARD_TOKEN. texts: in one request. timeout: seconds
    for its answer. attempts: of one request, with waits of FIRST_WAIT_S · 2^k between them, half of
    it random, or what Retry-After says; none begins after PATIENCE_S.
    model: the server's name for what it serves; another one in a later answer is a RewardError.
    Raises UserError, naming field, where the URL is none or the server does not score a first text;
    RewardError naming URL, attempts and last cause where it fails later.
    One thread at a time; every process has its own connection.
    """

    def __init__(
        self,
        path: str,
        *,
        field: str = "rewards.path",
        index: int | None = None,
        calibrated: bool | None = None,
        token: str | None = None,
        attempts: int = ATTEMPTS,
        texts: int = TEXTS,
        timeout: float = ANSWER_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        check_url(field, path)
        self.url, self._health = address(path)
        self.name = urlsplit(path).netloc
        self.attempts, self.texts, self._sleep = attempts, texts, sleep
        self._token = token if token is not None else _environment_token(index)
        self._links = Links(self.url, timeout)
        self._chance = random.Random(os.urandom(8))  # the seeded generator is the training's
        self.model: str | None = None
        self._check_unit(field.removesuffix("path") + "calibrated", calibrated)
        try:
            self._ask([[Message("user", "?")]], ["!"], attempts=min(attempts, 3))
        except RewardError as error:
            fix = "Start it with python -m reward_models serve, then start this run"
            if isinstance(error, _Refusal):
                fix = _FIXES.get(error.status, "Look at the address")
            raise UserError(field, path, f"does not score: {error}", fix) from error

    def __call__(
        self, prompts: list[list[Message]], completions: list[str], finished: list[bool]
    ) -> list[float]:
        """Return the server's scores, checked."""
        scores: list[Any] = []
        for start in range(0, len(completions), self.texts):
            part = slice(start, start + self.texts)
            scores += self._ask(prompts[part], completions[part], start=start)
        return checked(self.name, scores, completions)

    def told(self) -> dict[str, Any]:
        """What the server's /health says; {} where there is none, or nothing that can be read."""
        if self._health is None:
            return {}
        try:
            answer = self._links.ask("GET", self._health, None, self._headers())
            value = json.loads(answer.body) if answer.status == 200 else {}
        except (OSError, http.client.HTTPException, ValueError):
            return {}  # the first text will show what is wrong
        return value if isinstance(value, dict) else {}

    def _check_unit(self, field: str, calibrated: bool | None) -> None:
        """The unit of scores is part of a configuration: config.yaml must not say another."""
        said = self.told().get("calibrated") if calibrated is not None else None
        if calibrated and said is None:
            why = f"cannot be checked: {self.url} does not say what its scores are"
            raise UserError(field, True, why, "Use false, or a server of this version")
        if said is not None and said != calibrated:
            why = f"is not what {self.url} serves: {'calibrated' if said else 'raw'} scores"
            fix = f"Change it, or start the server with{'out' if said else ''} --calibrated"
            raise UserError(field, calibrated, why, fix)

    def _ask(
        self,
        prompts: list[list[Message]],
        completions: list[str],
        *,
        start: int = 0,
        attempts: int | None = None,
    ) -> list[Any]:
        """The scores of one request; halves of it where the server finds it too large."""
        items = [
            {"prompt": [m.to_json() for m in prompt], "completion": completion}
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        body = json.dumps({"items": items}).encode("ascii")
        last = start + len(items) - 1
        about = f"completion {start}" if last == start else f"completions {start} to {last}"
        try:
            answer = self._post(body, about, attempts or self.attempts)
        except _Refusal as error:
            if error.status != 413 or len(items) == 1:
                raise
            half = len(items) // 2
            return [
                *self._ask(prompts[:half], completions[:half], start=start),
                *self._ask(prompts[half:], completions[half:], start=start + half),
            ]
        self._same_model(answer.headers.get(MODEL))
        return self._scores(answer.body, len(items), start, about)

    def _same_model(self, found: str | None) -> None:
        """A reward that changes in the middle of a run is no reward."""
        if self.model is None:
            self.model = found
        elif found != self.model:
            raise RewardError(
                f"{self.url} now serves {found or 'a model without a name'}; this run began with "
                f"{self.model}. Serve that one again and resume"
            )

    def _scores(self, answer: bytes, count: int, start: int, about: str) -> list[Any]:
        try:
            value = json.loads(answer)
        except ValueError as error:
            raise RewardError(f"{self.url} sent no JSON for {about}: {error}") from None
        scores = value.get("scores") if isinstance(value, dict) else None
        if not isinstance(scores, list):
            shown = answer[:80].decode("utf-8", "replace")
            raise RewardError(f"{self.url} sent no list of scores for {about}: {shown!r}")
        if len(scores) != count:
            raise RewardError(f"{self.url} sent {len(scores)} scores for {about}, {count} texts")
        for i, score in enumerate(scores):
            if not _is_finite(score):
                raise RewardError(
                    f"{self.url} sent {score!r} for completion {start + i}; it must be a finite "
                    "number"
                )
        return scores

    def _post(self, body: bytes, about: str, attempts: int) -> Answer:
        """The answer 200; asked again where another attempt may help."""
        headers = self._headers() | {"Content-Type": "application/json"}
        cause, waited, until = "", 0.0, time.monotonic() + PATIENCE_S
        for attempt in range(1, attempts + 1):
            wait = min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S)
            wait *= self._chance.uniform(0.5, 1.0)  # ranks do not come back together
            try:
                answer = self._links.ask("POST", self.url, body, headers)
            except (OSError, http.client.HTTPException) as error:
                cause = named(error)
            else:
                if answer.status == 200:
                    return answer
                cause = f"{answer.status}: {reason(answer.body)}"
                if answer.status not in RETRIED:
                    raise _Refusal(answer.status, f"{self.url} refuses {about}, {cause}")
                asked = min(retry_after(answer.headers), MAX_ASKED_WAIT_S)
                wait = max(wait, asked * self._chance.uniform(1.0, 1.25))
            if attempt == attempts or time.monotonic() + wait > until:
                break
            waited += wait
            if waited > QUIET_S:
                self._say(f"{cause}; asking again in {wait:.0f} s")
            self._sleep(wait)
        raise RewardError(
            f"{self.url} gave no scores for {about} in {attempt} attempts; the last ended with "
            f"{cause}"
        )

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _say(self, text: str) -> None:
        print(f"[reward] {self.name}: {text}", file=sys.stderr, flush=True)


class _Refusal(RewardError):
    """The server says no, and would say it again."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


_FIXES = {
    401: f"Set {TOKEN} to the server's token",
    403: f"Set {TOKEN} to the server's token",
    409: "Without ?model= in the URL any model will do",
}


def _environment_token(index: int | None) -> str | None:
    """The token that the environment has for the reward at this place of the list."""
    for name in (f"{TOKEN}_{index}", TOKEN):
        if token := header_token(name):
            return token
    return None


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max
