"""Whether a server renders, answers and stops as the exported model does. No torch.

For each line of the parity file the ids of its prompt are compared, its greedy answer, and whether
it ends where it must. Ids of a prompt are asked for in the ways that servers offer, and the first
that answers is used:

    vllm         POST /tokenize with messages (vLLM)
    token_ids    return_token_ids of POST /v1/chat/completions (vLLM, newer)
    llama.cpp    POST /apply-template, then POST /tokenize
    count        usage.prompt_tokens alone: how many, not which

The count of the answer itself is compared in any case: it is what was really given to the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.config_errors import UserError, missing_file
from align.jsonl import RecordError, read_jsonl
from align.serving.parity_server import NoAnswer, Reply, Server

HALF = "\ufffd"
TIE = 0.02
AGREEMENT = 0.9
GIVE_UP = 3  # unanswered requests in a row
NEEDED = {
    "messages": list, "prompt_ids": list, "prompt_text": str, "greedy_ids": list,
    "greedy_text": str, "offsets": list, "margins": list, "stop_ids": list,
}  # fmt: skip
WAYS = ("vllm", "token_ids", "llama.cpp", "count")


@dataclass
class Outcome:
    """What was found. failures: {line, check, says} of each. prompts: how ids were asked for."""

    prompts: str = ""
    rows: int = 0
    ids_equal: int = 0
    as_special: int = 0
    counted: int = 0
    compared: int = 0
    first_equal: int = 0
    agree: int = 0
    ties: int = 0
    ended: int = 0
    stopped: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)

    def fail(self, line: int, check: str, says: str) -> None:
        """Note what is wrong with a line."""
        self.failures.append({"line": line, "check": check, "says": says})

    def failed(self, check: str) -> list[dict[str, Any]]:
        """Failures of one check."""
        return [f for f in self.failures if f["check"] == check]


def read_parity(path: str | Path) -> list[dict[str, Any]]:
    """Lines of a parity file, each with its number in "line"; UserError for one that is broken."""
    if not Path(path).is_file():
        raise missing_file("parity", str(path))
    fix = "Write it again: recipes/export_model.py --to hf"
    rows = []
    try:
        for number, row in read_jsonl(path):
            where = f"parity:{number}"
            if not isinstance(row, dict):
                raise UserError(where, row, "is no JSON object", fix)
            for name, kind in NEEDED.items():
                if not isinstance(row.get(name), kind):
                    raise UserError(where, row.get(name), f"has no usable {name!r}", fix)
            if not (row["prompt_ids"] and row["greedy_ids"]):
                raise UserError(where, path, "has no ids", fix)
            rows.append(row | {"line": number})
    except RecordError as error:
        raise UserError("parity", str(path), f"cannot be read: {error}", fix) from error
    if not rows:
        raise UserError("parity", str(path), "has no lines", fix)
    return rows


def check(
    server: Server,
    rows: Sequence[Mapping[str, Any]],
    *,
    tie: float = TIE,
    exact: bool = True,
) -> Outcome:
    """Ask a server for every line.

    tie: nats between the two best tokens, below which either may come. exact: the first token must
    be the exported model's (ties excepted), as a float32 engine gives it.
    """
    found, silent = Outcome(prompts=_way(server, rows[0]), rows=len(rows)), 0
    for row in rows:
        line = row["line"]
        if silent == GIVE_UP:
            found.fail(line, "prompt", f"not asked: {GIVE_UP} answers in a row had not come")
            continue
        try:
            expected = _check_prompt(server, row, found)
            if expected is None:
                silent = 0
                continue
            reply = server.chat(row["messages"], _budget(row))
        except NoAnswer as error:
            found.fail(line, "prompt", f"the server does not answer: {error}")
            silent += 1
            continue
        silent = 0
        if not _check_count(row, reply, expected, found):
            continue
        # Where only the number is known, a text that spells special tokens may be read either way.
        sure = found.prompts != "count" or "plain_ids" not in row
        if expected == row["prompt_ids"] and sure:
            _check_answer(row, reply, tie, exact, found)
    return found


def _way(server: Server, row: Mapping[str, Any]) -> str:
    """The first way to ask for prompt ids that this server offers."""
    for way in WAYS[:-1]:
        if server.prompt_ids(way, row["messages"]) is not None:
            return way
    return WAYS[-1]


def _check_prompt(server: Server, row: Mapping[str, Any], found: Outcome) -> list[int] | None:
    """Compare prompt ids; what the server reads the prompt as, None where that is wrong."""
    if found.prompts == "count":
        return row["prompt_ids"]
    got = server.prompt_ids(found.prompts, row["messages"])
    if got is None:
        raise NoAnswer("no ids for this conversation")
    if got == row["prompt_ids"]:
        found.ids_equal += 1
        return got
    if got == row.get("plain_ids"):
        found.as_special += 1
        return got
    found.fail(row["line"], "prompt", differing(row["prompt_ids"], got, server, row))
    return None


def _check_count(row: Mapping[str, Any], reply: Reply, expected: list[int], found: Outcome) -> bool:
    """Compare how many tokens the answer was given to; whether that is right."""
    count = reply.prompt_tokens
    if count is None:
        if found.prompts == "count":
            says = "the server says neither the ids of a prompt nor their number"
            found.fail(row["line"], "prompt", says)
        return found.prompts != "count"
    if found.prompts == "count" and count != len(expected) and count == _plain_count(row):
        found.as_special += 1
    elif count != len(expected):
        says = f"{len(expected)} tokens expected, the answer was given to {count} "
        says += f"({_hint_count(count, expected)})"
        found.fail(row["line"], "prompt", says)
        return False
    found.counted += 1
    return True


def _plain_count(row: Mapping[str, Any]) -> int:
    return len(row.get("plain_ids", ()))


def differing(want: list[int], got: list[int], server: Server, row: Mapping[str, Any]) -> str:
    """Two lists of ids in words: where they part, what that looks like, and both as text."""
    at = next((i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b), None)
    at = min(len(want), len(got)) if at is None else at
    text = server.text_of(got)
    shown = "" if text is None else f"\n    got text      {text[-200:]!r}"
    return (
        f"{_hint(want, got)}; they part at token {at} of {len(want)}"
        f"\n    expected ids  {_ids(want, at)}\n    got ids       {_ids(got, at)}"
        f"\n    expected text {row['prompt_text'][-200:]!r}{shown}"
    )


def _ids(ids: list[int], at: int) -> str:
    first = max(0, at - 3)
    lead = "… " if first else ""
    return f"{lead}{ids[first : at + 8]} ({len(ids)})"


def _hint(want: list[int], got: list[int]) -> str:
    """What a difference looks like."""
    if got[: len(want)] == want or want[: len(got)] == got:
        missing = want[len(got) :]
        return (
            f"the last {len(missing)} tokens are missing, as without a generation prompt"
            if missing
            else f"{len(got) - len(want)} tokens follow the prompt"
        )
    for extra in (1, 2):
        if got[extra:] == want:
            return f"{extra} token{'s' * (extra > 1)} stand before the prompt, as a second BOS does"
        if want[extra:] == got:
            return f"the first {extra} tokens are missing, as without BOS"
    return "the prompt is rendered or tokenised otherwise"


def _hint_count(got: int, want: list[int]) -> str:
    if got in (len(want) + 1, len(want) + 2):
        return "as with a second BOS"
    return "as without a generation prompt" if got < len(want) else "it is rendered otherwise"


def _budget(row: Mapping[str, Any]) -> int:
    """Tokens to ask for: as many as the answer has; past a stop token, to see whether it ends."""
    return len(row["greedy_ids"]) + (8 if _ends(row) else 0)


def _ends(row: Mapping[str, Any]) -> bool:
    return row["greedy_ids"][-1] in row["stop_ids"]


def _check_answer(
    row: Mapping[str, Any], reply: Reply, tie: float, exact: bool, found: Outcome
) -> None:
    """Compare a greedy answer: where it parts, whether that is a tie, whether it ends."""
    line, ends = row["line"], _ends(row)
    body = row["greedy_ids"][:-1] if ends else row["greedy_ids"]
    found.compared += 1
    at = _parts_at(row, body, reply, ends)
    ran_on = ends and at == len(body)
    if at is None or ran_on:
        found.first_equal += 1
        found.agree += 1
        if ends:
            _check_end(row, reply, ran_on, tie, found)
        return
    last = _complete_at(row, at) if reply.token_ids is None else at
    margin = min(row["margins"][at : last + 1], default=0.0)
    if margin < tie:
        found.ties += 1
        found.agree += 1
        found.first_equal += 1
        return
    found.first_equal += at > 0
    where = (
        f"at token {at}" if at == last else f"at tokens {at} to {last}, which spell one character"
    )
    says = f"parts {where}, where the best is {margin:.3f} nats above the second"
    says += f"\n    expected {row['greedy_text']!r}\n    got      {reply.text!r}"
    if at == 0 and exact:
        found.fail(line, "first token", says)
    else:
        found.fail(line, "answer", says)


def _parts_at(row: Mapping[str, Any], body: list[int], reply: Reply, ends: bool) -> int | None:
    """Index of the first token that differs; len(body) where it went on; None where none does."""
    if reply.token_ids is not None:
        got = reply.token_ids
        while got and got[-1] in row["stop_ids"]:
            got = got[:-1]
        at = next((i for i, (a, b) in enumerate(zip(body, got, strict=False)) if a != b), None)
        if at is not None or len(got) < len(body):
            return len(got) if at is None else at
        return len(body) if ends and len(got) > len(body) else None
    want, got = row["greedy_text"].rstrip(HALF), reply.text.rstrip(HALF)
    if got.strip() == want.strip():
        return None
    skipped = len(want) - len(want.lstrip()) if not got[:1].isspace() else 0
    got, want = got, want[skipped:]
    same = 0
    while same < min(len(want), len(got)) and want[same] == got[same]:
        same += 1
    if same == len(want):
        return len(body) if ends else None
    done = [i for i, end in enumerate(row["offsets"]) if _grows(row, i) and end - skipped <= same]
    return min(done[-1] + 1 if done else 0, len(body) - 1)


def _grows(row: Mapping[str, Any], i: int) -> bool:
    """Whether token i completes a character."""
    return row["offsets"][i] > (row["offsets"][i - 1] if i else 0)


def _complete_at(row: Mapping[str, Any], at: int) -> int:
    """The token that completes the character which token `at` begins."""
    rest = range(at, len(row["offsets"]))
    return next((i for i in rest if _grows(row, i)), at)


def _check_end(
    row: Mapping[str, Any], reply: Reply, ran_on: bool, tie: float, found: Outcome
) -> None:
    """Whether an answer that ends has ended, and without the stop token's text."""
    line = row["line"]
    if ran_on and row["margins"][-1] < tie:
        found.ties += 1
        return
    found.ended += 1
    shown = [text for text in row.get("stop_texts", ()) if text and text in reply.text]
    if shown:
        found.fail(line, "stop", f"the answer shows {shown[0]!r}: {reply.text[-80:]!r}")
    elif ran_on:
        says = f"the answer ends after {row['greedy_text'][-40:]!r}, the server goes on: "
        found.fail(line, "stop", f"{says}{reply.text[-80:]!r}")
    elif reply.finish != "stop":
        found.fail(line, "stop", f"finish_reason is {reply.finish!r}, not 'stop'")
    else:
        found.stopped += 1
