"""`recipes/arena.py`: people compare models blindly, or talk to one, and their votes are kept."""

from __future__ import annotations

import argparse
import json
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from align.argument_types import number
from align.config_errors import NO_VALUE, UserError
from align.evaluation.options import add_decoding, decoding_of
from align.feedback.arena import VOTES, WITHOUT_CONSENT, Arena
from align.feedback.chat import FEEDBACK, open_log
from align.feedback.pages import need_gradio
from align.feedback.records import read_log
from align.feedback.summary import summarise, table
from align.feedback.texts import TEXTS
from align.files import fingerprint, write_atomic
from align.model_safety import allow_as_asked
from align.run_manifest import same_setup


def parser() -> argparse.ArgumentParser:
    """Command line of recipes/arena.py."""
    p = argparse.ArgumentParser(
        prog="arena.py",
        description="Compare models blindly in a browser, or talk to one and judge its answers.",
    )
    add = p.add_argument
    add(
        "runs", nargs="*", metavar="MODEL",
        help="run directories, model folders or http://host:port/v1#name; one: a chat page",
    )  # fmt: skip
    add("--prompts", help="what is asked, JSONL or preference file; null: people write it")
    add("--answers", help="compare answers that a file has, as compare_runs' samples.jsonl")
    add("--output", default="runs/arena", help="folder of the votes; an arena there goes on")
    add("--annotator", default="", help="the name that stands on the page")
    add("--overlap", type=number(0, 1), default=0.2, help="share that everybody gets")
    add("--no_own_prompts", action="store_true", help="people may not ask what they like")
    add(
        "--without_consent", choices=WITHOUT_CONSENT, default="drop",
        help="what is kept of people who do not agree: nothing, or the vote without any text",
    )  # fmt: skip
    add("--reveal", type=_flag, nargs="?", const=True, default=False,
        help="show the results while votes are cast")  # fmt: skip
    add("--summary", metavar="OUTPUT", help="print what the votes in a folder say, and end")
    add("--language", choices=sorted(TEXTS), default="en", help="of the page")
    add("--chat_template", help="chatml, zh_instruction, inst or a jinja file")
    add("--seed", type=int, default=0, help="of order, sides and sampling")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: every one")
    add("--port", type=int, default=7860)
    add("--share", type=_flag, nargs="?", const=True, default=False,
        help="open a public address through gradio's servers")  # fmt: skip
    add_decoding(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the arena from the command line; 0 when it was ended. UserError is the caller's."""
    args = parser().parse_args(argv)
    if args.summary:
        return print_summary(Path(args.summary))
    check_options(args)
    need_gradio()
    check_port(args.host, args.port)
    allow_as_asked(args)
    if len(args.runs) == 1 and not args.answers:
        return _serve_chat(args)
    arena = make_arena(args)
    from align.feedback.ui import arena_page, launch

    page = arena_page(arena, language=args.language, reveal=args.reveal, annotator=args.annotator)
    try:
        with suppress(KeyboardInterrupt):
            launch(page, host=args.host, port=args.port, share=args.share)
    finally:
        arena.close()
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Raise UserError for options that do not go together, before anything is loaded."""
    if not args.runs and not args.answers:
        reason = "and --answers are both missing"
        raise UserError("models", NO_VALUE, reason, "Name two models, or one for a chat page")
    if args.answers and args.prompts:
        fix = "Leave one out: the file of answers has its prompts"
        raise UserError("--prompts", args.prompts, "cannot be used with --answers", fix)
    if args.prompts and not Path(args.prompts).is_file():
        raise UserError("--prompts", args.prompts, "does not exist", "Check the path")
    if len(args.runs) == 1 and args.answers:
        fix = "Give two, for people's own prompts, or none"
        raise UserError("models", args.runs, "is one model beside --answers", fix)
    if len(args.runs) > 1 and not args.prompts and not args.answers and args.no_own_prompts:
        fix = "Give --prompts FILE, or allow own prompts"
        raise UserError("--prompts", NO_VALUE, "is needed: there is nothing to compare", fix)
    if len(args.runs) == 1 and args.prompts:
        reason = "is not read by the chat page of a single model"
        raise UserError("--prompts", args.prompts, reason, "Name a second model")
    if not 0 <= args.port < 65536:
        raise UserError("--port", args.port, "is not a port", "Use 1024 to 65535")
    if Path(args.output).is_file():
        raise UserError("--output", args.output, "is a file", "Give a folder")


def check_port(host: str, port: int) -> None:
    """UserError where nobody may listen there: before models have worked for an hour."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        reason = f"cannot be listened on at {host}: {error.strerror or error}"
        raise UserError("--port", port, reason, "Give another --port or --host") from None


def make_arena(args: argparse.Namespace) -> Arena:
    """The arena that the options describe, its answers made."""
    from align.data.prompts import load_prompts
    from align.feedback import answers as given
    from align.feedback.queue import build_items

    output, decoding = Path(args.output), decoding_of(args)
    models = given.make_models(args.runs, decoding, args.chat_template)
    names = [m.name for m in models]
    prompts: list[Any] = []
    if args.answers:
        prompts, answers, named = given.read_answers(args.answers)
        if models and sorted(names) != named:
            fix = f"The file has {', '.join(named)}"
            raise UserError("models", names, "are not those of --answers", fix)
    elif args.prompts:
        prompts = load_prompts(args.prompts, "prompts")[: args.num_prompts]
    setup = {
        "models": {m.name: fingerprint(getattr(m, "path", "")) for m in models} or named,
        "source": fingerprint(args.answers or args.prompts) if prompts else None,
        "num_prompts": len(prompts), "overlap": args.overlap, "seed": args.seed,
        "decoding": decoding.to_json(),
    }  # fmt: skip
    same_setup(output / "arena.json", setup)
    own = not args.no_own_prompts and len(models) > 1
    if not args.answers:
        answers = given.collect(models, prompts, output, seed=args.seed, keep_loaded=own)
        named = names
    items, dropped = build_items(prompts, answers, named, overlap=args.overlap, seed=args.seed)
    if prompts and not items:
        fix = "Give other prompts or models"
        raise UserError("--prompts", args.answers or args.prompts, f"leaves {_why(dropped)}", fix)
    arena = Arena(
        items, output, models=names, ask=_asker(models, args.seed) if own else None,
        overlap=args.overlap, seed=args.seed, without_consent=args.without_consent,
    )  # fmt: skip
    left_out = f", left out: {_counts(dropped)}" if dropped else ""
    print(f"[align] arena: {len(items)} comparisons of {len(named)} models{left_out}")
    if arena.resumed:
        print(f"[align] arena: goes on after {arena.resumed} votes in {output}", flush=True)
    return arena


def _asker(models: Sequence[Any], seed: int) -> Any:
    by_name, asked = {m.name: m for m in models}, iter(range(1, 1 << 62))

    def ask(names: Sequence[str], conversation: Sequence[Any]) -> list[str | None]:
        number = seed + next(asked)
        return [by_name[name].answer([conversation], number)[0].text for name in names]

    return ask


def _serve_chat(args: argparse.Namespace) -> int:
    from align.feedback.answers import make_models
    from align.feedback.ui import chat_page, launch

    (model,) = make_models(args.runs, decoding_of(args), args.chat_template)
    page = chat_page(
        model, open_log(args.output), language=args.language, annotator=args.annotator,
        keeps_votes=args.without_consent == "vote_only",
    )  # fmt: skip
    with suppress(KeyboardInterrupt):
        launch(page, host=args.host, port=args.port, share=args.share)
    return 0


def print_summary(output: Path) -> int:
    """Print what the votes in a folder say, write summary.json; UserError where there are none."""
    rows: list[dict[str, Any]] = []
    for name in (VOTES, FEEDBACK):
        rows += read_log(output / name)[0]
    if not rows:
        fix = "Give the --output of an arena that somebody has voted in"
        raise UserError("--summary", str(output), "holds no votes", fix)
    summary = summarise(rows)
    write_atomic(output / "summary.json", json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    print(table(summary))
    return 0


def _why(dropped: Any) -> str:
    return f"nothing to compare ({_counts(dropped) or 'no answers'})"


def _counts(dropped: Any) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items()))


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"
