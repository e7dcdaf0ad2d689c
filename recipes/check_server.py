"""Check that a server answers as the exported model does.

python recipes/check_server.py --url http://127.0.0.1:8000 --parity parity.jsonl
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too


def main(argv: Sequence[str] | None = None) -> int:
    """Run with a command line; return the exit code."""
    from align.tools import run_tool

    return run_tool("check_server", argv)


if __name__ == "__main__":
    sys.exit(main())
