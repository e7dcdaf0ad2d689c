"""Runs a format over literal rows, for the tests of the formats."""

from __future__ import annotations

from reward_models.annotations import Intake, detect
from reward_models.annotations.base import Row
from reward_models.preferences import targets


def run(known, *rows):
    """(groups, intake) of rows given as JSON values; every one of them is accounted for."""
    intake = Intake()
    groups = list(known.parse([Row("in.jsonl", i, i, r) for i, r in enumerate(rows, 1)], intake))
    assert intake.rows.total == len(rows)
    return groups, intake


def fitting(row):
    """Names of the formats that a file of such rows can have."""
    return [d.format.name for d in detect.fitting([row])]


def trained(group, **options):
    """Targets as (better candidate's id, worse one's id, probability, weight)."""
    ids = [c.id for c in group.candidates]
    made = targets(group, **options)
    return [(ids[p.a], ids[p.b], round(p.target, 6), round(p.weight, 6)) for p in made]
