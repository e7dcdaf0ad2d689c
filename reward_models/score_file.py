"""Scores a JSONL file with a reward checkpoint and goes on where an interrupted run stopped."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from align.config_errors import UserError
from align.records import Message, RecordError, parse_messages
from reward_models.annotations.base import Row
from reward_models.annotations.reading import read

COMPLETION_FIELDS = ("completion", "response", "answer", "output")
# What a scored line adds to its row; fields of these names in the input are replaced.
ADDED = (
    "score", "scores", "uncertainty", "score_attributes", "error", "truncated", "scorer",
)  # fmt: skip
HASHED = ("*.json", "*.jinja", "*.safetensors", "*.bin")
CHUNK = 256


def read_item(obj: Any) -> tuple[tuple[Message, ...], list[Any]]:
    """(prompt, completions) of an input row; RecordError where it is neither.

    Rows: {"prompt", "completion" | "response" | "answer" | "output"}, {"prompt", "completions":
    […]}, {"messages": […]} (the last assistant turn is scored), {"prompt", "chosen", "rejected"},
    or a canonical group.
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
    return prompt, [_answer(value) for value in _completions(obj)]


def _completions(obj: dict[str, Any]) -> list[Any]:
    if isinstance(obj.get("completions"), list) and obj["completions"]:
        return obj["completions"]
    if isinstance(obj.get("candidates"), list) and obj["candidates"]:
        return [c.get("content") if isinstance(c, dict) else c for c in obj["candidates"]]
    if "chosen" in obj and "rejected" in obj:
        return [obj["chosen"], obj["rejected"]]
    name = next((n for n in COMPLETION_FIELDS if n in obj), None)
    if name is None:
        raise RecordError(f"no {', '.join(COMPLETION_FIELDS)} or completions", code="no_completion")
    return [obj[name]]


def _answer(value: Any) -> Any:
    messages = parse_messages(value, role="assistant")
    if not messages or messages[0].role != "assistant":
        raise RecordError("a completion must begin with the assistant", code="no_assistant")
    return messages[0].content if len(messages) == 1 else messages


def fingerprint(model: str | Path, calibrated: bool = False, max_length: int | None = None) -> str:
    """Short hash of what decides a score, written on every row so that no run mixes two models."""
    digest = hashlib.sha256(f"{calibrated} {max_length}".encode())
    for file in sorted({f for name in HASHED for f in Path(model).glob(name) if f.is_file()}):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with open(file, "rb") as data:
            while block := data.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def bar(done: int, total: int) -> str:
    """How far a run is, as one line."""
    filled = 30 * done // max(1, total)
    return f"[{'#' * filled}{'.' * (30 - filled)}] {done}/{total} rows"


def check_output(source: str | Path, output: str | Path) -> None:
    """UserError where the output is a folder or the input itself."""
    output = Path(output)
    if output.is_dir():
        raise UserError("output", str(output), "is a folder", "Give a file")
    if output.exists() and output.samefile(source):
        raise UserError("output", str(output), "is the input", "Give another file")


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

    A model of several heads adds "uncertainty", one with attributes "score_attributes": as a list
    where there are "scores". Rows that cannot be read or scored get a null score and "error";
    "truncated" counts completions that were shortened. Lines of an interrupted run are kept after
    a check against the input, in whole chunks, so that the same batches follow: the same command
    ends with the bytes of a run that was never interrupted. The output appears under its name when
    all is done. Returns counts: rows, resumed (of these from an earlier run), errors, truncated.
    """
    check_output(source, output)
    output = Path(output)
    partial = output.with_name(output.name + ".partial")
    counts = {"rows": 0, "resumed": 0, "errors": 0, "truncated": 0}
    rows = iter(read(source))
    first = next(rows, None)  # an unusable input is an error before anything is written
    rows = chain([] if first is None else [first], rows)
    output.parent.mkdir(parents=True, exist_ok=True)
    earlier, end = partial if partial.exists() else output, 0
    if earlier.exists():
        end, again = _resume(earlier, rows, mark, counts, whole=earlier is output)
        rows = chain(again, rows)
    if earlier is output and end:
        shutil.copyfile(output, partial)
    with open(partial, "ab") as file:
        file.truncate(end)
        while chunk := list(islice(rows, CHUNK)):
            for line in _scored(scorer, chunk, mark, calibrated, counts):
                file.write(line + b"\n")
            file.flush()
            counts["rows"] += len(chunk)
            if progress:
                progress(counts["rows"])
    os.replace(partial, output)
    return counts


def _resume(
    earlier: Path, rows: Iterator[Row], mark: str, counts: dict[str, int], *, whole: bool
) -> tuple[int, list[Row]]:
    """Skips the input rows that are scored already.

    whole: the file was finished, and every line is kept; else the chunks that are complete. Returns
    the length of the kept lines in bytes, and the rows after them that were read.
    """
    end, size = 0, 0
    again: list[Row] = []
    held = dict.fromkeys(counts, 0)
    with open(earlier, "rb") as file:
        for raw in file:
            if not raw.endswith(b"\n") and not whole:
                break  # written when the run was interrupted
            row = next(rows, None)
            line = _kept(raw, row, mark, earlier)
            again += [row] if row is not None else []
            held["errors"] += "error" in line
            held["truncated"] += line.get("truncated", 0)
            size += len(raw)
            if whole or len(again) == CHUNK:
                for name in held:
                    counts[name] += held[name]
                counts["rows"] += len(again)
                counts["resumed"] += len(again)
                end, again, held = end + size, [], dict.fromkeys(held, 0)
                size = 0
    return end, again


def _kept(raw: bytes, row: Row | None, mark: str, earlier: Path) -> dict[str, Any]:
    try:
        line = json.loads(raw)
    except ValueError:
        line = None
    fix = f"Remove {earlier} or choose another --output"
    if not isinstance(line, dict) or "scorer" not in line:
        raise UserError("output", str(earlier), "exists and was not written by score", fix)
    if line["scorer"] != mark:
        raise UserError("output", str(earlier), "was begun with another model or option", fix)
    if row is None or _text(_bare(line)) != _text(_bare(_as_dict(row))):
        raise UserError("output", str(earlier), "was begun with another input", fix)
    return line


def _as_dict(row: Row) -> dict[str, Any]:
    if row.error is not None:
        return {"input": None, "line": row.line}
    return row.obj if isinstance(row.obj, dict) else {"input": row.obj}


def _bare(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in ADDED}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _encode(scorer: Any, row: Row) -> tuple[list[list[int]], int]:
    """(token ids of each completion, how many were shortened); RecordError with the reason."""
    if row.error is not None:
        raise RecordError(f"line {row.line}: {row.error[1]}", code=row.error[0])
    prompt, completions = read_item(row.obj)
    before = scorer.truncated
    return [scorer.encode(prompt, c) for c in completions], scorer.truncated - before


def _scored(
    scorer: Any, chunk: Sequence[Row], mark: str, calibrated: bool, counts: dict[str, int]
) -> list[bytes]:
    items: list[tuple[Row, int, dict[str, Any]]] = []
    ids: list[list[int]] = []
    for row in chunk:
        try:
            encoded, cut = _encode(scorer, row)
        except RecordError as error:
            items.append((row, 0, {"score": None, "error": f"{error.code}: {error.message}"}))
            continue
        items.append((row, len(encoded), {"truncated": cut} if cut else {}))
        ids += encoded
    values = iter(scorer.explain(scorer.score_ids(ids), calibrated=calibrated))
    lines = []
    for row, n, added in items:
        got = list(islice(values, n))
        if not all(math.isfinite(one.score) for one in got):
            added |= {"score": None, "error": "not_finite: the model gives no finite score"}
        elif n:
            added |= _fields(got)
        counts["errors"] += "error" in added
        counts["truncated"] += added.get("truncated", 0)
        # ASCII: a lone surrogate of the input has no other form.
        lines.append(json.dumps({**_bare(_as_dict(row)), **added, "scorer": mark}).encode("ascii"))
    return lines


def _fields(got: Sequence[Any]) -> dict[str, Any]:
    """What the scores of a row's completions add to it."""
    columns: dict[str, list[Any]] = {"scores": [one.score for one in got]}
    if got[0].uncertainty is not None:
        columns["uncertainty"] = [one.uncertainty for one in got]
    if got[0].attributes:
        columns["score_attributes"] = [one.attributes for one in got]
    if len(got) > 1:
        return columns
    return {"score" if name == "scores" else name: column[0] for name, column in columns.items()}
