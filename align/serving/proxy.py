"""A request log in front of an engine: `run` serves until a signal, `ProxyServer` in a thread.

    client ── public port ── proxy ── private port ── engine
                               └─ requests-2026-01-01.jsonl

Everything is passed on as it comes, streams without waiting; docs/monitoring.md says what is kept.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from align.config_errors import NO_VALUE, UserError
from align.config_files import check_url
from align.engines.process import url_of
from reward_models.server_options import bound

PACKAGES = ("aiohttp", "prometheus_client", "starlette", "uvicorn")


def check_log(path: str | Path, field: str = "--request_log") -> Path:
    """The log's folder, or a .jsonl file; UserError where it cannot be written or read."""
    log = Path(path)
    one_file = log.suffix == ".jsonl"
    if one_file and log.is_dir():
        raise UserError(field, str(path), "is a folder", "Leave .jsonl out of its name")
    if not one_file and log.exists() and not log.is_dir():
        raise UserError(field, str(path), "is a file", "Give a folder, or a name with .jsonl")
    there = next(p for p in (log, *log.absolute().parents) if p.exists())
    good = os.access(there, os.W_OK) and (there.is_dir() or there == log)
    if not good:
        raise UserError(field, str(path), f"cannot be written: look at {there}", "Give another")
    return log


def check_packages(names: Sequence[str], field: str, value: Any) -> None:
    """UserError with the install line where a package is missing."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        reason = f"needs {', '.join(missing)}, not installed here"
        raise UserError(field, value, reason, "Run: pip install 'align[serve]'")


def make_app(
    upstream: str, log: Path | None, *, log_texts: bool = False, token: str | None = None
) -> Any:
    """The ASGI application in front of `upstream` (http://host:port, with or without /v1).

    log: folder (a file a day) or .jsonl file; None: figures on /metrics only. log_texts: keep what
    was asked and answered; without it figures only. token: what /feedback and /metrics ask for.
    UserError where a package is missing, or upstream or log cannot be used.
    """
    check_packages(PACKAGES, "request_log", NO_VALUE)
    check_url("upstream", upstream, fix="Write http://host:port")
    log = None if log is None else check_log(log)
    from align.serving.proxy_app import create_app

    base = upstream.rstrip("/").removesuffix("/v1")
    return create_app(base, log, log_texts=log_texts, token=token)


class ProxyServer:
    """The proxy in a thread of this process; a context manager.

    port: 0: any free one. UserError where the port is in use.
    """

    def __init__(
        self, upstream: str, host: str, port: int, log: Path | None, *, log_texts: bool = False,
        token: str | None = None,
    ) -> None:  # fmt: skip
        self.app = make_app(upstream, log, log_texts=log_texts, token=token)
        self._stack = ExitStack()
        # Whether other machines may ask is checked by whoever starts the engine.
        where = argparse.Namespace(host=host, port=port, allow_public=True)
        self._listener: socket.socket = self._stack.enter_context(bound(where, token))

    @property
    def url(self) -> str:
        """http://host:port."""
        return url_of(*self._listener.getsockname()[:2])

    def __enter__(self) -> ProxyServer:
        from align.serving.app_thread import AppThread

        try:
            thread = AppThread(self.app, self._listener)
        except BaseException:
            self._stack.close()
            raise
        self._stack.callback(thread.stop)
        return self

    def __exit__(self, *_: Any) -> None:
        """Let answers under way end (five seconds), write what waits for the log, stop."""
        self._stack.close()


def run(
    upstream: str, host: str, port: int, log: Path | None, *, log_texts: bool = False,
    ready: Callable[[str], None] = lambda _: None, stop: threading.Event | None = None,
    token: str | None = None,
) -> int:  # fmt: skip
    """Serve until SIGTERM, SIGINT or `stop`; returns 0.

    ready: called with http://host:port when requests are taken. In another thread than the main one
    signals do not come, and `stop` is needed.
    """
    stop = stop or threading.Event()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda *_: stop.set())
    try:
        with ProxyServer(upstream, host, port, log, log_texts=log_texts, token=token) as server:
            ready(server.url)
            while not stop.wait(0.2):  # a wait without end would hold signals back on Windows
                continue
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0
