"""What the server is told on the command line, and the address that it listens on."""

from __future__ import annotations

import argparse
import errno
import hmac
import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from align.config_errors import NO_VALUE, UserError

TOKEN = "ALIGN_REWARD_TOKEN"
_NUMBERS: tuple[tuple[str, type, Any, str], ...] = (
    ("--port", int, 8001, "port; 0: any free one"),
    ("--batch_size", int, 16, "texts in one forward pass"),
    ("--max_wait_ms", float, 5.0, "how long a text waits for others"),
    ("--max_queue", int, 1024, "texts that may wait; then 503"),
    ("--max_texts", int, 256, "texts in a request; then 413"),
    ("--max_body_mb", float, 16.0, "MiB of a request; then 413"),
    ("--timeout", float, 60.0, "seconds for a request; then 504"),
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    add = command.add_argument
    add("--model", required=True, metavar="DIR", help="a reward checkpoint")
    add("--host", default="127.0.0.1", help="address to listen on; default %(default)s")
    for name, kind, default, text in _NUMBERS:
        add(name, type=kind, default=default, help=f"{text}; default %(default)s")
    add("--token", help=f"what clients must send; rather set {TOKEN}: others see a command line")
    add("--allow_public", action="store_true", help="other machines may ask without a token")
    add("--max_length", type=int, help="tokens; default: the contract's")
    add("--device", help="cpu, cuda, cuda:1, …; default cpu")
    add(
        "--calibrated", action="store_true", help="in standard deviations of the contract's samples"
    )


def check_options(args: argparse.Namespace) -> None:
    """Raise UserError for a number that cannot be used."""
    for name, least in (("batch_size", 1), ("max_texts", 1), ("max_queue", 1), ("max_length", 2)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(name, value, f"is below {least}", f"Use {least} or more")
    if not 0 <= args.port <= 65535:
        raise UserError("port", args.port, "is no port", "Use 1 to 65535, or 0 for a free one")
    for name in ("timeout", "max_body_mb"):
        if not 0 < getattr(args, name) < 1e6:
            raise UserError(name, getattr(args, name), "is not in 0 to 1e6", "Use e.g. 60 or 16")
    if not 0 <= args.max_wait_ms <= 10_000:
        raise UserError("max_wait_ms", args.max_wait_ms, "is not in 0 to 10000", "Use e.g. 5")
    if args.max_texts > args.max_queue:
        reason = f"is over max_queue={args.max_queue}: such a request could never wait"
        raise UserError("max_texts", args.max_texts, reason, "Raise --max_queue")


def read_token(args: argparse.Namespace) -> str | None:
    """The token of the command line or the environment; its value is never printed."""
    name = "token" if args.token is not None else TOKEN
    token = args.token if args.token is not None else os.environ.get(TOKEN)
    if token is None:
        return None
    if not token or not all("!" <= char <= "~" for char in token):
        reason = "is empty, or has spaces or characters that a header cannot carry"
        raise UserError(name, NO_VALUE, reason, "Use letters and digits")
    return token


def bears(header: str, token: str | None) -> bool:
    """Whether an Authorization header holds the token, or none is asked for."""
    if token is None:
        return True
    scheme, _, given = header.partition(" ")
    # Bytes of equal meaning: headers arrive as latin-1, and the time must not tell how many
    # characters are right.
    same = hmac.compare_digest(given.strip().encode("latin-1"), token.encode("latin-1"))
    return scheme.lower() == "bearer" and same


@contextmanager
def bound(
    args: argparse.Namespace, token: str | None, fix: str = f"Set {TOKEN}, or add --allow_public"
) -> Iterator[socket.socket]:
    """A socket with the address; connections are refused until it listens.

    fix: what to do where other machines could ask without a token.
    """
    try:
        found = socket.getaddrinfo(args.host, args.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = f"cannot be resolved: {error}"
        raise UserError("host", args.host, reason, "Use 127.0.0.1") from None
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        _check_public(args, token, fix)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # the port of a server that has just ended; Windows would share it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except PermissionError:
            raise UserError("port", args.port, "is not yours to use", "Use 1024 or more") from None
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise in_use(args.port) from None
            reason = f"cannot be listened on: {error.strerror or error}"
            raise UserError("host", args.host, reason, "Use 127.0.0.1") from None
        yield listener
    finally:
        listener.close()


def _check_public(args: argparse.Namespace, token: str | None, fix: str) -> None:
    if token is None and not args.allow_public:
        reason = "lets other machines in, and there is no token"
        raise UserError("host", args.host, reason, fix)


def in_use(port: int) -> UserError:
    """The error for a port that something else listens on."""
    return UserError("port", port, "is in use", "Stop what listens there, or use another --port")
