"""What one line of a data file is: messages, prompts, candidates, judgements.

Plain frozen dataclasses under every stage. Nothing here imports torch: ``--help`` stays fast. A
record that cannot be understood raises ``RecordError``. Files are ``align.jsonl``'s matter.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from align.jsonl import (
    Counts,
    RecordError,
    as_object,
    is_finite,
    list_field,
    meta_field,
    name_field,
    read_jsonl,
    read_rows,
    short,
    write_jsonl,
)

__all__ = [
    "Candidate", "Counts", "Example", "Judgement", "Message", "PairTarget", "PreferenceGroup",
    "Prompt", "RecordError", "messages_json", "normalise_text", "parse_messages", "prompt_key",
    "read_jsonl", "read_rows", "short", "write_jsonl",
]  # fmt: skip

ROLES = ("system", "user", "assistant", "tool")
# The spellings that ShareGPT, OASST, Cohere, Gemini and function-calling exports use.
ROLE_ALIASES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "developer": "system",
    "function": "tool",
    "observation": "tool",
}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. role: one of ``ROLES``."""

    role: str
    content: str

    def to_json(self) -> dict[str, str]:
        """``{"role", "content"}``, which is also what chat templates take."""
        return {"role": self.role, "content": self.content}

    @classmethod
    def from_json(cls, obj: Any) -> Message:
        """From ``{"role", "content"}`` or ShareGPT's ``{"from", "value"}``."""
        if not isinstance(obj, dict):
            raise RecordError(f"a message must be an object, got {short(obj)}", code="bad_message")
        role, content = obj.get("role", obj.get("from")), obj.get("content", obj.get("value"))
        role = ROLE_ALIASES.get(str(role).strip().lower(), str(role).strip().lower())
        if role not in ROLES:
            raise RecordError(
                f"unknown role in {short(obj)}; use one of {', '.join(ROLES)}", code="bad_role"
            )
        if isinstance(content, list):  # OpenAI content parts
            if not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
                raise RecordError(f"only text parts are supported: {short(obj)}", code="not_text")
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            raise RecordError(f"message without text content: {short(obj)}", code="not_text")
        return cls(role, content)


def parse_messages(value: Any, role: str = "user") -> tuple[Message, ...]:
    """Messages from a string (one turn of ``role``), one message, or a list of messages."""
    if isinstance(value, str):
        return (Message(role, value),)
    if isinstance(value, Message):
        return (value,)
    if isinstance(value, dict):
        return (Message.from_json(value),)
    if isinstance(value, (list, tuple)):
        return tuple(v if isinstance(v, Message) else Message.from_json(v) for v in value)
    raise RecordError(f"expected text or a message list, got {short(value)}", code="bad_message")


def messages_json(messages: Iterable[Message]) -> list[dict[str, str]]:
    """Message list as plain dicts."""
    return [m.to_json() for m in messages]


@dataclass(frozen=True)
class Example:
    """A conversation to imitate (SFT)."""

    messages: tuple[Message, ...]
    meta: dict[str, Any] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        """``{"messages", "meta"}``."""
        return {"messages": messages_json(self.messages), "meta": self.meta}

    @classmethod
    def from_json(cls, obj: Any) -> Example:
        """From ``{"messages", "meta"?}``."""
        obj = as_object(obj, "messages")
        return cls(_messages(obj, "messages"), meta_field(obj))


@dataclass(frozen=True)
class Prompt:
    """What the policy is asked. prompt_id: by default ``prompt_key(messages)``."""

    messages: tuple[Message, ...]
    prompt_id: str = ""
    meta: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.prompt_id:
            object.__setattr__(self, "prompt_id", prompt_key(self.messages))

    def to_json(self) -> dict[str, Any]:
        """``{"prompt", "prompt_id", "meta"}``."""
        prompt = messages_json(self.messages)
        return {"prompt": prompt, "prompt_id": self.prompt_id, "meta": self.meta}

    @classmethod
    def from_json(cls, obj: Any) -> Prompt:
        """From ``{"prompt": text | messages, "prompt_id"?, "meta"?}``."""
        obj = as_object(obj, "prompt")
        return cls(_messages(obj, "prompt"), str(obj.get("prompt_id") or ""), meta_field(obj))


@dataclass(frozen=True)
class Candidate:
    """One answer to a prompt.

    content: text, or messages when the answer itself has several turns.
    """

    id: str
    content: str | tuple[Message, ...]
    model: str | None = None

    @property
    def text(self) -> str:
        """The answer as one string; turns are joined by blank lines."""
        if isinstance(self.content, str):
            return self.content
        return "\n\n".join(m.content for m in self.content)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The answer as messages."""
        return parse_messages(self.content, role="assistant")

    def to_json(self) -> dict[str, Any]:
        """``{"id", "content", "model"}``."""
        content = self.content if isinstance(self.content, str) else messages_json(self.content)
        return {"id": self.id, "content": content, "model": self.model}

    @classmethod
    def from_json(cls, obj: Any) -> Candidate:
        """From ``{"id", "content", "model"?}``."""
        obj = as_object(obj, "id", "content")
        content = obj["content"]
        if not isinstance(content, str):
            content = parse_messages(content, role="assistant")
        return cls(str(obj["id"]), content, name_field(obj, "model"))


@dataclass(frozen=True)
class Judgement:
    """One annotator's statement about the candidates of a group.

    kind and value: "pair" {"winner": id, "loser": id, "p"?: probability in (0.5, 1]} or {"tie":
    [id, id]}; "rank" {id: rank, lower is better, or None}; "score" {id: float, higher is better}.
    strength: how sure or how far apart, in the source's own unit. suspect: why it is doubted.
    """

    annotator: str | None
    kind: Literal["pair", "rank", "score"]
    value: dict[str, Any] = field(hash=False)
    strength: float | None = None
    source: str = ""
    suspect: str | None = None

    def __post_init__(self) -> None:
        _check_judgement(self.kind, self.value)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the candidates that this judgement speaks about."""
        if self.kind != "pair":
            return tuple(self.value)
        if "tie" in self.value:
            return tuple(self.value["tie"])
        return (self.value["winner"], self.value["loser"])

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, obj: Any) -> Judgement:
        """From the fields; annotator, strength, source and suspect may be missing."""
        obj = as_object(obj, "kind", "value")
        return cls(
            annotator=None if obj.get("annotator") is None else str(obj["annotator"]),
            kind=obj["kind"],
            value=obj["value"],
            strength=obj.get("strength"),
            source=obj.get("source") or "",
            suspect=obj.get("suspect"),
        )


@dataclass(frozen=True)
class PreferenceGroup:
    """A prompt, its candidates, and every raw judgement about them."""

    group_id: str
    prompt: tuple[Message, ...]
    candidates: tuple[Candidate, ...]
    judgements: tuple[Judgement, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        ids = {c.id for c in self.candidates}
        if len(ids) != len(self.candidates):
            found = [c.id for c in self.candidates]
            raise RecordError(f"candidate ids repeat: {found}", code="duplicate_candidate_id")
        if not all(ids.issuperset(j.ids) for j in self.judgements):
            unknown = sorted({i for j in self.judgements for i in j.ids} - ids)
            raise RecordError(f"judgement about unknown {unknown}", code="unknown_candidate")

    def index(self, candidate_id: str) -> int:
        """Position of a candidate."""
        return next(i for i, c in enumerate(self.candidates) if c.id == candidate_id)

    def to_json(self) -> dict[str, Any]:
        """The canonical record, one JSONL line per group."""
        return {
            "group_id": self.group_id,
            "prompt": messages_json(self.prompt),
            "candidates": [c.to_json() for c in self.candidates],
            "judgements": [j.to_json() for j in self.judgements],
            "meta": self.meta,
        }

    @classmethod
    def from_json(cls, obj: Any) -> PreferenceGroup:
        """From the canonical record; a missing group_id becomes the prompt key."""
        obj = as_object(obj, "prompt", "candidates")
        prompt = _messages(obj, "prompt")
        return cls(
            group_id=str(obj.get("group_id") or prompt_key(prompt)),
            prompt=prompt,
            candidates=tuple(Candidate.from_json(c) for c in list_field(obj, "candidates")),
            judgements=tuple(Judgement.from_json(j) for j in list_field(obj, "judgements")),
            meta=meta_field(obj),
        )


@dataclass(frozen=True)
class PairTarget:
    """A comparison to train on.

    a, b: indices into a group's candidates. target: P(a beats b) in [0, 1]. weight: ≥ 0.
    margin: how far apart, in the source's unit, or None.
    """

    a: int
    b: int
    target: float = 1.0
    weight: float = 1.0
    margin: float | None = None

    def __post_init__(self) -> None:
        if self.a == self.b or min(self.a, self.b) < 0:
            raise RecordError(f"a pair needs two candidates, got {self.a} and {self.b}")
        if not 0.0 <= self.target <= 1.0:
            raise RecordError(f"target {self.target} is not a probability")
        if not (is_finite(self.weight) and self.weight >= 0.0):
            raise RecordError(f"weight {self.weight} is not a finite number ≥ 0")

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, obj: Any) -> PairTarget:
        """From the fields."""
        obj = as_object(obj, "a", "b")
        return cls(obj["a"], obj["b"], obj.get("target", 1.0), obj.get("weight", 1.0),
                   obj.get("margin"))  # fmt: skip


def normalise_text(text: str) -> str:
    """NFKC, case-folded, runs of white space as one space: equal for texts that read the same."""
    if text.isascii():
        return " ".join(text.lower().split())
    for _ in range(4):  # case folding can undo NFKC and the reverse; this reaches the fixed point
        folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        if folded == text:
            break
        text = folded
    return text


def prompt_key(messages: Sequence[Message]) -> str:
    """SHA-256 of the normalised roles and texts; splits and de-duplication go by it."""
    # U+001E and U+001F are white space to normalise_text, so they cannot occur inside a part.
    text = "\x1e".join(f"{m.role}\x1f{normalise_text(m.content)}" for m in messages)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _messages(obj: dict[str, Any], name: str) -> tuple[Message, ...]:
    messages = parse_messages(obj[name])
    if not messages:
        raise RecordError(f"{name} has no messages", code="empty_prompt")
    return messages


def _check_judgement(kind: Any, value: Any) -> None:
    if kind not in ("pair", "rank", "score"):
        raise RecordError(f"judgement kind {kind!r} is not pair, rank or score", code="bad_kind")
    if not isinstance(value, dict) or not value:
        raise RecordError(f"{kind} judgement value {short(value)} is not an object")
    if kind == "pair":
        tie = value.get("tie")
        ids = tie if "tie" in value else [value.get("winner"), value.get("loser")]
        if not (isinstance(ids, (list, tuple)) and len(ids) == 2 and isinstance(ids[0], str)
                and isinstance(ids[1], str) and ids[0] != ids[1]):  # fmt: skip
            raise RecordError(f"pair judgement {short(value)} does not name two candidates")
        p = value.get("p", 1.0)
        if not isinstance(p, (int, float)) or not 0.5 < p <= 1.0 or ("p" in value and tie):
            raise RecordError(f"pair judgement {short(value)}: p is not within (0.5, 1]")
        return
    for number in value.values():
        if not (is_finite(number) or (number is None and kind == "rank")):
            reason = f"has {short(number)} where a finite number is expected"
            raise RecordError(f"{kind} judgement {short(value)} {reason}")
