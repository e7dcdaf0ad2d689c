"""Installs Label Studio in a virtual environment of its own, runs it on loopback, speaks its API.

Its pins contradict this project's, so it never enters the project's environment. The environment is
kept under the temporary folder and used again.
"""

from __future__ import annotations

import fcntl
import http.cookiejar
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# Pinned: the API and the exports are what is tested. This version was run by hand first.
REQUIREMENT = "label-studio==1.23.2"
# What pip says when there is no index, as against a package that cannot be installed.
NO_INDEX = re.compile(
    r"from versions: none|NewConnectionError|NameResolutionError|ConnectTimeout|ProxyError"
    r"|Network is unreachable|Temporary failure in name resolution"
)
START_SECONDS = 600
TOKEN = "0123456789abcdef0123456789abcdef01234567"


def tool_python(requirement: str) -> Path:
    """The Python of an environment that holds a package; skips the test without an index."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", requirement)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = Path(tempfile.gettempdir()) / f"align-tests-{os.getuid()}" / f"{name}-py{version}"
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    python, done = folder / "bin" / "python", folder / "installed"
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        # Compiling 40,000 files takes longer than running the few that are needed uncompiled.
        install = [str(python), "-m", "pip", "install", "-q", "--no-compile", requirement]
        made = subprocess.run(install, capture_output=True, text=True, check=False)
        if made.returncode and NO_INDEX.search(made.stderr):
            pytest.skip(f"pip reaches no index with {requirement}: {made.stderr.strip()[-300:]}")
        assert made.returncode == 0, made.stderr[-3000:]
        done.touch()
    return python


class User:
    """One annotator's access to the API."""

    def __init__(self, url: str, token: str):
        self.url, self.token = url, token
        self.id = str(self.call("GET", "/api/current-user/whoami")["id"])

    def raw(self, method: str, path: str, body: Any = None) -> bytes:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Token {self.token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read()[:500]!r}") from None

    def call(self, method: str, path: str, body: Any = None) -> Any:
        return json.loads(self.raw(method, path, body) or "null")

    def project(self, title: str, config: str) -> int:
        settings = {"title": title, "label_config": config}
        return self.call("POST", "/api/projects/", settings)["id"]

    def upload(self, project: int, tasks: list[dict[str, Any]]) -> list[int]:
        path = f"/api/projects/{project}/import?return_task_ids=true"
        return self.call("POST", path, tasks)["task_ids"]

    def annotate(self, task: int, *results: dict[str, Any], **more: Any) -> int:
        body = {"result": list(results), "lead_time": 3.5, **more}
        return self.call("POST", f"/api/tasks/{task}/annotations/", body)["id"]

    def change(self, annotation: int, *results: dict[str, Any]) -> None:
        self.call("PATCH", f"/api/annotations/{annotation}/", {"result": list(results)})

    def draft(self, task: int, *results: dict[str, Any]) -> None:
        self.call("POST", f"/api/tasks/{task}/drafts", {"result": list(results)})

    def export(self, project: int, kind: str, path: Path, everything: bool = False) -> Path:
        query = f"exportType={kind}&download_all_tasks={str(everything).lower()}"
        path.write_bytes(self.raw("GET", f"/api/projects/{project}/export?{query}"))
        return path


def sign_up(url: str, email: str) -> User:
    """A new user, through the form that people use."""
    cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    browser = urllib.request.build_opener(cookies)
    form = f"{url}/user/signup/"
    page = browser.open(form, timeout=120).read().decode()
    found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
    assert found, page[:500]
    fields = {"csrfmiddlewaretoken": found[1], "email": email, "password": "one-two-three-4"}
    body = urllib.parse.urlencode(fields).encode()
    browser.open(urllib.request.Request(form, body, {"Referer": form}), timeout=120)
    token = json.load(browser.open(f"{url}/api/current-user/token", timeout=120))["token"]
    return User(url, token)


@contextmanager
def running(folder: Path) -> Iterator[tuple[User, User]]:
    """Label Studio on loopback with an empty SQLite database, and two users."""
    python = tool_python(REQUIREMENT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8",
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder / "data"),
        # No telemetry, no look for a newer version, no crash reports.
        "COLLECT_ANALYTICS": "false", "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": "",
    }  # fmt: skip
    command = [
        str(python), "-m", "label_studio.server", "start", "--no-browser",
        "--internal-host", "127.0.0.1", "--port", str(port),
        "--username", "first@example.com", "--password", "one-two-three-4", "--user-token", TOKEN,
        "--enable-legacy-api-token",
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with open(folder / "server.log", "w+") as log:
        server = subprocess.Popen(
            command, env=settings, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            _wait(url, server, folder / "server.log")
            yield User(url, TOKEN), sign_up(url, "second@example.com")
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait(20)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"Label Studio did not start: {log.read_text()[-3000:]}")
