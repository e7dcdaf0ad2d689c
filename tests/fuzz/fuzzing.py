"""How many inputs a property is held to: a few in every run, 103,000 in all in the nightly one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def sizes(few: int, many: int) -> Any:
    """Parametrises a test with the number of inputs."""
    many = int(os.environ.get("ALIGN_FUZZ", many))  # to look for something in less time
    cases = [
        pytest.param(few, id="few"),
        pytest.param(many, id="many", marks=[pytest.mark.nightly, pytest.mark.timeout(7200)]),
    ]
    return pytest.mark.parametrize("examples", cases)


def said(error: Exception) -> None:
    """A refusal says something, and what kind of row it drops where it drops one."""
    assert str(error)
    assert getattr(error, "code", "wrong input")


def hold(examples: int, check: Callable[..., None], *strategies: Any) -> None:
    """Run a property; the few are the same in every run, the many are new each time."""
    chosen = settings(
        max_examples=examples, deadline=None, database=None, derandomize=examples < 1000,
        suppress_health_check=list(HealthCheck), print_blob=True,
    )  # fmt: skip
    chosen(given(*strategies)(check))()


# Text of both languages, marks of templates and markup, control and odd characters.
PIECES = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "</s>", "<s>", "[INST]", "<think>", "</think>",
    "<|eot_id|>", "assistant", "user\n", "\n\n", "# 回覆\n", "你好", "房间很干净，", "🙂", "👩‍👧",
    "\x00", "\u202e", "\ufeff", "\r\n", "é", "{{7*7}}", "<script>", "a", " ", "A&B", "'", '"',
    "\\", "%s",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=6).map("".join)
ODD = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        -1,
        2**70,
        0.5,
        -0.0,
        float("nan"),
        float("inf"),
        1e308,
        "",
        "auto",
        "null",
        "A",
        "tie",
        [],
        {},
        [[]],
        {"a": None},
        [None],
        "2024-01-01",
        "1e-6",
    ]
)
VALUES = st.recursive(
    ODD | TEXTS | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
