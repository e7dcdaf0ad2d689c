"""Numbers of a command line, as types of argparse: what is out of range is refused by name."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def whole(low: int, high: float = math.inf) -> Callable[[str], int]:
    """A whole number from low to high."""

    def whole(text: str) -> int:  # argparse names the type where int() fails
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is {_outside(low, high)}")
        return value

    return whole


def number(low: float, high: float = math.inf, *, open_low: bool = False) -> Callable[[str], float]:
    """A finite number from low to high; open_low: low itself is not allowed."""

    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high or math.isinf(value) or (open_low and value == low):
            raise argparse.ArgumentTypeError(f"{text} is {_outside(low, high, open_low)}")
        return value

    return number


def _outside(low: float, high: float, open_low: bool = False) -> str:
    if open_low:
        return f"not above {low:g}" + ("" if high == math.inf else f", and at most {high:g}")
    return f"below {low:g}" if high == math.inf else f"not between {low:g} and {high:g}"
