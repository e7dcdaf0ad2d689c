"""What stands between clients and an engine: the front that checks, the proxy that keeps a log.

    client ─► proxy (--request_log) ─► front (transformers; vLLM with a key) ─► engine

Each part that is there listens on a loopback port of its own, the first on the public one.
"""

from __future__ import annotations

import argparse
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from align.engines.process import url_of
from align.serving.engine_plan import Plan


class Stand:
    """The parts for a plan; what is wrong with them shows before the engine starts.

    open_things: ends them. direct: there is none, and the engine listens on the public port.
    """

    def __init__(
        self, args: argparse.Namespace, plan: Plan, listener: socket.socket, key: str | None,
        open_things: ExitStack,
    ) -> None:  # fmt: skip
        self._plan, self._key, self._open = plan, key, open_things
        self._length: int | None = args.max_model_len
        self._public = self._inner = listener
        self.direct = not (plan.front or args.request_log)
        self._proxy: Any = None
        self._apps: list[Any] = []
        if args.request_log:
            from align.serving.proxy import make_app

            upstream = plan.launch.url
            if plan.front:
                self._inner = open_things.enter_context(socket.create_server(("127.0.0.1", 0)))
                upstream = url_of(*self._inner.getsockname()[:2])
            log = Path(args.request_log)
            self._proxy = make_app(upstream, log, log_texts=args.log_texts, token=key)

    def serve(self) -> None:
        """Serve the parts, once the engine answers."""
        if self._plan.front:
            self._start(self._front(), self._inner)
        if self._proxy is not None:
            self._start(self._proxy, self._public)

    def alive(self) -> bool:
        """Whether all of them still serve."""
        return all(app.alive() for app in self._apps)

    def _front(self) -> Any:
        from align.serving.front import Front, make_app

        plan, context = self._plan, None
        if plan.checks:
            from align.serving.prompt_tokens import context_of

            context = context_of(plan.served.path, self._length)
        return make_app(Front(plan.launch.url, plan.served.name, key=self._key, context=context))

    def _start(self, app: Any, listener: socket.socket) -> None:
        from align.serving.app_thread import AppThread

        self._apps.append(AppThread(app, listener))
        self._open.callback(self._apps[-1].stop)
