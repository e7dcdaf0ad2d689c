"""Make environments of engines: vllm, llama.cpp, llmcompressor, gptqmodel.

python recipes/setup_engine.py ENGINE …      (--help lists the options)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too


def main(argv: Sequence[str] | None = None) -> int:
    """Run with a command line; return the exit code."""
    from align.tools import run_tool

    return run_tool("setup_engine", argv)


if __name__ == "__main__":
    sys.exit(main())
