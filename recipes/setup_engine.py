"""Make the environment of an engine: vllm, llama.cpp, llmcompressor or gptqmodel.

python recipes/setup_engine.py ENGINE      (--help lists the options)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too


def main(argv: Sequence[str] | None = None) -> int:
    """Run with a command line; return the exit code."""
    from align.engines.setup import main as make
    from align.run import guarded_once

    return guarded_once(lambda: make(argv))


if __name__ == "__main__":
    sys.exit(main())
