"""Load on an OpenAI-compatible server: latency, first token, tokens/s and failures by concurrency.

    python benchmarks/serve_load.py --url http://127.0.0.1:8000 --concurrency 1 2 4 8 16
    python benchmarks/serve_load.py --serve transformers vllm llama.cpp --export DIR [--gguf FILE]

The second form starts each engine in turn with recipes/serve_model.py on the same model. At each
level so many requests are under way at any moment, until --requests were sent or --max_seconds are
over. Writes load.json, load.md and report.html to --output. Bounded: every request, level and the
whole have a limit in seconds; Ctrl-C gives the table of what was measured so far (exit code 130).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

from align.argument_types import number, whole  # noqa: E402
from align.config_errors import NO_VALUE, Failed, UserError, missing_file  # noqa: E402
from align.config_files import check_url  # noqa: E402

ENGINES = ("transformers", "vllm", "llama.cpp")
INTERRUPTED = 130
REFUSED = ("http_400", "http_422")  # the fields of a request
TRIES = 3  # of the warm-up
_SERVING = re.compile(r"^serving (.+?) on (https?://\S+?)(?:/v1)?(?:[\s,]|$)", re.MULTILINE)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--url", help="a server that runs: http://host:port, with or without /v1")
    what.add_argument("--serve", nargs="+", choices=ENGINES, help="start these one after another")
    p.add_argument("--model", help="served name; default: the first that the server lists")
    p.add_argument("--export", help="model folder for --serve")
    p.add_argument("--gguf", help=".gguf of the same model for llama.cpp; default: --export")
    p.add_argument("--concurrency", nargs="+", type=whole(1), default=[1, 2, 4, 8, 16, 32, 64])
    p.add_argument("--requests", type=whole(1), help="a level, at least its concurrency; default: "
                                                     "4 times that, at least 16")  # fmt: skip
    p.add_argument("--max_seconds", type=number(0, open_low=True), default=60.0,
                   help="no new request of a level after these")  # fmt: skip
    p.add_argument("--timeout", type=number(0, open_low=True), default=60.0, help="of one request")
    p.add_argument("--total_seconds", type=number(0, open_low=True), default=1800.0,
                   help="of all levels of one server; the rest is cut off")  # fmt: skip
    p.add_argument("--start_seconds", type=number(0, open_low=True), default=600.0,
                   help="until a started engine has answered once")  # fmt: skip
    p.add_argument("--max_tokens", type=whole(1), default=64)
    p.add_argument("--prompts", help="your own: .jsonl with prompt, or one a line")
    p.add_argument("--stream", action=argparse.BooleanOptionalAction, default=True)
    p.add_argument("--seed", type=int, default=0,
                   help="of the prompts; change it for a warm server")  # fmt: skip
    p.add_argument("--api_key_env", default="OPENAI_API_KEY", help="variable with the key")
    p.add_argument("--output", default="runs/load", help="folder to write; default %(default)s")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        check(args)
        return run(args, sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def check(args: argparse.Namespace) -> None:
    """UserError for what cannot be measured."""
    from align.http_link import header_token

    if args.url:
        check_url("--url", args.url, fix="Write http://host:port", token=args.api_key_env)
        args.url = args.url.rstrip("/").removesuffix("/v1")
    elif not args.export:
        raise UserError("--export", NO_VALUE, "is needed by --serve", "Give the model folder")
    for name in ("export", "gguf", "prompts"):
        given = getattr(args, name)
        if given and not Path(given).exists():
            raise missing_file(f"--{name}", given)
    args.own = read_prompts(args.prompts) if args.prompts else []
    args.token = header_token(args.api_key_env)
    if Path(args.output).is_file():
        raise UserError("--output", args.output, "is a file", "Give a folder")


def read_prompts(path: str) -> list[str]:
    """Prompts of a JSONL file (the text, or the last user message) or of a text file's lines."""
    from align.jsonl import RecordError, read_jsonl
    from align.records import parse_messages

    try:
        if not path.endswith((".jsonl", ".jsonl.gz")):
            lines = Path(path).read_text(encoding="utf-8").splitlines()
            found = [line.strip() for line in lines if line.strip()]
        else:
            rows = [row["prompt"] for _, row in read_jsonl(path)]
            found = [[m.content for m in parse_messages(r) if m.role == "user"][-1] for r in rows]
    except (RecordError, UnicodeDecodeError, KeyError, TypeError, IndexError) as error:
        fix = 'Write {"prompt": "…"} rows, or a text file with one prompt a line'
        raise UserError("--prompts", path, f"cannot be read: {error!r}", fix) from None
    if not found:
        raise UserError("--prompts", path, "holds no prompt", "Give a file with at least one")
    return found


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure every server, write after each level, and return the exit code."""
    result: dict[str, Any] = {
        "model": args.model or (Path(args.export).name if args.export else args.url),
        "command": "python benchmarks/serve_load.py " + " ".join(argv),
        "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "max_tokens": args.max_tokens, "seed": args.seed, "stream": args.stream, "runs": [],
    }  # fmt: skip
    for name in args.serve or [args.url]:
        server = {"name": name, "url": args.url, "model": args.model, "form": None, "error": None,
                  "max_tokens": args.max_tokens, "levels": []}  # fmt: skip
        result["runs"].append(server)
        try:
            if args.url:
                interrupted = asyncio.run(measure(args, server, result))
            else:
                with started(args, name, server):
                    interrupted = asyncio.run(measure(args, server, result))
        except Failed as error:  # the other engines are measured all the same
            server["error"], interrupted = str(error), False
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:  # while an engine started
            server["error"], interrupted = "interrupted", True
        write(args, result)
        if interrupted:
            break
    print(f"\nreport: {Path(args.output) / 'report.html'}")
    if interrupted:
        return INTERRUPTED
    healthy = all(any(lv["completed"] for lv in s["levels"]) for s in result["runs"])
    return 0 if healthy and not any(s["error"] for s in result["runs"]) else 1


async def measure(args: argparse.Namespace, server: dict[str, Any], result: dict[str, Any]) -> bool:
    """All levels of one server; True where Ctrl-C ended them. Failed where it does not answer."""
    import load_client as load
    from load_metrics import Watch
    from load_report import HEAD, row

    stop = asyncio.Event()
    with suppress(NotImplementedError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    end = time.monotonic() + args.total_seconds
    async with load.open_client(args.token) as client, load.open_client(args.token) as other:
        server["model"] = server["model"] or await first_model(other, server["url"])
        texts = load.prompts(args.seed, args.own)
        if args.url:
            result["model"] = server["model"]
        extra = await warm_up(client, args, server, texts)
        print(f"\n{server['name']}: {server['model']}\n" + "\t".join(HEAD), flush=True)
        url = f"{server['url']}/v1/chat/completions"

        async def send() -> load.Result:
            body = load.body_of(next(texts), server["model"], args.max_tokens, args.stream, extra)
            return await load.ask(client, url, body, args.timeout)

        for concurrency in args.concurrency:
            left = end - time.monotonic()
            if left <= 0 or stop.is_set():
                break
            async with Watch(other, f"{server['url']}/metrics") as watch:
                level = await load.run_level(
                    # Fewer than the concurrency would be another level under its name.
                    send, concurrency, max(args.requests or max(16, 4 * concurrency), concurrency),
                    seconds=args.max_seconds, total_left=left, stop=stop,
                )  # fmt: skip
            server["levels"].append({**load.summary(level), "engine": watch.result()})
            print("\t".join(row(server["levels"][-1])), flush=True)
            write(args, result)
    if len(server["levels"]) < len(args.concurrency) and not stop.is_set():
        server["error"] = f"the total of {args.total_seconds:g} s was over before all levels"
    return stop.is_set()


async def first_model(client: Any, url: str) -> str:
    """The first name of /v1/models."""
    import aiohttp

    try:
        async with client.get(f"{url}/v1/models", timeout=aiohttp.ClientTimeout(30)) as answer:
            return str((await answer.json(content_type=None))["data"][0]["id"])
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        raise Failed(f"{url} does not answer: {error!r}") from None
    except (ValueError, LookupError, TypeError):
        raise Failed(f"{url}/v1/models lists no model: give --model") from None


async def warm_up(
    client: Any, args: argparse.Namespace, server: dict[str, Any], texts: Iterator[str]
) -> dict[str, Any]:
    """Ask once, uncounted; the fields with which the server takes a request of fixed length."""
    import load_client as load

    limit = max(args.timeout, args.start_seconds if args.serve else 0.0)
    for form, extra in load.FORMS:
        server["form"] = form
        for _ in range(TRIES):
            body = load.body_of(next(texts), server["model"], args.max_tokens, args.stream, extra)
            found = await load.ask(client, f"{server['url']}/v1/chat/completions", body, limit)
            if found.failure is None or found.failure in REFUSED:
                break
        if found.failure not in REFUSED:
            break
    if found.failure not in (None, "empty", "stream"):  # these the levels count
        raise Failed(f"{server['url']} did not answer the warm-up: {found.failure} {found.detail}")
    return extra


@contextmanager
def started(args: argparse.Namespace, engine: str, server: dict[str, Any]) -> Iterator[None]:
    """The engine, served by recipes/serve_model.py; it is stopped at the end."""
    from align.engines.process import Launch, Server, free_port

    model = args.gguf if engine == "llama.cpp" and args.gguf else args.export
    port, logs = free_port(), Path(args.output) / f"server-{engine}"
    command = [
        sys.executable, str(ROOT.parent / "recipes" / "serve_model.py"), "--model", str(model),
        "--engine", engine, "--port", str(port), "--log_dir", str(logs),
        "--timeout", f"{args.start_seconds:g}",
    ]  # fmt: skip
    log = logs / "serve_model.out"
    log.unlink(missing_ok=True)
    begun = time.monotonic()
    print(f"{engine}: starting", flush=True)
    launch = Launch(f"serve_model ({engine})", command, f"http://127.0.0.1:{port}", log)
    with Server(launch) as process:
        while not (said := _SERVING.findall(_read(log))):
            if not process.alive() or time.monotonic() - begun > args.start_seconds:
                raise Failed(f"{engine} does not serve. The end of {log}:\n{_read(log)[-1000:]}")
            time.sleep(0.1)
        name, server["url"] = said[-1]
        server["model"] = args.model or name.split(", ")[0]  # of a base and its adapters
        server["start_s"] = time.monotonic() - begun
        yield


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def write(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """load.json, load.md and report.html of what there is so far."""
    from load_report import markdown, write_report

    from align.files import write_atomic

    output = Path(args.output)
    write_atomic(output / "load.json", json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    write_atomic(output / "load.md", markdown(result))
    write_report(result, output / "report.html")


if __name__ == "__main__":
    sys.exit(main())
