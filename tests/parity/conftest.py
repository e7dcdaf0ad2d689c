"""The model folder and adapters of the parity tests, made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import parity_runs as runs


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    pytest.importorskip("trl")
    return runs.make_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def adapter(model, tmp_path_factory) -> Path:
    """A fresh adapter: B is 0, so the adapted model is the base."""
    return runs.make_adapter(model, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="session")
def moved_adapter(model, tmp_path_factory) -> Path:
    """An adapter that has been trained: the adapted model is not the base."""
    return runs.make_adapter(model, tmp_path_factory.mktemp("moved"), moved=0.05)
