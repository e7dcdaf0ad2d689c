"""Rounds of sampling, scoring and training, until a gold judge falls.

python recipes/iterate.py --config FILE      (--help lists the options)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too


def main(argv: Sequence[str] | None = None) -> int:
    """Run with a command line; return the exit code."""
    from align.iteration.iterate import run_iterate

    return run_iterate(argv)


if __name__ == "__main__":
    sys.exit(main())
