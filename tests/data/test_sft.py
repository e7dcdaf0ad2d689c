"""SFT rows of every shape become the same conversation."""

from __future__ import annotations

import json

import pytest

from align.config import UserError
from align.data.sft import load_sft


def read(tmp_path, *rows):
    path = tmp_path / "s.jsonl"
    path.write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8"
    )
    return load_sft(path)


def turns(example):
    return [(m.role, m.content) for m in example.messages]


PAIR = [("user", "翻译\n\nhello"), ("assistant", "你好")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "翻译", "input": "hello", "output": "你好"}, PAIR),
        ({"instruction": "hi", "output": "x"}, [("user", "hi"), ("assistant", "x")]),
        ({"instruction": "hi", "input": None, "output": "x"}, [("user", "hi"), ("assistant", "x")]),
        ({"instruction": "hi", "input": " ", "output": "x"}, [("user", "hi"), ("assistant", "x")]),
        (
            {"messages": [{"role": r, "content": c} for r, c in PAIR]},
            PAIR,
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": PAIR[0][1]},
                    {"from": "gpt", "value": "你好"},
                ]
            },
            PAIR,
        ),
        ({"prompt": PAIR[0][1], "completion": "你好"}, PAIR),
        (
            {
                "prompt": [{"role": "user", "content": PAIR[0][1]}],
                "completion": [{"role": "assistant", "content": "你好"}],
            },
            PAIR,
        ),
        (
            {"system": "简短", "instruction": "再来", "output": "好", "history": [["一", "二"]]},
            [
                ("system", "简短"),
                ("user", "一"),
                ("assistant", "二"),
                ("user", "再来"),
                ("assistant", "好"),
            ],
        ),
    ],
)
def test_shapes(tmp_path, row, expected):
    [example], counts = read(tmp_path, row)
    assert turns(example) == expected
    assert counts.used == 1


def test_unknown_columns_are_kept(tmp_path):
    [example], _ = read(
        tmp_path, {"prompt": "q", "completion": "a", "lang": "en", "meta": {"k": 1}}
    )
    assert example.meta == {"lang": "en", "k": 1}


def test_reasons(tmp_path):
    good = {"prompt": "q", "completion": "a"}
    examples, counts = read(
        tmp_path,
        good,
        {"instruction": "q", "output": "  "},
        {"messages": [{"role": "user", "content": "q"}]},
        {"messages": [{"role": "assistant", "content": "q"}]},
        {"messages": [{"role": "poet", "content": "q"}]},
        {"instruction": "q", "input": ["x"], "output": "a"},
        {"instruction": "q", "output": "a", "history": ["x"]},
        {"text": "q"},
    )
    assert len(examples) == 1
    assert dict(counts.dropped) == {
        "empty_completion": 1,
        "no_assistant": 1,
        "empty_prompt": 1,
        "bad_role": 1,
        "not_text": 1,
        "bad_message": 1,
        "unknown_format": 1,
    }


def test_no_usable_row_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no usable row: unknown_format 1") as caught:
        read(tmp_path, {"text": "x"})
    assert caught.value.field == "data.sft"
