"""What every test gets: no network, no telemetry, one thread, launcher variables gone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import tables

# Before any test module imports torch or a hub client.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_USE_CPU", "ACCELERATE_USE_DEEPSPEED")
_FOUND: dict[str, dict[tuple[str, str], str]] = {}
_PASSED = pytest.StashKey[bool]()
FAILED = "failed"


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    """A test started from inside a launched job must not join that job's process group."""
    for name in _LAUNCHER:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cell(request):
    """cell(table, row, column, text): what the test found, for a table of the documentation.

    If the test fails it is "failed", whatever other cases of the same test find. A cell that is
    set with fixed=True says the same either way.
    """
    mine: list[tuple[str, tuple[str, str], str, bool]] = []

    def note(table: str, row: str, column: str, text: object, *, fixed: bool = False) -> None:
        mine.append((table, (row, column), str(text), fixed))

    yield note
    passed = request.node.stash.get(_PASSED, False)
    for table, place, text, fixed in mine:
        found = _FOUND.setdefault(table, {})
        if fixed or (passed and found.get(place) != FAILED):
            found[place] = text
        elif not passed:
            found[place] = FAILED


@pytest.fixture
def fault(request, cell):
    """fault(what, promised): the test that asks shows what is promised of a fault."""

    def shows(what: str, promised: str) -> None:
        test = request.node.nodeid.partition("[")[0].replace("tests/", "", 1)
        cell("faults", what, "promised", promised, fixed=True)
        cell("faults", what, "test", f"`{test}`", fixed=True)
        cell("faults", what, "result", "passed")

    return shows


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        item.stash[_PASSED] = report.passed
    return report


def pytest_sessionfinish(session):
    if os.environ.get("ALIGN_TABLES") == "write" and _FOUND:
        tables.write(_FOUND)
