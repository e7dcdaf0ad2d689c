"""Command line of recipes/check_server.py: does a server answer as the exported model does."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from align.argument_types import number
from align.files import write_atomic
from align.serving.parity_check import AGREEMENT, TIE, Outcome, check, read_parity
from align.serving.parity_server import Server

NAMES = {
    "vllm": "POST /tokenize with messages",
    "token_ids": "return_token_ids of the chat",
    "llama.cpp": "POST /apply-template, then /tokenize",
    "count": "number of tokens only, usage.prompt_tokens",
}


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    p = argparse.ArgumentParser(
        prog="check_server.py",
        description="Ask an OpenAI-compatible server for what parity.jsonl of an export says.",
    )
    p.add_argument("--url", required=True, help="http://host:port, with or without /v1")
    p.add_argument("--parity", required=True, metavar="FILE", help="parity.jsonl of the export")
    p.add_argument("--model", help="its name on the server (default: the first that is served)")
    p.add_argument(
        "--api_key_env", default="OPENAI_API_KEY", metavar="VAR",
        help="environment variable with the key (default: OPENAI_API_KEY; unset: none is sent)",
    )  # fmt: skip
    p.add_argument(
        "--timeout", type=number(0, open_low=True), default=120.0, metavar="S",
        help="seconds that one answer may take (default: 120)",
    )  # fmt: skip
    p.add_argument(
        "--min_agreement", type=number(0, 1), metavar="SHARE",
        help="of answers that agree, for quantised or 16-bit engines, whose first tokens may "
        f"differ then (default: {AGREEMENT}, and every first token as in float32)",
    )  # fmt: skip
    p.add_argument(
        "--tie", type=number(0), default=TIE, metavar="NATS",
        help=f"the two best tokens closer than this are a tie, and either may come ({TIE})",
    )  # fmt: skip
    p.add_argument("--report", metavar="FILE", help="JSON with every figure and difference")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Check from the command line: 0 passes, 1 does not. UserError is left to the caller."""
    args = parser().parse_args(argv)
    rows = read_parity(args.parity)
    server = Server(
        args.url, model=args.model, api_key_env=args.api_key_env, timeout_s=args.timeout
    )
    start = time.monotonic()
    found = check(server, rows, tie=args.tie, exact=args.min_agreement is None)
    least = AGREEMENT if args.min_agreement is None else args.min_agreement
    passed = passes(found, least)
    print(table(found, least))
    for failure in _shown(found):
        print(f"\nline {failure['line']}, {failure['check']}: {failure['says']}")
        row = next(r for r in rows if r["line"] == failure["line"])
        print(f"    messages {json.dumps(row['messages'], ensure_ascii=False)[:400]}")
    print(f"\n{'passes' if passed else 'does not pass'}: {server.model} at {server.root}")
    if args.report:
        said = {
            "url": server.root, "model": server.model, "passed": passed, "min_agreement": least,
            "tie": args.tie, "seconds": round(time.monotonic() - start, 2), **asdict(found),
        }  # fmt: skip
        write_atomic(Path(args.report), json.dumps(said, ensure_ascii=False, indent=1) + "\n")
    return 0 if passed else 1


def passes(found: Outcome, least: float) -> bool:
    """The verdict: prompts and stops right, first tokens exact where asked, enough agreement.

    A server of whose answers none could be compared does not pass.
    """
    wrong = any(found.failed(name) for name in ("prompt", "first token", "stop"))
    return not wrong and found.compared > 0 and found.agree >= least * found.compared


def table(found: Outcome, least: float) -> str:
    """One line a check."""
    right = found.rows - len(found.failed("prompt"))
    lines = [
        ("prompt", not found.failed("prompt"), f"{right} of {found.rows} as trained",
         NAMES[found.prompts]),
        ("first token", not found.failed("first token"),
         f"{found.first_equal} of {found.compared} equal", f"{found.ties} ties among the answers"),
        ("answer", found.compared > 0 and found.agree >= least * found.compared,
         f"{found.agree} of {found.compared} agree", f"at least {least:.0%}"),
        ("stop", not found.failed("stop"), f"{found.stopped} of {found.ended} end as they must",
         "" if found.ended else "not checked: no answer of the file ends"),
    ]  # fmt: skip
    text = "\n".join(
        f"{'ok  ' if good else 'FAIL'} {name:12} {said:28} {note}".rstrip()
        for name, good, said, note in lines
    )
    if found.as_special:
        text += (
            f"\nnote {found.as_special} prompts spell special tokens: this server reads them as "
            "the tokens, where training read letters. Whoever writes them can open a turn"
        )
    return text


def _shown(found: Outcome) -> list[dict]:
    """The first failure of each check."""
    first = {f["check"]: f for f in reversed(found.failures)}
    order = ("prompt", "first token", "answer", "stop")
    return [first[name] for name in order if name in first]
