"""What an import keeps on disk and what it writes is exactly what it was given."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.records import Candidate, Judgement, Message, PairTarget, PreferenceGroup
from reward_models.annotations.packing import from_plain, pack, plain, unpack
from reward_models.import_lines import GroupLines, json_line

# Every character that JSON escapes, both line separators, an emoji, and a lone surrogate.
text = st.text(
    st.sampled_from('a文 "\\/\b\f\n\r\t\x00\x1f\x7f\u2028\u2029🏮é<&') | st.just("\ud800"),
    max_size=8,
)
number = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30)
value = st.recursive(
    st.none() | st.booleans() | number | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
messages = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), text),
    min_size=1,
    max_size=3,
).map(tuple)


@st.composite
def groups(draw):
    ids = draw(st.lists(text, min_size=2, max_size=4, unique=True))
    candidates = [Candidate(i, draw(text | messages), draw(st.none() | text | value)) for i in ids]
    pair = {"winner": ids[0], "loser": ids[1]}
    votes = [
        st.just(("pair", pair)),
        st.just(("pair", {**pair, "p": 0.75})),
        st.just(("pair", {"tie": ids[:2]})),
        st.tuples(st.just("score"), st.fixed_dictionaries(dict.fromkeys(ids, number))),
        st.tuples(st.just("rank"), st.fixed_dictionaries(dict.fromkeys(ids, st.none() | number))),
    ]
    judgements = [
        Judgement(draw(st.none() | text), kind, v, draw(st.none() | number), draw(text),
                  draw(st.none() | text))
        for kind, v in draw(st.lists(st.one_of(votes), max_size=3))
    ]  # fmt: skip
    meta = draw(st.dictionaries(text, value, max_size=3))
    return PreferenceGroup(draw(text), draw(messages), tuple(candidates), tuple(judgements), meta)


def by_json(record):
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"


@settings(max_examples=150, deadline=None)
@given(groups())
def test_a_packed_group_comes_back_the_same(group):
    back = from_plain(unpack(pack(plain(group))))
    assert back == group
    assert repr(back) == repr(group)  # types too: 1 is not 1.0 and not True
    assert hash(back.prompt) == hash(group.prompt)


@settings(max_examples=150, deadline=None)
@given(groups(), value)
def test_a_line_is_what_json_writes(group, other):
    assert GroupLines(group).record() == by_json(group.to_json())
    assert json_line(other) == by_json(other)


@settings(max_examples=100, deadline=None)
@given(groups(), st.floats(0.5, 1), st.none() | st.floats(0, 1e300))
def test_the_lines_of_pairs_are_what_json_writes(group, target, margin):
    made = [PairTarget(0, 1, target, 0.5, margin), PairTarget(1, 0, 1.0, 1.0, None)]
    answers = [[m.to_json() for m in c.messages] for c in group.candidates]
    wanted = [
        {"prompt": [m.to_json() for m in group.prompt], "chosen": answers[p.a],
         "rejected": answers[p.b], "target": p.target, "weight": p.weight, "margin": p.margin,
         "group_id": group.group_id, "split": "train"}
        for p in made
    ]  # fmt: skip
    written = GroupLines(group).pairs(made, "train")
    assert [json.loads(line) for line in written.splitlines()] == wanted
    if b"\\ud800" not in written:
        assert written == b"".join(map(by_json, wanted))
    assert GroupLines(group).pairs([], "train") == b""


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_json_is_not_written(bad):
    candidates = (Candidate("a", "x"), Candidate("b", "y"))
    prompt = (Message("user", "q"),)
    for meta, strength in (({"n": bad}, None), ({"n": [{"m": bad}]}, None), ({}, bad)):
        vote = Judgement("j", "pair", {"winner": "a", "loser": "b"}, strength)
        with pytest.raises(ValueError, match="not JSON compliant"):
            GroupLines(PreferenceGroup("g", prompt, candidates, (vote,), meta)).record()
