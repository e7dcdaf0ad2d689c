"""What belongs together comes back together, and every row is accounted for on the way."""

from __future__ import annotations

from contextlib import closing

from hypothesis import given, settings
from hypothesis import strategies as st

from align.records import Candidate, Judgement, Message, RecordError
from reward_models.annotations import Intake
from reward_models.annotations.base import Row, key_by_key, make_group
from reward_models.annotations.spool import Spool, digest


def test_values_come_back_by_key_in_order_of_appearance():
    with closing(Spool()) as spool:
        assert list(spool.groups()) == []
        for key, value in (("b", b"1"), ("a", b"22"), ("b", b""), ("c", b"4"), ("a", b"5")):
            spool.add(digest(key), value)
        wanted = [[b"1", b""], [b"22", b"5"], [b"4"]]
        assert list(spool.groups()) == wanted
        assert list(spool.groups()) == wanted
        assert len(spool) == 5


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 8), st.binary(max_size=9)), max_size=60))
def test_grouping_equals_a_dict_of_lists(pairs):
    wanted: dict[int, list[bytes]] = {}
    with closing(Spool()) as spool:
        for key, value in pairs:
            wanted.setdefault(key, []).append(value)
            spool.add(digest(key), value)
        assert list(spool.groups()) == list(wanted.values())


def test_a_digest_stands_for_the_value_not_for_its_spelling():
    assert digest({"b": 1, "a": [2]}) == digest({"a": [2], "b": 1})
    assert len({digest(v) for v in ("1", 1, "[1]", [1], None, "null", "\ud800", "问")}) == 8


def scored(obj):
    if not isinstance(obj, dict) or "prompt" not in obj:
        raise RecordError("no prompt", code="no_prompt")
    return obj["prompt"]


def convert(rows, intake):
    kept = []
    for row in rows:
        if row.obj["score"] is None:
            intake.drop(row, "no_score", "null", 1)
        else:
            kept.append(row.obj)
    prompt = (Message("user", rows[0].obj["prompt"]),)
    candidates = [Candidate(str(i), obj["response"]) for i, obj in enumerate(kept)]
    value = {str(i): obj["score"] for i, obj in enumerate(kept)}
    votes = [Judgement(None, "score", value)] if value else []
    group = make_group(prompt, candidates, votes)
    for _ in kept:
        intake.vote()
    return group


PARSE = key_by_key(scored, convert, lambda obj: int(isinstance(obj, dict)))


def test_rows_of_one_prompt_are_one_group_wherever_they_stand():
    table = [
        ("p", "good", 4), ("q", "alone", 1), ("p", "bad", 1), ("r", "x", None), ("p", "none", None),
    ]  # fmt: skip
    rows = [
        Row("f.jsonl", i, i, {"prompt": p, "response": r, "score": s})
        for i, (p, r, s) in enumerate(table, 1)
    ]
    rows += [Row("f.jsonl", 6, 6, ["odd"]), Row("f.jsonl", 7, 7, error=("bad_json", "broken"))]
    rejects = []
    intake = Intake(on_reject=rejects.append)
    (group,) = PARSE(rows, intake)
    assert [c.content for c in group.candidates] == ["good", "bad"]
    assert group.judgements[0].value == {"0": 4, "1": 1}
    assert intake.rows.used == 2
    assert dict(intake.rows.dropped) == {
        "no_prompt": 1, "bad_json": 1, "no_score": 2, "one_candidate": 1,
    }  # fmt: skip
    assert sorted((r["line"], r["reason"]) for r in rejects) == [
        (2, "one_candidate"), (4, "no_score"), (5, "no_score"), (6, "no_prompt"), (7, "bad_json"),
    ]  # fmt: skip
    # Five rows are objects and hold a vote each.
    assert intake.votes.used == 2
    assert dict(intake.votes.dropped) == {"no_score": 2, "one_candidate": 1}


def test_the_group_belongs_to_its_first_used_row():
    intake = Intake()
    rows = [
        Row("f", 3, 1, {"prompt": "p", "response": "a", "score": None}),
        Row("f", 5, 2, {"prompt": "p", "response": "b", "score": 1}),
        Row("f", 9, 3, {"prompt": "p", "response": "c", "score": 2}),
    ]
    for _ in PARSE(rows, intake):
        assert intake.row is not None
        assert intake.row.line == 5


@settings(max_examples=60)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "response": st.sampled_from(["a", "b", "c", " "]),
                "score": st.sampled_from([None, 1, 2.5]),
            },
            optional={"prompt": st.sampled_from(["p", "q"])},
        )
        | st.none(),
        max_size=12,
    )
)
def test_rows_and_votes_in_are_used_or_dropped(objects):
    rejects = []
    intake = Intake(on_reject=rejects.append)
    list(PARSE([Row("f", i, i, o) for i, o in enumerate(objects, 1)], intake))
    assert intake.rows.total == len(objects)
    assert intake.votes.total == sum(isinstance(o, dict) for o in objects)
    assert [r["row"] for r in sorted(rejects, key=lambda r: r["row"])] == sorted(
        {r["row"] for r in rejects}
    )
    assert len(rejects) == sum(intake.rows.dropped.values())


def test_the_stem_of_a_row_is_its_files_name():
    names = {
        "a/b/li.lei.jsonl": "li.lei",
        "x.zip/丽.json.gz": "丽",
        "all": "all",
        "C:\\x\\y.csv": "y",
    }
    assert {name: Row(name, 1, 1).stem for name in names} == names
