"""The answers that people compare: sampled from models, asked of servers, or read from a file.

Those to a file of prompts are made once, before the page opens, and kept in `answers.jsonl`: nobody
waits for a model, and a server that starts again asks nothing twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from align.config_errors import UserError
from align.evaluation.sampling import Decoding
from align.jsonl import RecordError, read_jsonl, write_jsonl
from align.records import Message, Prompt, parse_messages
from align.rollout.base import rank_seed

FILE = "answers.jsonl"
_AT_ONCE = 64  # prompts between two writes of the file


@dataclass(frozen=True)
class Given:
    """What one model answered. latency_s: seconds; of several at once, the mean."""

    text: str | None
    latency_s: float | None = None
    tokens: int | None = None


class Answerer(Protocol):
    """A model that answers conversations."""

    name: str

    def answer(self, conversations: Sequence[Sequence[Message]], seed: int) -> list[Given]:
        """One answer for each conversation, None as its text where there is none."""
        ...


@dataclass
class LocalModel:
    """A model folder, loaded at the first question."""

    name: str
    path: Path
    decoding: Decoding
    chat_template: str | None = None
    _loaded: Any = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, conversations: Sequence[Sequence[Message]], seed: int) -> list[Given]:
        """Sample with the arena's decoding; a conversation that is too long has no answer."""
        from align.chat import render_prompt
        from align.checkpoints import load_causal_lm, max_positions
        from align.evaluation.sampling import sample

        with self._lock:
            if self._loaded is None:
                self._loaded = load_causal_lm(self.path, chat_template=self.chat_template)
            model, tokenizer = self._loaded
            room = (max_positions(model) or 10**9) - self.decoding.max_new_tokens
            fits = [len(render_prompt(tokenizer, list(c))) <= room for c in conversations]
            prompts = [Prompt(tuple(c)) for c, ok in zip(conversations, fits, strict=True) if ok]
            if not prompts:
                return [Given(None) for _ in conversations]
            start = time.monotonic()
            out = sample(model, tokenizer, prompts, [seed], self.decoding)
            spent = round((time.monotonic() - start) / len(prompts), 3)
        made = iter(zip(out.texts, out.completions, strict=True))
        given = []
        for ok in fits:
            text, ids = next(made) if ok else (None, ())
            given.append(Given(text, spent, len(ids)) if ok else Given(None))
        return given

    def unload(self) -> None:
        """Free the model's memory."""
        with self._lock:
            self._loaded = None


@dataclass
class RemoteModel:
    """A model of a chat server."""

    name: str
    endpoint: Any

    def answer(self, conversations: Sequence[Sequence[Message]], seed: int) -> list[Given]:
        """Ask the server; what it refuses has no answer."""
        start = time.monotonic()
        found = self.endpoint.ask([list(c) for c in conversations])
        spent = round((time.monotonic() - start) / max(1, len(found)), 3)
        return [Given(a.text, spent) for a in found]

    def unload(self) -> None:
        """Nothing to free."""


def make_models(
    specs: Sequence[str], decoding: Decoding, chat_template: str | None = None
) -> list[Any]:
    """Answerers for model folders, run directories and `http://host:port/v1#name`.

    UserError for one that is not there; nothing is loaded.
    """
    from align.checkpoints import find_model
    from align.evaluation.compare import run_names

    local = [s for s in specs if not _is_url(s)]
    paths = [find_model(s, "models") for s in local]
    names = dict(zip(local, run_names(paths), strict=True)) if paths else {}
    made: list[Any] = []
    for spec in specs:
        if not _is_url(spec):
            path = paths[local.index(spec)]
            made.append(LocalModel(names[spec], path, decoding, chat_template))
            continue
        url, _, name = spec.partition("#")
        if not name:
            fix = "Write http://host:port/v1#name"
            raise UserError("models", spec, "does not say which of the server's models", fix)
        from align.evaluation.endpoint import Endpoint

        endpoint = Endpoint(
            url, name, max_tokens=decoding.max_new_tokens, temperature=decoding.temperature,
            field="models",
        )  # fmt: skip
        made.append(RemoteModel(name, endpoint))
    called = [m.name for m in made]
    twice = sorted({n for n in called if called.count(n) > 1})
    if twice:
        raise UserError("models", twice, "stand for two models each", "Give each model once")
    return made


def _is_url(spec: str) -> bool:
    return spec.startswith(("http://", "https://"))


def collect(
    models: Sequence[Any],
    prompts: Sequence[Prompt],
    output: Path,
    *,
    seed: int = 0,
    keep_loaded: bool = False,
    say: Callable[[str], None] = print,
) -> dict[tuple[str, str], str | None]:
    """Every model's answer to every prompt, by (prompt_id, model); what is on disk stays.

    Each block of prompts has a seed of its own, so that a start after a crash gives the same texts,
    and each model: with the same random numbers two related models would often say the same.
    """
    file = output / FILE
    rows = {(row["prompt_id"], row["model"]): row for row in _rows(file)} if file.is_file() else {}
    for number, model in enumerate(models):
        for start in range(0, len(prompts), _AT_ONCE):
            block = prompts[start : start + _AT_ONCE]
            if all((p.prompt_id, model.name) in rows for p in block):
                continue
            say(f"arena: {model.name} answers prompts {start + 1} to {start + len(block)}")
            found = model.answer([p.messages for p in block], rank_seed(seed + start, number))
            for prompt, given in zip(block, found, strict=True):
                key = (prompt.prompt_id, model.name)
                rows[key] = {
                    "prompt_id": prompt.prompt_id, "model": model.name, "text": given.text,
                    "latency_s": given.latency_s, "tokens": given.tokens,
                }  # fmt: skip
            write_jsonl(file, rows.values())
        if not keep_loaded:
            model.unload()
    return {key: row["text"] for key, row in rows.items()}


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        return [row for _, row in read_jsonl(file)]
    except RecordError as error:
        raise UserError("output", str(file), f"is damaged: {error}", "Remove it") from None


def read_answers(
    path: str | Path,
) -> tuple[list[Prompt], dict[tuple[str, str], str | None], list[str]]:
    """(prompts, answers by (prompt_id, model), model names) of a file of samples.

    Reads what compare_runs writes: {"prompt", "run", "completion"} rows ("model" and "text" do as
    well); of several seeds the first counts. UserError where there are not two models.
    """
    if not Path(path).is_file():
        raise UserError("--answers", str(path), "does not exist", "Check the path")
    prompts: dict[str, Prompt] = {}
    answers: dict[tuple[str, str], str | None] = {}
    try:
        for line, row in read_jsonl(path):
            prompt, name, text = _answer_row(row, f"{path}:{line}")
            prompts.setdefault(prompt.prompt_id, prompt)
            answers.setdefault((prompt.prompt_id, name), text)
    except RecordError as error:
        fix = 'Write {"prompt", "run", "completion"} rows, as compare_runs does'
        raise UserError("--answers", str(path), f"cannot be read: {error}", fix) from None
    names = sorted({name for _, name in answers})
    if len(names) < 2:
        reason = f"has answers of {len(names)} model(s); two are needed"
        raise UserError("--answers", str(path), reason, "Give compare_runs' samples.jsonl")
    return list(prompts.values()), answers, names


def _answer_row(row: Any, where: str) -> tuple[Prompt, str, str]:
    if not isinstance(row, dict):
        raise RecordError("expected an object", where=where)
    name, text = row.get("run", row.get("model")), row.get("completion", row.get("text"))
    if not row.get("prompt") or not isinstance(name, str) or not isinstance(text, str):
        raise RecordError("no prompt, run or completion", code="missing_field", where=where)
    return Prompt(parse_messages(row["prompt"])), name, text
