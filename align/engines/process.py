"""A server as a child process: started with a log, waited for until it answers, stopped for sure.

The child leads a process group of its own, because engines start workers that outlive a plain
kill of their parent, and `guard.py` stands between: a server never outlives the process that
started it, however that one ends. No torch.
"""

from __future__ import annotations

import http.client
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from align.config_errors import Failed, is_secret
from align.engines import guard

POLL_S = 0.2
TAIL = 2000  # characters of the log that an error shows
GRACE_S = 15.0  # seconds between SIGTERM and SIGKILL
# Signals of a program that fails, none of which anybody sends it.
CRASHES = (signal.SIGSEGV, signal.SIGILL, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT)


@dataclass(frozen=True)
class Launch:
    """What starts a server. url: http://host:port. health: path that answers 200 once it serves.

    env: variables added to those of this process. log: file that stdout and stderr go to; it is
    appended to. cwd: folder to start in, this process' own by default. after_crash: words that it
    is started again with, once, where it crashes before it serves.
    """

    name: str
    command: Sequence[str]
    url: str
    log: Path
    health: str = "/health"
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    after_crash: Sequence[str] = ()

    def shown(self) -> str:
        """What a shell would run, without the values of keys and tokens."""
        words = [f"{k}={'***' if is_secret(k) else shlex.quote(v)}" for k, v in self.env.items()]
        line = " ".join([*words, shlex.join(self.command)])
        return line if self.cwd is None else f"cd {shlex.quote(str(self.cwd))} && {line}"


class Server:
    """A running server process.

    Started by the constructor; `wait` until it answers. As a context manager it is stopped at the
    end.
    """

    def __init__(self, launch: Launch) -> None:
        """Start the process; nothing is waited for. note: words that a crash made it need."""
        self.launch, self.note = launch, ""
        launch.log.parent.mkdir(parents=True, exist_ok=True)
        self._start(launch.command)

    def _start(self, command: Sequence[str]) -> None:
        self._log: TextIO = self.launch.log.open("a", encoding="utf-8")
        self._from = self._log.tell()
        # The end that closes with this process: programs that it starts do not inherit it, only
        # what it forks without a program (and a DataLoader's workers end with their parent).
        watched, self._life = os.pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-IS", guard.__file__, str(watched), str(GRACE_S), *command],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.launch.env},
                cwd=self.launch.cwd,
                pass_fds=(watched,),
                start_new_session=True,
            )
        except BaseException:
            self._log.close()
            os.close(self._life)
            raise
        finally:
            os.close(watched)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """http://host:port."""
        return self.launch.url

    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def healthy(self) -> bool:
        """Whether it answers its health path with 200 now."""
        return answers(self.url + self.launch.health)

    def wait(self, timeout_s: float = 600.0, told: Callable[[], bool] = lambda: False) -> bool:
        """Wait until it serves; False where `told` said to give up.

        Failed, with the end of the log, when the process ends first or the time is over.
        """
        end = time.monotonic() + timeout_s
        while not self.healthy():
            if not self.alive() and not self._again():
                raise Failed(self.ended())
            if time.monotonic() > end:
                raise Failed(
                    f"{self.launch.name} did not answer at {self.url} in {timeout_s:g} s. "
                    + self.last_words()
                )
            if told():
                return False
            time.sleep(POLL_S)
        return True

    def _again(self) -> bool:
        """Start it once more where it crashed and there are words against that."""
        code, words = self.process.poll() or 0, self.launch.after_crash
        if self.note or not words or -code not in CRASHES:
            return False
        self.note = shlex.join(words)
        signal_name = signal.Signals(-code).name
        line = f"{self.launch.name} ended with {signal_name}: started again with {self.note}"
        print(line, file=sys.stderr, flush=True)
        self.stop()
        self._start([*self.launch.command, *words])
        return True

    def ended(self) -> str:
        """How it ended by itself, with the end of its log."""
        return f"{self.launch.name} ended with code {self.process.poll()}. {self.last_words()}"

    def stop(self, grace_s: float = GRACE_S) -> int | None:
        """End the process and its children: SIGTERM, after grace_s SIGKILL. Returns its code."""
        if self.alive():
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
        self._signal(signal.SIGKILL)  # workers that their parent left behind
        if not self._log.closed:
            self._log.close()
            os.close(self._life)
        return self.process.wait()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # all of them have ended
            os.killpg(self.process.pid, number)

    def last_words(self) -> str:
        """The end of what it wrote, and where."""
        with self.launch.log.open("rb") as stream:
            stream.seek(self._from)
            text = stream.read().decode("utf-8", "replace").strip()
        return f"The end of {self.launch.log}:\n{text[-TAIL:]}"


def answers(url: str, timeout: float = 2.0) -> bool:
    """Whether a GET of url is answered with 200."""
    parts = urlsplit(url)
    link = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        link.request("GET", parts.path or "/")
        return link.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        link.close()


def url_of(host: str, port: int) -> str:
    """http://host:port to ask a server that listens there; IPv6 addresses get brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
