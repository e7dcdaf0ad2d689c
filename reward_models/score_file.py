"""Scores a JSONL file with a reward checkpoint and goes on where an interrupted run stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from align.config_errors import UserError
from align.jsonl import RecordError, read_rows
from align.records import Message, parse_messages

COMPLETION_FIELDS = ("completion", "response", "answer", "output")
CHUNK = 256


def read_item(obj: Any) -> tuple[tuple[Message, ...], list[Any]]:
    """(prompt, completions) of an input row; RecordError where it is neither.

    Rows: {"prompt", "completion" | "response" | "answer" | "output"}, {"prompt", "completions":
    […]}, {"messages": […]} (the last assistant turn is scored), {"prompt", "chosen", "rejected"}, or a
    canonical group.
    """
    if not isinstance(obj, dict):
        raise RecordError("expected an object", code="not_an_object")
    if "messages" in obj and "prompt" not in obj:
        messages = parse_messages(obj["messages"])
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise RecordError("messages must end with an assistant turn", code="no_assistant")
        return messages[:-1], [messages[-1].content]
    if "prompt" not in obj:
        raise RecordError("neither prompt nor messages", code="no_prompt")
    prompt = parse_messages(obj["prompt"])
    if not prompt:
        raise RecordError("the prompt is empty", code="no_prompt")
    if isinstance(obj.get("completions"), list) and obj["completions"]:
        return prompt, [_answer(c) for c in obj["completions"]]
    if isinstance(obj.get("candidates"), list) and obj["candidates"]:
        return prompt, [
            _answer(c.get("content") if isinstance(c, dict) else c) for c in obj["candidates"]
        ]
    if "chosen" in obj and "rejected" in obj:
        return prompt, [_answer(obj["chosen"]), _answer(obj["rejected"])]
    name = next((n for n in COMPLETION_FIELDS if n in obj), None)
    if name is None:
        raise RecordError(f"no {', '.join(COMPLETION_FIELDS)} or completions", code="no_completion")
    return prompt, [_answer(obj[name])]


def _answer(value: Any) -> Any:
    messages = parse_messages(value, role="assistant")
    if not messages or messages[0].role != "assistant":
        raise RecordError("a completion must begin with the assistant", code="no_assistant")
    return messages[0].content if len(messages) == 1 else messages


def fingerprint(model: str | Path, calibrated: bool) -> str:
    """Short hash of what decides a score, written on every row so that no run mixes two models."""
    digest = hashlib.sha256(str(calibrated).encode())
    names = ("contract.json", "config.json", "tokenizer.json", "*.safetensors")
    for file in sorted(f for name in names for f in Path(model).glob(name)):
        digest.update(f"{file.name}{file.stat().st_size}".encode())
        with open(file, "rb") as data:
            digest.update(data.read(1 << 20))
            # Weights differ everywhere after training: the last MiB tells models apart quickly.
            data.seek(max(0, file.stat().st_size - (1 << 20)))
            digest.update(data.read())
    return digest.hexdigest()[:16]


def score_file(
    scorer: Any,
    source: str | Path,
    output: str | Path,
    *,
    mark: str,
    calibrated: bool = False,
    progress: Any = None,
) -> dict[str, int]:
    """Writes each input row with "score" ("scores" where it has several completions) and "scorer".

    Rows that cannot be scored get a null score and "error". Complete rows of an interrupted run are
    kept after a check against the input; a last half line is cut off. Returns counts: rows,
    resumed, errors, truncated.
    """
    output = Path(output)
    partial = output.with_name(output.name + ".partial")
    if output.exists() and not partial.exists():
        os.replace(output, partial)
    output.parent.mkdir(parents=True, exist_ok=True)
    counts = {"rows": 0, "resumed": 0, "errors": 0, "truncated": 0}
    try:
        rows = (obj for _, obj in read_rows(source))
        counts["resumed"] = counts["rows"] = _resume(partial, rows, mark)
        with open(partial, "a", encoding="utf-8") as file:
            while chunk := list(islice(rows, CHUNK)):
                for line in _scored(scorer, chunk, mark, calibrated, counts):
                    file.write(line + "\n")
                file.flush()
                counts["rows"] += len(chunk)
                if progress:
                    progress(counts["rows"])
    except RecordError as error:
        raise UserError(
            "input", str(source), f"cannot be read: {error}", "Correct that line"
        ) from None
    counts["truncated"] = scorer.truncated
    os.replace(partial, output)
    return counts


def _resume(partial: Path, rows: Iterator[Any], mark: str) -> int:
    """Skips the input rows that are scored already; returns how many."""
    if not partial.exists():
        return 0
    kept = 0
    with open(partial, "rb+") as file:
        end = 0
        for raw in file:
            if not raw.endswith(b"\n"):
                break
            _same(raw, next(rows, None), mark, partial)
            end += len(raw)
            kept += 1
        file.truncate(end)
    return kept


def _same(raw: bytes, obj: Any, mark: str, partial: Path) -> None:
    try:
        line = json.loads(raw)
    except ValueError:
        line = None
    fix = f"Remove {partial} or choose another --output"
    if not isinstance(line, dict) or "scorer" not in line:
        raise UserError("output", str(partial), "exists and was not written by score", fix)
    if line["scorer"] != mark:
        raise UserError("output", str(partial), "was begun with another model or option", fix)
    if line != {
        **_as_dict(obj),
        **{k: line[k] for k in ("score", "scores", "error", "scorer") if k in line},
    }:
        raise UserError("output", str(partial), "was begun with another input", fix)


def _as_dict(obj: Any) -> dict[str, Any]:
    return obj if isinstance(obj, dict) else {"input": obj}


def _scored(
    scorer: Any, chunk: Sequence[Any], mark: str, calibrated: bool, counts: dict[str, int]
) -> list[str]:
    items, ids = [], []
    for obj in chunk:
        try:
            prompt, completions = read_item(obj)
            encoded = [scorer.encode(prompt, completion) for completion in completions]
        except RecordError as error:
            counts["errors"] += 1
            items.append((obj, 0, error.message))
            continue
        items.append((obj, len(completions), None))
        ids += encoded
    values = iter(scorer.reduce(scorer.score_ids(ids), calibrated=calibrated))
    lines = []
    for obj, n, error in items:
        row = dict(_as_dict(obj))
        got = list(islice(values, n))
        row.update(
            {"score": None, "error": error}
            if error
            else {"score": got[0]}
            if n == 1
            else {"scores": got}
        )
        lines.append(json.dumps({**row, "scorer": mark}, ensure_ascii=True))
    return lines
