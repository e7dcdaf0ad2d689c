"""Records that cannot be learned from: counted by reason, or an error that shows the row."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from align import chat
from align.config_errors import UserError
from align.data.tokenizer import train_tokenizer
from align.records import Example, Message
from align.train.examples import SftBuilder

TEXTS = ["房间很干净。", "The room was clean.", "写一条评论"] * 4


def builder(max_length=64):
    tokenizer = train_tokenizer(TEXTS, 300, min_frequency=1, chat_template="chatml")
    data = SimpleNamespace(max_length=max_length, max_prompt_length=None, truncation="keep_end")
    config = SimpleNamespace(data=data, sft=SimpleNamespace(loss_on="assistant"))
    return SftBuilder(tokenizer, config)


def example(answer="很好"):
    return Example((Message("user", "写一条评论"), Message("assistant", answer)))


def test_a_row_without_a_learned_token_is_an_error_that_shows_it(monkeypatch):
    build = builder()
    rendered = ([1, 2, 3], [0, 0, 0])
    monkeypatch.setattr(chat, "render_conversation", lambda *a, **k: rendered)
    with pytest.raises(UserError, match=r"写一条评论.*no token to learn from"):
        build(example())


def test_a_row_whose_answer_cannot_fit_is_counted():
    assert builder(max_length=4)(example()) == "too_long"


def test_the_end_of_the_answer_is_learned_and_the_prompt_is_not():
    build = builder()
    group, cut = build(example())
    assert not cut
    assert group.completions[0][-1] in chat.stop_ids(build.tokenizer)
    assert set(group.mask_of(0)) == {1}
    assert build.tokenizer.decode(group.completions[0]).startswith("很好")
