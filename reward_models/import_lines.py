"""The lines that an import writes, each text escaped once for all the lines it stands in.

What comes out is what ``json.dumps`` with ``ensure_ascii=False`` gives for the same record;
escaping once and joining the pieces takes a third of the time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from align.json_text import string
from align.records import Judgement, Message, PairTarget, PreferenceGroup

# Made once: json.dumps makes an encoder at every call. Nothing that was read is circular.
_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False).encode
# Of names, which come again and again: ids, models, annotators, fields.
_word = lru_cache(maxsize=4096)(string)


def json_line(record: Any) -> bytes:
    """A record as one line of a JSONL file."""
    return _checked(_encode(record) + b"\n")


class GroupLines:
    """The lines of one group: its canonical record, and the pairs made of it."""

    def __init__(self, group: PreferenceGroup):
        """Escapes the texts."""
        self._group = group
        self._id, self._prompt = string(group.group_id), _messages(group.prompt)
        self._answers = [
            string(c.content) if isinstance(c.content, str) else _messages(c.content)
            for c in group.candidates
        ]

    def record(self) -> bytes:
        """The line of preferences.jsonl: what ``group.to_json()`` is in JSON.

        ValueError where meta or a judgement holds NaN or infinity.
        """
        group = self._group
        candidates = [
            b'{"id": %b, "content": %b, "model": %b}' % (_word(c.id), text, _value(c.model))
            for c, text in zip(group.candidates, self._answers, strict=True)
        ]
        judgements = [_judgement(j) for j in group.judgements]
        return _checked(
            b'{"group_id": %b, "prompt": %b, "candidates": [%b], "judgements": [%b], "meta": %b}\n'
            % (
                self._id,
                self._prompt,
                b", ".join(candidates),
                b", ".join(judgements),
                _object(group.meta),
            )
        )

    def pairs(self, made: Sequence[PairTarget], split: str) -> bytes:
        """Their lines of pairs.jsonl, for other trainers: prompt, chosen, rejected and how sure."""
        answers = [
            b'[{"role": "assistant", "content": %b}]' % text if isinstance(c.content, str) else text
            for c, text in zip(self._group.candidates, self._answers, strict=True)
        ]
        lines = [
            b'{"prompt": %b, "chosen": %b, "rejected": %b, "target": %b, "weight": %b, '
            b'"margin": %b, "group_id": %b, "split": %b}\n'
            % (
                self._prompt,
                answers[p.a],
                answers[p.b],
                _value(p.target),
                _value(p.weight),
                _value(p.margin),
                self._id,
                _word(split),
            )
            for p in made
        ]
        return _checked(b"".join(lines))


def _messages(messages: Iterable[Message]) -> bytes:
    turns = [b'{"role": %b, "content": %b}' % (_word(m.role), string(m.content)) for m in messages]
    return b"[%b]" % b", ".join(turns)


def _judgement(made: Judgement) -> bytes:
    return (
        b'{"annotator": %b, "kind": %b, "value": %b, "strength": %b, "source": %b, "suspect": %b}'
        % (
            _name(made.annotator),
            _word(made.kind),
            _object(made.value),
            _value(made.strength),
            _word(made.source),
            _name(made.suspect),
        )
    )


def _object(fields: dict[str, Any]) -> bytes:
    if not set(map(type, fields)) <= {str}:
        return _encode(fields)
    return b"{%b}" % b", ".join([b"%b: %b" % (_word(k), _value(v)) for k, v in fields.items()])


def _name(text: str | None) -> bytes:
    return b"null" if text is None else _word(text)


def _value(value: Any) -> bytes:
    kind = type(value)
    if value is None:
        return b"null"
    if kind is str:
        return _word(value) if len(value) < 64 else string(value)
    if kind is int or (kind is float and -math.inf < value < math.inf):
        return b"%a" % value
    return _encode(value)


def _encode(value: Any) -> bytes:
    return _json(value).encode("utf-8", "surrogatepass")


def _checked(lines: bytes) -> bytes:
    """The lines, or their escaped form where a lone surrogate cannot be written as UTF-8."""
    if b"\xed" not in lines:  # what the UTF-8 of surrogates begins with, and that of Hangul
        return lines
    try:
        lines.decode("utf-8")
    except UnicodeDecodeError:
        texts = lines.decode("utf-8", "surrogatepass").split("\n")[:-1]
        return "".join(
            f"{json.dumps(json.loads(line), allow_nan=False)}\n" for line in texts
        ).encode("ascii")
    return lines
