"""Whatever stands in an annotation tool's rows: rows and votes are counted and nothing raises."""

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
    argilla,
    doccano,
    label_studio,
    label_studio_min,
    prodigy,
)
from reward_models.preferences import targets

MODULES = (argilla, doccano, label_studio, label_studio_min, prodigy)
ITEMS = [{"id": 2, "body": "x"}, {"id": "b", "text": "y"}, {"id": 1, "title": "z"}]


def result(control, kind, value, **more):
    return {"from_name": control, "to_name": "x", "type": kind, "value": value, **more}


ANNOTATION = {
    "id": 8, "completed_by": {"id": 3, "email": "a@b.c"}, "was_cancelled": False,
    "result": [
        result("rank", "ranker", {"ranker": {"rank": ["2", "b", "1"]}}, origin="prediction"),
        result("good_0", "rating", {"rating": 4}), result("good_1", "rating", {"rating": 2.5}),
        result("best", "choices", {"choices": ["2"]}),
    ],
}  # fmt: skip
# Further rows, so that there is more to damage than in the samples.
MORE = {
    "argilla": [
        {"id": "r3", "fields": {"chat": [{"role": "user", "content": "Q"}], "items": ITEMS},
         "suggestions": [{"question_id": "q", "value": "x"}],
         "responses": [{"user_id": "u1", "status": "submitted", "values": {
             "ranking": {"value": [{"value": "b", "rank": 1}, {"value": "1", "rank": 1}]},
             "good-1": {"value": 3}, "good-2": {"value": 2}, "best": {"value": ["b"]}}}]},
    ],
    "doccano": [
        {"id": 3, "text": "Q", "items": ITEMS, "label": ["b", "2"], "Comments": []},
    ],
    "label_studio": [
        {"id": 2, "data": {"prompt": "Q", "items": ITEMS, "system": "s"},
         "annotations": [ANNOTATION, {**ANNOTATION, "completed_by": 4}],
         "predictions": [1], "drafts": [{"id": 1}]},
    ],
    "label_studio_min": [
        {"prompt": "Q", "items": ITEMS, "id": 2, "rank": [{"ranker": {"rank": ["2", "1"]}}],
         "good_0": [{"rating": 4}], "good_1": [{"number": 2}], "best": {"choices": ["2", "1"]},
         "note": ["b"], "annotator": "a@b.c", "annotation_id": 9, "created_at": None,
         "updated_at": None, "lead_time": 0.5},
    ],
    "prodigy": [
        {"html": "<p>Q</p>", "items": ITEMS, "answer": "accept", "accept": [3], "_task_hash": 4,
         "options": [{"id": 3, "text": "2"}, {"id": 4, "text": "b"}, {"id": 5, "html": "tie"}],
         "_annotator_id": 5},
    ],
}  # fmt: skip
junk = st.sampled_from(
    [None, True, "", " ", "甲", "2", "A", "tie", 0, 1, 2, -3, 1.4, 10**400, float("nan"),
     float("inf"), [], {}, [None], ["甲"], [{}], ["A", "A"], [["A"]], {"value": "A"},
     {"choices": 1}, {"rating": 10**400}, {"selected": []}, {"ranker": {"rank": [[1]]}}, "\ud800",
     [{"role": "user", "content": ""}], [{"id": None}], {"id": []}]
)  # fmt: skip


def name_of(module):
    return module.FORMAT.name


def places(value, path=()):
    """Every place inside a JSON value, the value itself first."""
    yield path
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


@st.composite
def damaged(draw, name):
    """Rows of a format with some of their values replaced or removed."""
    rows = deepcopy(SAMPLES[name] + MORE[name])
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


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_what_the_rows_hold_before_they_are_damaged(module):
    name = name_of(module)
    groups, intake = run(module.FORMAT, *SAMPLES[name], *MORE[name])
    expected = {
        "doccano": {"ambiguous_choice": 1},
        "label_studio": {"prediction": 1, "draft": 1},
        "label_studio_min": {"ambiguous_choice": 1},
        "argilla": {"suggestion": 2},
        "prodigy": {},
    }
    assert dict(intake.votes.dropped) == expected[name]
    assert groups


@pytest.mark.parametrize("module", MODULES, ids=name_of)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_all_rows_and_votes_end_as_used_or_dropped(module, data):
    rows = data.draw(damaged(name_of(module)))
    for row in rows:
        module.matches(row)
    groups, intake = run(module.FORMAT, *rows)
    assert intake.rows.total == len(rows)
    assert intake.votes.total == sum(module.votes_in(row) for row in rows)
    assert intake.rows.used == len(groups)
    assert intake.votes.used >= len(groups)
    for group in groups:
        written = json.dumps(group.to_json(), allow_nan=False)
        assert PreferenceGroup.from_json(json.loads(written)) == group
        assert all(0.5 <= pair.target <= 1.0 for pair in targets(group, margin=True))
