"""Whether this machine has an accelerator, found without importing torch."""

from __future__ import annotations

import os
from pathlib import Path

NODES = ("nvidiactl", "nvidia0", "kfd", "dxg")
HIDES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def has_gpu() -> bool:
    """Whether an NVIDIA or AMD device is here and not hidden from this process (Linux)."""
    hidden = any(os.environ.get(name, "0").strip() in ("", "-1") for name in HIDES)
    return not hidden and any(Path("/dev", node).exists() for node in NODES)
