"""The shapes of pairs that trl, LLaMA-Factory and binarized UltraFeedback files have."""

from __future__ import annotations

import pytest
from format_rows import fitting, run, trained

from align.records import Message
from reward_models.annotations.pairs import FORMAT
from reward_models.preferences import targets

U, A = "user", "assistant"


def msg(*turns):
    return [{"role": role, "content": content} for role, content in turns]


STANDARD = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
CONVERSATIONAL = {
    "prompt": msg((U, "What color is the sky?")),
    "chosen": msg((A, "It is blue.")),
    "rejected": msg((A, "It is green.")),
}
IMPLICIT = {
    "chosen": msg((U, "What color is the sky?"), (A, "It is blue.")),
    "rejected": msg((U, "What color is the sky?"), (A, "It is green.")),
}
LONG = {
    "chosen": msg(("system", "简短"), (U, "天是什么颜色？"), (A, "蓝"), (U, "草呢？"), (A, "绿")),
    "rejected": msg(("system", "简短"), (U, "天是什么颜色？"), (A, "蓝"), (U, "草呢？"), (A, "红")),
}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "你好"},
        {"from": "gpt", "value": "你好！"},
        {"from": "human", "value": "讲个笑话"},
    ],
    "chosen": {"from": "gpt", "value": "好的"},
    "rejected": {"from": "gpt", "value": "不行"},
}
BINARIZED = {
    "prompt": "Q", "prompt_id": "f0e3",
    "chosen": msg((U, "Q"), (A, "good")), "rejected": msg((U, "Q"), (A, "bad")),
    "messages": msg((U, "Q"), (A, "good")), "score_chosen": 8.5, "score_rejected": 6.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"),
    [
        (STANDARD, [(U, "The sky is")], " blue.", " green."),
        (CONVERSATIONAL, [(U, "What color is the sky?")], "It is blue.", "It is green."),
        (IMPLICIT, [(U, "What color is the sky?")], "It is blue.", "It is green."),
        (
            LONG,
            [("system", "简短"), (U, "天是什么颜色？"), (A, "蓝"), (U, "草呢？")],
            "绿",
            "红",
        ),
        (SHAREGPT, [(U, "你好"), (A, "你好！"), (U, "讲个笑话")], "好的", "不行"),
        (BINARIZED, [(U, "Q")], "good", "bad"),
    ],
    ids=["standard", "conversational", "implicit", "implicit_long", "sharegpt", "binarized"],
)
def test_prompt_and_answers(row, prompt, chosen, rejected):
    assert fitting(row) == ["pairs"]
    (group,), intake = run(FORMAT, row)
    assert group.prompt == tuple(Message(*turn) for turn in prompt)
    assert [(c.id, c.content) for c in group.candidates] == [
        ("chosen", chosen), ("rejected", rejected),
    ]  # fmt: skip
    assert trained(group) == [("chosen", "rejected", 1.0, 1.0)]
    assert intake.votes.used == 1


def test_scores_of_binarized_rows_are_the_margin():
    (group,), _ = run(FORMAT, BINARIZED)
    assert targets(group, margin=True)[0].margin == 2.5


def test_text_with_an_implicit_prompt_is_refused():
    # trl cuts at the longest common beginning of the two texts; where the answers begin alike that
    # is inside them, so such rows are neither recognised nor read.
    row = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    assert fitting(row) == []
    groups, intake = run(FORMAT, row)
    assert groups == []
    assert dict(intake.rows.dropped) == {"no_prompt": 1}


@pytest.mark.slow
@pytest.mark.parametrize("row", [IMPLICIT, LONG], ids=["one_turn", "two_turns"])
def test_implicit_prompts_end_where_trl_ends_them(row):
    data_utils = pytest.importorskip("trl.data_utils")
    expected = data_utils.extract_prompt(row)
    (group,), _ = run(FORMAT, row)
    assert [m.to_json() for m in group.prompt] == expected["prompt"]
    assert [[m.to_json() for m in c.messages] for c in group.candidates] == [
        expected["chosen"], expected["rejected"],
    ]  # fmt: skip
