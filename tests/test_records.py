"""Records survive JSON, keys ignore spelling noise, files are read and written whole."""

from __future__ import annotations

import gzip
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.records import (
    Candidate,
    Counts,
    Example,
    Judgement,
    Message,
    PairTarget,
    PreferenceGroup,
    Prompt,
    RecordError,
    normalise_text,
    parse_messages,
    prompt_key,
    read_jsonl,
    read_rows,
    write_jsonl,
)

text = st.text(max_size=30)
message = st.builds(Message, st.sampled_from(["system", "user", "assistant", "tool"]), text)
messages = st.lists(message, min_size=1, max_size=4).map(tuple)
meta = st.dictionaries(text, st.none() | st.booleans() | st.integers() | text, max_size=2)


@st.composite
def groups(draw):
    ids = draw(st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=4, unique=True))
    a, b = ids[:2]
    votes = [{"winner": a, "loser": b}, {"tie": [a, b]}, {"winner": b, "loser": a, "p": 0.7}]
    value = st.sampled_from(votes)
    judgements = [
        Judgement("甲", "pair", draw(value), strength=0.5, source="x"),
        Judgement(None, "rank", {a: 1, b: None}),
        Judgement(None, "score", {a: 4.5, b: -1}, suspect="fast"),
    ]
    contents = [draw(st.one_of(text, messages)) for _ in ids]
    candidates = [
        Candidate(i, c, draw(st.none() | text)) for i, c in zip(ids, contents, strict=True)
    ]
    return PreferenceGroup(
        draw(st.text(min_size=1)), draw(messages), tuple(candidates), tuple(judgements), draw(meta)
    )


@given(groups())
def test_group_survives_a_file(tmp_path_factory, group):
    path = tmp_path_factory.mktemp("g") / "g.jsonl"
    write_jsonl(path, [group])
    [(line, row)] = read_jsonl(path)
    assert line == 1
    assert PreferenceGroup.from_json(row) == group
    hash(group)


@given(messages, meta)
def test_example_and_prompt_survive_json(turns, extra):
    assert Example.from_json(Example(turns, extra).to_json()) == Example(turns, extra)
    assert Prompt.from_json(Prompt(turns, meta=extra).to_json()) == Prompt(turns, meta=extra)
    assert Prompt.from_json(Prompt(turns, "id-1").to_json()).prompt_id == "id-1"


def test_pair_target_survives_json():
    pair = PairTarget(0, 2, 0.75, 0.5, 1.5)
    assert PairTarget.from_json(pair.to_json()) == pair


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((1, 1), "two candidates"),
        ((-1, 0), "two candidates"),
        ((0, 1, 1.2), "not a probability"),
        ((0, 1, float("nan")), "not a probability"),
        ((0, 1, 0.5, -1.0), "not a finite number"),
        ((0, 1, 0.5, float("inf")), "not a finite number"),
    ],
)
def test_pair_target_refuses(args, words):
    with pytest.raises(RecordError, match=words):
        PairTarget(*args)


def test_message_spellings():
    assert Message.from_json({"from": "human", "value": "你好"}) == Message("user", "你好")
    assert Message.from_json({"from": "gpt", "value": "a"}) == Message("assistant", "a")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert Message.from_json({"role": "User", "content": parts}) == Message("user", "ab")
    assert parse_messages("好", role="assistant") == (Message("assistant", "好"),)


@pytest.mark.parametrize(
    ("obj", "code"),
    [
        ("text", "bad_message"),
        ({"role": "narrator", "content": "a"}, "bad_role"),
        ({"content": "a"}, "bad_role"),
        ({"role": "user", "content": None}, "not_text"),
        ({"role": "user", "content": [{"type": "image", "url": "x"}]}, "not_text"),
    ],
)
def test_bad_messages_have_a_reason(obj, code):
    with pytest.raises(RecordError) as caught:
        Message.from_json(obj)
    assert caught.value.code == code


CANDIDATES = [{"id": "a", "content": "1"}, {"id": "b", "content": "2"}]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ([], "not_an_object"),
        ({"candidates": []}, "missing_field"),
        ({"prompt": [], "candidates": CANDIDATES}, "empty_prompt"),
        ({"prompt": 3, "candidates": CANDIDATES}, "bad_message"),
        ({"prompt": "q", "candidates": CANDIDATES * 2}, "duplicate_candidate_id"),
        (
            {
                "prompt": "q",
                "candidates": CANDIDATES,
                "judgements": [{"kind": "pair", "value": {"winner": "a", "loser": "z"}}],
            },
            "unknown_candidate",
        ),
    ],
)
def test_bad_groups_have_a_reason(row, code):
    with pytest.raises(RecordError) as caught:
        PreferenceGroup.from_json(row)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("vote", {"a": 1}),
        ("pair", {"winner": "a"}),
        ("pair", {"winner": "a", "loser": "a"}),
        ("pair", {"tie": ["a", "b", "c"]}),
        ("pair", {"tie": "ab"}),
        ("pair", {"winner": "a", "loser": "b", "p": 0.5}),
        ("pair", {"winner": "a", "loser": "b", "p": 0.3}),
        ("pair", {"winner": "a", "loser": "b", "p": 1.1}),
        ("pair", {"winner": "a", "loser": "b", "p": float("nan")}),
        ("pair", {"winner": "a", "loser": "b", "p": "0.7"}),
        ("pair", {"winner": "a", "loser": "b", "p": None}),
        ("pair", {"tie": ["a", "b"], "p": 0.7}),
        ("rank", {}),
        ("rank", [1, 2]),
        ("score", {"a": None}),
        ("score", {"a": True}),
        ("score", {"a": float("nan")}),
        ("score", {"a": 10**400}),
        ("rank", {"a": -(10**400)}),
        ("pair", {"winner": "a", "loser": "b", "p": 10**400}),
        ("rank", {"a": "1"}),
    ],
)
def test_bad_judgements(kind, value):
    with pytest.raises(RecordError):
        Judgement(None, kind, value)


def test_a_pair_may_say_how_probable_its_winner_is():
    vote = Judgement("j", "pair", {"winner": "a", "loser": "b", "p": 0.7})
    assert vote.ids == ("a", "b")
    assert Judgement.from_json(vote.to_json()) == vote
    assert vote.to_json()["value"] == {"winner": "a", "loser": "b", "p": 0.7}
    assert Judgement(None, "pair", {"winner": "a", "loser": "b", "p": 1}).ids == ("a", "b")


def test_candidate_text_and_messages():
    single = Candidate("a", "好")
    assert single.messages == (Message("assistant", "好"),)
    turns = (Message("assistant", "1"), Message("user", "2"), Message("assistant", "3"))
    assert Candidate("b", turns).text == "1\n\n2\n\n3"
    assert Candidate("b", turns).messages == turns


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Ｈｅｌｌｏ　World", "hello world"),
        ("  a\t\n b\u3000c ", "A B C"),
        ("Straße", "STRASSE"),
        ("ﬁ１", "FI1"),
        ("é", "e\u0301"),
        ("你好！", "你好!"),
    ],
)
def test_normalise_equates(a, b):
    assert normalise_text(a) == normalise_text(b)


@pytest.mark.parametrize(
    ("a", "b"), [("你好", "您好"), ("a b", "ab"), ("后", "後"), ("resume", "résumé")]
)
def test_normalise_keeps_apart(a, b):
    assert normalise_text(a) != normalise_text(b)


@given(st.text())
def test_normalise_is_idempotent(value):
    once = normalise_text(value)
    assert normalise_text(once) == once
    assert normalise_text(unicodedata.normalize("NFD", value)) == once


def test_prompt_key_sees_roles_and_borders():
    user = prompt_key([Message("user", "ab")])
    assert user == prompt_key([Message("user", " AB ")])
    assert user != prompt_key([Message("system", "ab")])
    assert user != prompt_key([Message("user", "a"), Message("user", "b")])
    joined = [Message("user", "a\x1euser\x1fb")]
    assert prompt_key(joined) != prompt_key([Message("user", "a"), Message("user", "b")])
    assert len(user) == 64


def test_read_jsonl_bom_blank_lines_and_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"a": "中\u2028文"}\r\n\n  \n[1]\n'.encode())
    assert list(read_jsonl(path)) == [(1, {"a": "中\u2028文"}), (4, [1])]


@pytest.mark.parametrize(
    ("data", "code", "where"),
    [
        (b'{"a": 1}\n{"a": \n', "bad_json", ":2"),
        (b'{"a": 1}\n\n\xff\xfe\n', "bad_encoding", ":3"),
        (b"[" * 100_000 + b"\n", "bad_json", ":1"),
    ],
)
def test_read_jsonl_names_the_line(tmp_path, data, code, where):
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    with pytest.raises(RecordError) as caught:
        list(read_jsonl(path))
    assert caught.value.code == code
    assert str(caught.value).startswith(f"{path}{where}: ")


def test_read_rows_reads_arrays_and_lines(tmp_path):
    array, lines = tmp_path / "a.json", tmp_path / "b.jsonl"
    array.write_text('\ufeff\n [{"a": 1},\n {"a": 2}]', encoding="utf-8")
    lines.write_text('{"a": 1}\n{"a": 2}\n')
    assert list(read_rows(array)) == list(read_rows(lines)) == [(1, {"a": 1}), (2, {"a": 2})]


def test_gzip_round_trip(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    assert write_jsonl(path, [{"a": "好"}, {"b": 1}]) == 2
    assert gzip.decompress(path.read_bytes()) == '{"a": "好"}\n{"b": 1}\n'.encode()
    assert [row for _, row in read_jsonl(path)] == [{"a": "好"}, {"b": 1}]


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "sub" / "a.jsonl"
    write_jsonl(path, [{"a": 1}])

    def rows():
        yield {"a": 2}
        raise KeyError("source failed")

    with pytest.raises(KeyError):
        write_jsonl(path, rows())
    with pytest.raises(RecordError) as caught:
        write_jsonl(path, [{"a": float("nan")}])
    assert caught.value.code == "bad_value"
    assert path.read_text() == '{"a": 1}\n'
    assert [p.name for p in path.parent.iterdir()] == ["a.jsonl"]


def test_lone_surrogates_can_be_written(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"a": "\ud800"}, {"a": "好"}])
    assert [row["a"] for _, row in read_jsonl(tmp_path / "a.jsonl")] == ["\ud800", "好"]


def test_counts_add_up():
    a, b = Counts("a.jsonl"), Counts("b.jsonl")
    a.use(3)
    a.drop("identical", "a.jsonl:7")
    a.drop("identical", "a.jsonl:9")
    b.use()
    b.truncate("completion_truncated")
    b.truncate("prompt_truncated", 2)
    both = a + b
    assert both.total == 6
    assert both.to_json() == {
        "file": "a.jsonl, b.jsonl",
        "used": 4,
        "dropped": {"identical": 2},
        "truncated": 3,
        "truncated_by": {"completion_truncated": 1, "prompt_truncated": 2},
        "examples": {"identical": "a.jsonl:7"},
    }
    assert Counts.from_json(both.to_json()) == both


def test_record_error_keeps_its_first_location():
    error = RecordError("bad", code="c").at("f:1")
    assert str(error) == "f:1: bad"
    assert str(error.at("g:2")) == "f:1: bad"
    assert error.code == "c"


def test_import_needs_no_torch():
    code = (
        "import sys, align.records, align.data.sft, align.data.pairs, align.data.prompts, "
        "align.data.splits, align.data.fit, align.chat; "
        "print([m for m in ('torch', 'transformers', 'jinja2') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
