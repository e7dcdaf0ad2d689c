"""What the parity check asks of a server, in the words that OpenAI's API and two engines have."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from align.config_errors import UserError
from align.config_files import check_url
from align.http_link import Links, header_token, named, reason


class NoAnswer(Exception):
    """Why a request has no answer."""


class Reply(NamedTuple):
    """A greedy answer. token_ids, prompt_tokens: None where the server does not say."""

    text: str
    finish: str | None
    token_ids: list[int] | None
    prompt_tokens: int | None


class Server:
    """An OpenAI-compatible server at http(s)://host[:port], with or without /v1.

    model: its name there; None takes the first that is served. api_key_env: the environment's
    variable with the key; unset: none is sent. UserError where it cannot be asked.
    """

    def __init__(
        self, url: str, *, model: str | None = None, api_key_env: str = "OPENAI_API_KEY",
        timeout_s: float = 60.0,
    ) -> None:  # fmt: skip
        check_url("url", url, fix="Write http://host:port", token=api_key_env)
        parts = urlsplit(url)
        path = parts.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1")
        self.root = urlunsplit(parts._replace(path=path, query="", fragment=""))
        key = header_token(api_key_env)
        auth = {"Authorization": f"Bearer {key}"} if key else {}
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", **auth}
        self._links = Links(self.root, timeout_s)
        self.model = self._served(url, model, api_key_env)

    def prompt_ids(self, way: str, messages: Sequence[Mapping[str, str]]) -> list[int] | None:
        """Ids of a prompt in one of `parity_check.WAYS`; None where the server does not say."""
        try:
            if way == "vllm":
                asked = {"model": self.model, "messages": messages, "add_generation_prompt": True}
                said = self.post("/tokenize", asked)
                return _ids(said.get("tokens")) if "count" in said else None
            if way == "token_ids":
                said = self.post("/v1/chat/completions", self._chat(messages, 1))
                return _ids(said.get("prompt_token_ids"))
            text = self.post("/apply-template", {"messages": messages}).get("prompt")
            if not isinstance(text, str):
                return None
            # As the chat itself reads it: BOS is added where the vocabulary asks for it.
            asked = {"content": text, "add_special": True, "parse_special": True}
            return _ids(self.post("/tokenize", asked).get("tokens"))
        except NoAnswer:
            return None

    def chat(self, messages: Sequence[Mapping[str, str]], most: int) -> Reply:
        """The greedy answer of at most so many tokens; NoAnswer where none comes.

        llama.cpp's ids, beside its log-probs, are not read: tokens of one character share an entry.
        """
        said = self.post("/v1/chat/completions", self._chat(messages, most))
        try:
            choice = said["choices"][0]
            text = choice["message"]["content"]
            finish = choice.get("finish_reason")
        except (LookupError, TypeError) as error:
            raise NoAnswer(f"no chat completion: {json.dumps(said)[:200]}") from error
        usage = said.get("usage")
        count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        count = count if isinstance(count, int) and count > 0 else None
        return Reply(text or "", finish, _ids(choice.get("token_ids")), count)

    def text_of(self, ids: list[int]) -> str | None:
        """Ids as the server's tokenizer spells them; None where it does not say."""
        try:
            said = self.post("/detokenize", {"model": self.model, "tokens": ids})
        except NoAnswer:
            return None
        text = said.get("prompt", said.get("content"))
        return text if isinstance(text, str) else None

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that a request is answered with; NoAnswer otherwise."""
        return self._ask("POST", path, json.dumps(body).encode("ascii"))

    def _chat(self, messages: Sequence[Mapping[str, str]], most: int) -> dict[str, Any]:
        return {
            "model": self.model, "messages": messages, "max_tokens": most, "temperature": 0,
            "top_p": 1, "n": 1, "return_token_ids": True,
        }  # fmt: skip

    def _ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        try:
            answer = self._links.ask(method, self.root + path, body, self._headers)
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(named(error)) from error
        if answer.status != 200:
            raise NoAnswer(f"{answer.status}: {reason(answer.body)[:200]}")
        try:
            value = json.loads(answer.body)
        except ValueError as error:
            raise NoAnswer(f"no JSON: {answer.body[:80]!r}") from error
        if not isinstance(value, dict):
            raise NoAnswer(f"no JSON object: {answer.body[:80]!r}")
        return value

    def _served(self, url: str, model: str | None, api_key_env: str) -> str:
        """The model's name on the server; UserError where there is no server or no such model."""
        try:
            said = self._ask("GET", "/v1/models").get("data")
            names = [entry["id"] for entry in said or ()]
        except NoAnswer as error:
            fix = f"Start the server, or check the address and the key in {api_key_env}"
            raise UserError("url", url, f"cannot be asked for its models: {error}", fix) from error
        except (LookupError, TypeError) as error:
            fix = "Give the address of an OpenAI-compatible server"
            raise UserError("url", url, "does not list its models as OpenAI's API", fix) from error
        if model is None and names:
            return names[0]
        if model is None or (names and model not in names):
            known = ", ".join(names) or "none"
            raise UserError("model", model, f"is not served; models are: {known}", "Name one")
        return model


def _ids(value: Any) -> list[int] | None:
    if not isinstance(value, list) or not value or not all(isinstance(i, int) for i in value):
        return None
    return value
