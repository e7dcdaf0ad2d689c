"""Compare two days of a served model's request log.

python recipes/drift_report.py --log runs/requests --days 2026-01-01 2026-01-02      (--help)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too


def main(argv: Sequence[str] | None = None) -> int:
    """Run with a command line; return the exit code."""
    from align.tools import run_tool

    return run_tool("drift_report", argv)


if __name__ == "__main__":
    sys.exit(main())
