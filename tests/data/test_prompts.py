"""Prompts come from every kind of file, each once."""

from __future__ import annotations

import json

import pytest

from align.config import UserError
from align.data.prompts import load_prompts, load_prompts_counted
from align.records import prompt_key


def write(tmp_path, *rows):
    path = tmp_path / "p.jsonl"
    path.write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8"
    )
    return path


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "写诗"}, ["写诗"]),
        ({"prompt": [user("1"), bot("2"), user("3")]}, ["1", "2", "3"]),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, ["q"]),
        ({"chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]}, ["q"]),
        ({"conversations": [user("q")], "chosen": bot("a"), "rejected": bot("b")}, ["q"]),
        (
            {"prompt": "q", "candidates": [{"id": "x", "content": "a"}], "judgements": []},
            ["q"],
        ),
        ({"messages": [user("1"), bot("2"), user("3"), bot("4")]}, ["1", "2", "3"]),
        ({"instruction": "翻译", "input": "hello", "output": "你好"}, ["翻译\n\nhello"]),
        ({"prompt": "q", "completion": "a"}, ["q"]),
        ({"system": "s", "prompt": "q"}, ["s", "q"]),
    ],
)
def test_shapes(tmp_path, row, expected):
    [prompt] = load_prompts(write(tmp_path, row))
    assert [m.content for m in prompt.messages] == expected
    assert prompt.prompt_id == prompt_key(prompt.messages)


def test_duplicates_and_bad_rows_are_counted_and_order_kept(tmp_path):
    path = write(
        tmp_path,
        {"prompt": "Second"},
        {"prompt": "first", "label": 1},
        {"prompt": " SECOND ", "label": 2},
        {"prompt": "  "},
        {"other": 1},
    )
    prompts, counts = load_prompts_counted(path)
    assert [p.messages[0].content for p in prompts] == ["Second", "first"]
    assert [p.meta for p in prompts] == [{}, {"label": 1}]
    assert dict(counts.dropped) == {"duplicate": 1, "empty_prompt": 1, "unknown_format": 1}
    assert counts.total == 5


def test_no_usable_row_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no usable row"):
        load_prompts(write(tmp_path, {"other": 1}))
