"""Damaged rows of the sets of dialogues and comparisons: all accounted for, nothing raises."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from format_rows import run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_public_sets_accounting import damaged

from align.records import PreferenceGroup
from reward_models.annotations import (
    arena,
    hh_rlhf,
    oasst,
    shp,
    summarize_from_feedback,
    webgpt,
)
from reward_models.preferences import targets

MODULES = (arena, hh_rlhf, oasst, shp, summarize_from_feedback, webgpt)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.FORMAT.name)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_all_rows_and_votes_end_as_used_or_dropped(module, data):
    rows = data.draw(damaged(SimpleNamespace(SOURCE=module.FORMAT.name)))
    for row in rows:
        module.matches(row)
    groups, intake = run(module.FORMAT, *rows)
    assert intake.votes.total == sum(module.votes_in(row) for row in rows)
    assert bool(groups) == bool(intake.rows.used)
    for group in groups:
        written = json.dumps(group.to_json(), allow_nan=False)
        assert PreferenceGroup.from_json(json.loads(written)) == group
        assert all(0.5 <= pair.target <= 1.0 for pair in targets(group, margin=True))
