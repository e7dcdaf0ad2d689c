"""Importers of annotation exports, one module per format.

A format is one module with a ``FORMAT`` and one entry in ``FORMATS``.
"""

from __future__ import annotations

from reward_models.annotations import (
    canonical,
    hh_rlhf,
    label_studio,
    pairs,
    summarize_from_feedback,
    webgpt,
)
from reward_models.annotations.base import Format, Intake, Options

FORMATS: tuple[Format, ...] = (
    canonical.FORMAT,
    hh_rlhf.FORMAT,
    label_studio.FORMAT,
    pairs.FORMAT,
    summarize_from_feedback.FORMAT,
    webgpt.FORMAT,
)

__all__ = ["FORMATS", "Format", "Intake", "Options"]
