"""``python -m reward_models serve``: options, socket, model, and a server that ends in order.

What can be wrong is found in this order: options, missing packages, the checkpoint's contract, the
port; only then torch is imported and the model loaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import signal
import socket
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from align.config_errors import NO_VALUE, UserError
from align.files import fingerprint
from reward_models.server_options import bound, check_options, in_use, read_token

PACKAGES = ("fastapi", "prometheus_client", "uvicorn")
KEEP_ALIVE = 75  # seconds that an idle connection stays open
_MIB = 1 << 20
READ = {".bin", ".jinja", ".json", ".model", ".safetensors", ".txt"}  # files that scores come from


def serve(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT; what is queued then is still answered. Returns 0.

    Raises UserError before anything is loaded where an option, the checkpoint or the port is wrong.
    """
    from reward_models.contract import read_contract

    check_options(args)
    token = read_token(args)
    _need_packages()
    folder = Path(args.model)
    if not folder.is_dir():
        raise UserError("model", args.model, "is not a folder", "Give a reward run's final folder")
    read_contract(folder)
    with bound(args, token) as listener:
        app, name = _application(args, token)
        try:
            listener.listen(2048)
        except OSError:  # another server took the port while the model was loading
            raise in_use(args.port) from None
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        if args.allow_public and token is None:
            print(f"warning: whoever reaches {shown}:{port} may ask", file=sys.stderr, flush=True)
        print(f"serving {args.model}, model {name}, on http://{shown}:{port}", flush=True)
        _run(app, listener, args.timeout)
    print("stopped", flush=True)
    return 0


def model_name(folder: Path, max_length: int | None, calibrated: bool) -> str:
    """16 hex digits that are the same where every text gets the same score.

    Of the checkpoint's files that are read, how much of a text is read, and the unit of scores.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in READ)
    parts = [[(p.name, fingerprint(p)) for p in files], max_length, calibrated]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _application(args: argparse.Namespace, token: str | None) -> tuple[Any, str]:
    """The application, and its model's name."""
    from reward_models.scorer import Scorer
    from reward_models.server_app import Limits, create_app
    from reward_models.server_engine import ScorerEngine

    scorer = Scorer(args.model, args.device, args.batch_size, args.max_length)
    engine = ScorerEngine(scorer, calibrated=args.calibrated)
    _try(engine, args.model)
    scorer.truncated = 0
    limits = Limits(
        max_body=int(args.max_body_mb * _MIB),
        max_texts=args.max_texts,
        max_queue=args.max_queue,
        batch_size=args.batch_size,
        max_wait=args.max_wait_ms / 1000,
        timeout=args.timeout,
    )
    name = model_name(Path(args.model), scorer.max_length, args.calibrated)
    about = {
        "model": name,
        "calibrated": args.calibrated,
        "max_length": scorer.max_length,
        "contract": asdict(scorer.contract),
    }
    return create_app(engine, limits, token=token, about=about), name


def _try(engine: Any, model: str) -> None:
    """One score before the first request: what cannot work shows now."""
    from align.records import Message, RecordError
    from reward_models.server_requests import Item

    try:
        ids, _ = engine.encode(Item((Message("user", "?"),), "!"))
    except RecordError as error:
        reason = f"cannot read a short question: {error.message}"
        raise UserError("model", model, reason, "Check its template and --max_length") from None
    (score,) = engine.score([ids])
    if not math.isfinite(score):
        raise UserError("model", model, f"gives {score} as a score", "The model has diverged")


def settings(app: Any, timeout: float) -> Any:
    """How uvicorn serves the application."""
    import uvicorn

    return uvicorn.Config(
        app,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        # Requests in the queue end by themselves at the latest after their own timeout.
        timeout_graceful_shutdown=int(timeout) + 5,
    )


def _run(app: Any, listener: socket.socket, timeout: float) -> None:
    import uvicorn

    # uvicorn raises the signal again when it has finished, for the handlers that were there before.
    before = {s: signal.signal(s, _ignore) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        uvicorn.Server(settings(app, timeout)).run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore(*_: Any) -> None:
    """A signal that has been acted on."""


def _need_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        reason = f"needs {', '.join(missing)}, not installed here"
        raise UserError("serve", NO_VALUE, reason, "Run: pip install 'align[serve]'")
