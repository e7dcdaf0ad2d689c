"""`recipes/serve_model.py`: one engine on one exported model, from its start to a clean stop.

Found wrong in this order, all within a second: options, the model's path, the key, the address,
the engine's program. Then the engine is started, waited for, and watched.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from align.config_errors import Failed
from align.engines.process import POLL_S, Server, url_of
from align.engines.transformers_serve import linked
from align.files import read_object, write_atomic
from align.serving.engine_plan import Plan, make_plan
from align.serving.options import check_options, choose_engine, parser, read_key, split_words
from align.serving.served_model import check_pair, find_served
from align.serving.stand import Stand
from reward_models.server_options import bound

SAY_EVERY_S = 10.0
PUBLIC = "Name a variable that holds a key with --api_key_env, or add --allow_public"


def main(argv: Sequence[str] | None = None) -> int:
    """Serve from the command line until SIGTERM or SIGINT; 0 then. UserError is the caller's."""
    own, words = split_words(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(own)
    check_options(args)
    served = find_served(args.model, args.served_model_name, gguf=args.engine == "llama.cpp")
    engine = choose_engine(args.engine, served)
    check_pair(served, engine, args.model)
    key = read_key(args)
    with bound(args, key, PUBLIC) as listener:
        plan = make_plan(args, served, engine, words, key, listener.getsockname()[:2])
        if args.dry_run:
            print(plan.launch.shown())
            return 0
        return run(args, plan, listener, key)


def run(args: argparse.Namespace, plan: Plan, listener: socket.socket, key: str | None) -> int:
    """Start, announce, watch and stop. Failed with the end of the log where the engine ends."""
    _prepare(args, plan)
    with _told_to_stop() as stop, ExitStack() as open_things:
        public = url_of(*listener.getsockname()[:2])
        stand = Stand(args, plan, listener, key, open_things)
        if stand.direct:
            listener.close()  # the engine takes the port itself
        started = time.monotonic()
        server = open_things.enter_context(Server(plan.launch))
        progress = Progress(plan.launch.name, args.timeout)
        if not server.wait(args.timeout, told=lambda: progress.say() or stop.is_set()):
            print("stopped", flush=True)
            return 0
        stand.serve()
        print(
            f"serving {', '.join(names(plan))} on {public}/v1 (engine {plan.engine}, "
            f"{time.monotonic() - started:.0f} s), log {plan.launch.log}", flush=True,
        )  # fmt: skip
        while not stop.is_set():
            if not server.alive():
                raise Failed(server.ended())
            if not stand.alive():
                raise Failed("the HTTP front ended by itself; its error stands above")
            stop.wait(POLL_S)
    print("stopped", flush=True)
    return 0


def names(plan: Plan) -> list[str]:
    """What clients may ask for."""
    return [plan.served.name, *(name for name, _, _ in plan.served.adapters)]


class Progress:
    """One line on stderr now and then while an engine loads."""

    def __init__(self, name: str, most_s: float) -> None:
        self.name, self.most_s = name, most_s
        self._began = self._said = time.monotonic()

    def say(self) -> bool:
        """Print it where it is time to; always False."""
        now = time.monotonic()
        if now - self._said >= SAY_EVERY_S:
            self._said = now
            spent = now - self._began
            line = f"waiting for {self.name}: {spent:.0f} s of at most {self.most_s:g} s"
            print(line, file=sys.stderr, flush=True)
        return False


@contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM, SIGINT or SIGHUP sets; the handlers before come back at the end."""
    stop = threading.Event()
    handler: Callable[..., None] = lambda *_: stop.set()  # noqa: E731
    before = {s: signal.signal(s, handler) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _prepare(args: argparse.Namespace, plan: Plan) -> None:
    """The log folder, and what should be said before the engine starts."""
    write_atomic(plan.launch.log.parent / "command.txt", plan.launch.shown() + "\n")
    if plan.launch.cwd is not None:
        linked(plan.served.path, plan.launch.cwd, plan.served.name)
    config = read_object(plan.served.path / "generation_config.json")
    if plan.engine == "transformers" and config.get("do_sample") is not True:
        line = "generation_config.json has no do_sample: true, so the engine answers greedily"
        print(f"warning: {line}, whatever temperature is asked for", file=sys.stderr, flush=True)
    if args.allow_public and args.api_key_env is None:
        print(f"warning: whoever reaches {args.host} may ask", file=sys.stderr, flush=True)
