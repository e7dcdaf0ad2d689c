"""Whatever stands in a public set's rows: rows and votes are accounted for and nothing raises."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
from format_rows import run
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import SAMPLES

from align.records import PreferenceGroup
from reward_models.annotations import (
    alpaca_eval,
    helpsteer2,
    helpsteer2_preference,
    helpsteer3,
    nectar,
    pku_saferlhf,
    ultrafeedback,
)
from reward_models.preferences import targets

MODULES = (
    alpaca_eval, helpsteer2, helpsteer2_preference, helpsteer3, nectar, pku_saferlhf, ultrafeedback,
)  # fmt: skip

junk = st.sampled_from(
    [None, True, "", " ", "甲", "2", "N/A", 0, 1, 2, -3, 1.4, 11, 10**400, float("nan"),
     float("inf"), [], {}, [None], ["甲"], [{}], {"Rating": "4"}, "\n\nHuman: \n\nAssistant:",
     "a\n<extra_id_1>Assistant\nb", "\ud800", [{"role": "user", "content": ""}]]
)  # fmt: skip


def places(value, path=()):
    """Every place inside a JSON value, the value itself first."""
    yield path
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


@st.composite
def damaged(draw, module):
    """The format's sample rows with some of their values replaced or removed."""
    rows = deepcopy(SAMPLES[module.SOURCE])
    rows += deepcopy(rows[: draw(st.integers(0, 1))])
    for _ in range(draw(st.integers(0, 4))):
        path = draw(st.sampled_from([p for p in places(rows) if p]))
        holder = rows
        for key in path[:-1]:
            holder = holder[key]
        if len(path) > 1 and isinstance(holder, dict) and draw(st.booleans()):
            del holder[path[-1]]
        else:
            holder[path[-1]] = deepcopy(draw(junk))
    return rows


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.SOURCE)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_all_rows_and_votes_end_as_used_or_dropped(module, data):
    rows = data.draw(damaged(module))
    for row in rows:
        module.matches(row)
    groups, intake = run(module.FORMAT, *rows)
    assert intake.votes.total == sum(module.votes_in(row) for row in rows)
    assert intake.rows.used >= len(groups)
    assert bool(groups) == bool(intake.rows.used)
    for group in groups:
        written = json.dumps(group.to_json(), allow_nan=False)
        assert PreferenceGroup.from_json(json.loads(written)) == group
        assert all(0.5 <= pair.target <= 1.0 for pair in targets(group, margin=True))
        rated = group.meta.get("attributes", {})
        assert set(rated) <= {c.id for c in group.candidates}
