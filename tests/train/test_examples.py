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


def test_what_was_cut_is_counted_by_its_kind(tmp_path, capsys):
    from align.data.sft import load_sft
    from align.train.examples import build_all
    from align.train.runner import write_counts

    file = tmp_path / "sft.jsonl"
    rows = [("写一条评论" * 20, "很好"), ("写", "很好" * 40), ("写", "好")]
    lines = [f'{{"instruction": "{a}", "output": "{b}"}}\n' for a, b in rows]
    file.write_text("".join(lines), encoding="utf-8")
    records, counts = load_sft(file)
    config = SimpleNamespace(
        data=SimpleNamespace(num_proc=None), method="sft",
        train=SimpleNamespace(output_dir=str(tmp_path)),
    )  # fmt: skip
    assert len(build_all(builder(max_length=48), records, counts, config)) == 3
    # keep_end: a long answer first takes the room of the prompt's beginning.
    assert counts.truncated == {"prompt_truncated": 2, "completion_truncated": 1}
    write_counts(config, [counts])
    said = capsys.readouterr().out
    assert "3 used, cut to length: prompt_truncated 2, completion_truncated 1" in said
