"""What every test gets: no network, no telemetry, one thread, launcher variables gone."""

from __future__ import annotations

import os

import pytest

# Before any test module imports torch or a hub client.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_USE_CPU", "ACCELERATE_USE_DEEPSPEED")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    """A test started from inside a launched job must not join that job's process group."""
    for name in _LAUNCHER:
        monkeypatch.delenv(name, raising=False)
