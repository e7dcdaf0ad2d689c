"""An ASGI application served by a thread of this process, on a socket that is bound."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

from align.config_errors import Failed
from reward_models.server import settings
from reward_models.server_options import in_use

START_S, STOP_S = 10.0, 30.0
BACKLOG = 2048


class AppThread:
    """Serves from construction until `stop`; signals are left to the main thread."""

    def __init__(self, app: Any, listener: socket.socket) -> None:
        """UserError where the port is taken by now; Failed where it does not start."""
        import uvicorn

        try:
            listener.listen(BACKLOG)
        except OSError:  # both may be bound to a port, one may listen
            raise in_use(listener.getsockname()[1]) from None

        # What is under way when it ends gets a moment, not the minutes that an answer may take.
        self._server = uvicorn.Server(settings(app, timeout=0))
        sockets = {"sockets": [listener]}
        self._thread = threading.Thread(target=self._server.run, kwargs=sockets, daemon=True)
        self._thread.start()
        end = time.monotonic() + START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                raise Failed("the HTTP front did not start; its error stands above")
            time.sleep(0.02)

    def alive(self) -> bool:
        """Whether it serves."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End it; what is under way has five seconds, what is to be written after it some more."""
        self._server.should_exit = True
        self._thread.join(STOP_S)
