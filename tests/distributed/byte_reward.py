"""A reward that tells texts apart."""

from __future__ import annotations

import zlib


def checksum(prompts: list, completions: list[str], **kwargs: object) -> list[float]:
    """A number in [0, 1) that any other character changes."""
    return [zlib.crc32(text.encode()) / 2**32 for text in completions]
