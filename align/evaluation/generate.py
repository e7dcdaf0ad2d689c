"""Generate text: one prompt, a file of them, or a conversation at the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.argument_types import number, whole
from align.config_errors import NO_VALUE, UserError
from align.model_safety import add_options, allow_as_asked

if TYPE_CHECKING:
    from align.evaluation.decoding import Sampling

HELP = "/reset forgets the conversation, /exit ends"


def parser() -> argparse.ArgumentParser:
    """Command line of recipes/generate.py."""
    p = argparse.ArgumentParser(
        prog="generate.py",
        description="Complete text with a model: a prompt, a file of prompts, or at the terminal.",
    )
    p.add_argument("--model", required=True, help="run directory, model folder or LoRA adapter")
    p.add_argument("--prompt", help="a text to complete; without it and --prompts: interactive")
    p.add_argument("--prompts", help="a prompt a line (.txt), or JSONL with prompt or messages")
    p.add_argument("--output", help="JSONL to write the completions to; default: the screen")
    p.add_argument("--chat", action="store_true", help="answer as an assistant, by the template")
    p.add_argument("--system", help="with --chat: the system message")
    p.add_argument("--chat_template", help="chatml, zh_instruction, inst or a jinja file")
    p.add_argument("--max_new_tokens", type=whole(1), default=128)
    p.add_argument("--temperature", type=number(0), default=1.0, help="0: the likeliest token")
    p.add_argument("--top_k", type=whole(0), default=0, help="0: off")
    p.add_argument("--top_p", type=number(0, 1, open_low=True), default=1.0, help="1: off")
    p.add_argument("--repetition_penalty", type=number(0, open_low=True), default=1.0)
    p.add_argument("--seed", type=whole(0), default=0, help="the same seed gives the same text")
    p.add_argument("--num_samples", type=whole(1), default=1, help="completions of each prompt")
    p.add_argument("--batch_size", type=whole(1), default=16, help="completions at once")
    p.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, default=None,
        help="show text as it comes; default: where there is one completion to show",
    )  # fmt: skip
    add_options(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Generate from the command line; 0 when done. UserError is left to the caller."""
    args = parser().parse_args(argv)
    allow_as_asked(args)
    check_options(args)
    prompts = [args.prompt] if args.prompt is not None else []
    if args.prompts:
        prompts = read_prompts(args.prompts)
    writer = Writer(args)
    if prompts:
        writer.batch(prompts)
    else:
        writer.interact()
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Raise UserError for options that do not go together, before anything is loaded."""
    from align.checkpoints import find_model

    folder = find_model(args.model, "--model")
    if args.prompt is not None and args.prompts:
        raise UserError("--prompt", args.prompt, "cannot be used with --prompts", "Give one")
    if args.output and args.prompt is None and not args.prompts:
        raise UserError("--output", args.output, "needs prompts", "Give --prompt or --prompts")
    if args.output and Path(args.output).is_dir():
        raise UserError("--output", args.output, "is a folder", "Give a .jsonl file")
    if args.system is not None and not args.chat:
        raise UserError("--system", args.system, "needs --chat", "Add --chat")
    if args.stream and (args.prompts or args.output or args.num_samples > 1):
        raise UserError("--stream", NO_VALUE, "shows one completion", "Leave it out")
    config = folder / "config.json"
    if config.is_file() and "MaskedLM" in config.read_text(encoding="utf-8"):
        reason = "fills in masked tokens and cannot go on with a text"
        raise UserError("--model", str(folder), reason, "Give a causal language model")


def read_prompts(path: str) -> list[Any]:
    """Texts or lists of messages, one a line of a text file or a row of a JSONL file."""
    from align.data.corpus import iter_texts
    from align.jsonl import RecordError, read_jsonl

    if not Path(path).is_file():
        raise UserError("--prompts", path, "does not exist", "Check the path")
    jsonl = Path(path.removesuffix(".gz")).suffix in (".jsonl", ".ndjson")
    try:
        found = [_prompt_of(row, path, n) for n, row in read_jsonl(path)] if jsonl else (
            list(iter_texts(path))
        )  # fmt: skip
    except RecordError as error:
        raise UserError("--prompts", path, f"cannot be read: {error}", "Correct it") from error
    if not found:
        raise UserError("--prompts", path, "holds no prompt", "Write one a line")
    return found


def _prompt_of(row: Any, path: str, number: int) -> Any:
    """The text or messages of a row."""
    value = None
    if isinstance(row, dict):
        value = next((row[k] for k in ("prompt", "messages", "text") if row.get(k)), None)
    messages = isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("content"), str) and "role" in m for m in value
    )
    if not (isinstance(value, str) or messages):
        reason = f"has no prompt, messages or text in line {number}"
        raise UserError("--prompts", path, reason, 'Write {"prompt": "…"}')
    return value


class Writer:
    """A loaded model that writes as the options say."""

    def __init__(self, args: argparse.Namespace) -> None:
        from transformers.utils import logging

        from align.chat import stop_ids
        from align.checkpoints import load_causal_lm

        logging.disable_progress_bar()
        self.args = args
        self.model, self.tokenizer = load_causal_lm(
            args.model, chat_template=args.chat_template, need_template=args.chat, field="--model"
        )
        eos = self.tokenizer.eos_token_id
        self.stops = (
            list(stop_ids(self.tokenizer)) if args.chat else [eos] if eos is not None else []
        )

    def how(self) -> Sampling:
        """The options of sampling."""
        from align.evaluation.decoding import Sampling

        a = self.args
        return Sampling(
            a.max_new_tokens, a.temperature, a.top_k, a.top_p, a.repetition_penalty, a.seed,
            a.num_samples, a.batch_size,
        )  # fmt: skip

    def ids(self, prompt: Any) -> list[int]:
        """Ids of a text, or of messages up to the assistant's turn."""
        if not self.args.chat:
            if not isinstance(prompt, str):
                raise UserError("--prompts", self.args.prompts, "holds messages", "Add --chat")
            return self.tokenizer(prompt)["input_ids"]
        from align.chat import render_prompt

        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        if self.args.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.args.system}, *messages]
        return render_prompt(self.tokenizer, messages)

    def batch(self, prompts: Sequence[Any]) -> None:
        """Complete prompts; to the screen, or to --output, which appears whole or not at all."""
        from align.evaluation.decoding import complete

        args, ids = self.args, [self.ids(prompt) for prompt in prompts]
        one = len(prompts) == 1 and args.num_samples == 1 and not args.output
        if args.stream or (args.stream is None and one):
            self.answer(ids[0])
            return
        found = complete(self.model, self.tokenizer, ids, self.how(), self.stops, strip=args.chat)
        if args.output:
            from align.records import write_jsonl

            write_jsonl(
                args.output,
                [
                    {
                        "prompt": prompts[c.prompt], "completion": c.text, "sample": c.sample,
                        "seed": args.seed, "tokens": len(c.ids), "finished": c.finished,
                    }
                    for c in found
                ],
            )  # fmt: skip
            print(f"{args.output}: {len(found)} completions of {len(prompts)} prompts")
            return
        for c in found:
            if len(found) > 1:
                print(f"--- prompt {c.prompt + 1}, sample {c.sample + 1}")
            print(c.text)

    def answer(self, ids: list[int], turn: int = 0) -> str:
        """Complete one prompt, showing the text as it comes unless --no-stream; return it."""
        from align.evaluation.decoding import TextStream, complete

        shows = self.args.stream is not False
        stream = TextStream(
            self.tokenizer, ids, _show, skip=self.stops, strip=self.args.chat
        ) if shows else None  # fmt: skip
        [found] = complete(
            self.model, self.tokenizer, [ids], self.how(), self.stops,
            first=turn, strip=self.args.chat, stream=stream,
        )  # fmt: skip
        print("" if shows else found.text, flush=True)
        return found.text

    def interact(self) -> None:
        """Read a line, answer, until the input ends. With --chat earlier turns are part of it."""
        print(f"[align] {HELP if self.args.chat else '/exit ends'}", flush=True)
        if self.args.num_samples > 1:
            raise UserError("--num_samples", self.args.num_samples, "is for prompts", "Use 1")
        history: list[dict[str, str]] = []
        turn = 0
        while True:
            try:
                line = input("> ")
            except (EOFError, KeyboardInterrupt):
                print()
                return
            if line.strip() in ("/exit", "/quit"):
                return
            if line.strip() == "/reset":
                history = []
            elif line.strip():
                self._turn(line, history, turn)
                turn += 1

    def _turn(self, line: str, history: list[dict[str, str]], turn: int) -> None:
        """Answer a line; history grows by both turns, and loses its oldest where room is short."""
        history.append({"role": "user", "content": line})
        try:
            text = self.answer(self._fitting(line, history), turn)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            history.pop()
        except KeyboardInterrupt:
            print(flush=True)
            history.pop()
        else:
            history.append({"role": "assistant", "content": text})

    def _fitting(self, line: str, history: list[dict[str, str]]) -> list[int]:
        from align.checkpoints import max_positions

        if not self.args.chat:
            return self.ids(line)
        room = (max_positions(self.model) or 10**9) - self.args.max_new_tokens
        ids = self.ids(list(history))
        while len(ids) > room and len(history) > 2:
            del history[:2]
            ids = self.ids(list(history))
        return ids


def _show(text: str) -> None:
    print(text, end="", flush=True)
