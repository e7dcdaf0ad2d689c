"""Any JSON value is a record that comes back the same, or a RecordError."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from fuzzing import TEXTS, VALUES, hold, said, sizes

from align.records import (  # fmt: skip
    Candidate,
    Example,
    Message,
    PairTarget,
    PreferenceGroup,
    Prompt,
    RecordError,
    normalise_text,
    parse_messages,
    prompt_key,
)

GOOD = {
    Message: {"role": "user", "content": "问"},
    Example: {"messages": [{"role": "user", "content": "Q"},
                           {"role": "assistant", "content": "答"}]},
    Prompt: {"messages": [{"role": "user", "content": "Q"}], "prompt_id": "p", "meta": {}},
    Candidate: {"id": "a", "content": "甲", "model": "m"},
    PreferenceGroup: {
        "group_id": "g", "prompt": [{"role": "user", "content": "问"}], "meta": {"gold": [1, 2]},
        "candidates": [{"id": "a", "content": "甲"}, {"id": "b", "content": "乙"}],
        "judgements": [{"annotator": "x", "kind": "pair", "value": {"winner": "a", "loser": "b"}},
                       {"annotator": "y", "kind": "rank", "value": {"a": 1, "b": 2}},
                       {"annotator": "z", "kind": "rating", "value": {"a": 3.5, "b": 1}}],
    },
    PairTarget: {"group_id": "g", "chosen": "a", "rejected": "b", "target": 1.0, "weight": 1.0},
}  # fmt: skip


def places(value, path=()):
    """Paths to every value inside a JSON value."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from places(inner, (*path, i))


def changed(value, path, new, how):
    """The value with one place replaced, removed or written twice."""
    if not path:
        return new
    out = copy.deepcopy(value)
    node = out
    for step in path[:-1]:
        node = node[step]
    if how == "remove":
        del node[path[-1]]
    elif how == "twice" and isinstance(node, list):
        node.append(copy.deepcopy(node[path[-1]]))
    elif how == "add" and isinstance(node, dict):
        node[new if isinstance(new, str) else "more"] = copy.deepcopy(node[path[-1]])
    else:
        node[path[-1]] = new
    return out


def mutated(good) -> st.SearchStrategy:
    """A good value with up to two changes."""

    def one(value):
        return st.builds(
            changed, st.just(value), st.sampled_from(list(places(value))), VALUES,
            st.sampled_from(["replace", "replace", "remove", "twice", "add"]),
        )  # fmt: skip

    return one(good) | one(good).flatmap(one)


@sizes(200, 20_000)
def test_any_value_is_a_record_or_is_refused(examples, fault):
    fault("any JSON value as a record", "a record that comes back the same, or a counted reject")

    def check(kind_and_value):
        kind, value = kind_and_value
        try:
            record = kind.from_json(value)
        except RecordError as error:
            said(error)
            return
        written = json.loads(json.dumps(record.to_json()))
        again = kind.from_json(written).to_json()
        # As text: NaN, which free fields may hold, is not equal to itself.
        assert json.dumps(again) == json.dumps(record.to_json())

    kinds = [st.tuples(st.just(kind), mutated(good) | VALUES) for kind, good in GOOD.items()]
    hold(examples, check, st.one_of(kinds))


@sizes(100, 12_000)
def test_texts_have_a_key_or_are_refused(examples):
    def check(value, text):
        assert normalise_text(normalise_text(text)) == normalise_text(text)
        try:
            messages = parse_messages(value)
        except RecordError:
            return
        assert prompt_key(messages) == prompt_key(parse_messages([m.to_json() for m in messages]))

    hold(examples, check, VALUES, TEXTS)
