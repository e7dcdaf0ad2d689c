"""Importers of annotation exports, one module per format.

A format is one module with a ``FORMAT`` and one entry in ``FORMATS``.
"""

from __future__ import annotations

from reward_models.annotations import (
    alpaca_eval,
    arena,
    argilla,
    canonical,
    doccano,
    feedback,
    helpsteer2,
    helpsteer2_preference,
    helpsteer3,
    hh_rlhf,
    label_studio,
    label_studio_min,
    nectar,
    oasst,
    pairs,
    pku_saferlhf,
    prodigy,
    shp,
    summarize_from_feedback,
    table,
    ultrafeedback,
    webgpt,
)
from reward_models.annotations.base import Format, Intake, Options

FORMATS: tuple[Format, ...] = (
    alpaca_eval.FORMAT,
    arena.FORMAT,
    argilla.FORMAT,
    canonical.FORMAT,
    doccano.FORMAT,
    feedback.FORMAT,
    helpsteer2.FORMAT,
    helpsteer2_preference.FORMAT,
    helpsteer3.FORMAT,
    hh_rlhf.FORMAT,
    label_studio.FORMAT,
    label_studio_min.FORMAT,
    nectar.FORMAT,
    oasst.FORMAT,
    pairs.FORMAT,
    pku_saferlhf.FORMAT,
    prodigy.FORMAT,
    shp.FORMAT,
    summarize_from_feedback.FORMAT,
    table.FORMAT,
    ultrafeedback.FORMAT,
    webgpt.FORMAT,
)

__all__ = ["FORMATS", "Format", "Intake", "Options"]
