"""One short literal sample of every format; the tests of detection and of accounting run over them.

A format's rows are what one input file of it holds, as JSON values. They must import without a
rejected row and give at least one group.
"""

from __future__ import annotations

from typing import Any

SAMPLES: dict[str, list[Any]] = {
    "canonical": [
        {
            "group_id": "g1",
            "prompt": [{"role": "user", "content": "问题"}],
            "candidates": [
                {"id": "a", "content": "甲", "model": None},
                {"id": "b", "content": "乙", "model": "m"},
            ],
            "judgements": [
                {"annotator": "x", "kind": "pair", "value": {"winner": "a", "loser": "b"},
                 "strength": None, "source": "s", "suspect": None},
            ],
            "meta": {},
        },
    ],
    "hh_rlhf": [
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
        {"chosen": "\n\nHuman: 问\n\nAssistant: 甲", "rejected": "\n\nHuman: 问\n\nAssistant: 乙"},
    ],
    "label_studio": [
        {
            "id": 1,
            "data": {"prompt": "Q", "answer1": "A", "answer2": "B"},
            "annotations": [
                {"id": 7, "completed_by": 10, "was_cancelled": False, "lead_time": 4.2,
                 "result": [{"from_name": "comparison", "to_name": "answer1", "type": "pairwise",
                             "value": {"selected": "left"}}]},
            ],
            "predictions": [],
        },
    ],
    "pairs": [
        {"prompt": "Q", "chosen": "A", "rejected": "B", "annotator": "x"},
        {"prompt": "问", "chosen": "甲", "rejected": "乙"},
    ],
    "shp": [
        {
            "post_id": "p", "domain": "askbaking_train", "history": "Q", "human_ref_A": "A",
            "human_ref_B": "B", "labels": 1, "score_A": 40, "score_B": 10, "score_ratio": 4.0,
        },
        {
            "post_id": "p", "domain": "askbaking_train", "history": "Q", "human_ref_A": "甲",
            "human_ref_B": "B", "labels": 0, "score_A": 5, "score_B": 10, "score_ratio": 2.0,
        },
    ],
    "summarize_from_feedback": [
        {
            "info": {"id": "t3_1", "post": "My cat left.", "title": "Help", "subreddit": "cats"},
            "summaries": [{"text": " cat gone", "policy": "sup2"}, {"text": " my cat left"}],
            "choice": choice,
            "worker": worker,
            "batch": "batch9",
            "split": "train",
            "extra": {"confidence": 8},
        }
        for worker, choice in (("w1", 1), ("w2", 0))
    ],
    "webgpt": [
        {
            "question": {"dataset": "eli5", "id": "q1", "full_text": "Q"},
            "quotes_0": {"title": ["T"], "extract": ["E"]},
            "answer_0": "A [1]",
            "score_0": 0.5,
            "quotes_1": {"title": [], "extract": []},
            "answer_1": "B",
            "score_1": -0.5,
        },
        {
            "question": {"dataset": "eli5", "id": "q2", "full_text": "问"},
            "answer_0": "甲", "score_0": 0.0, "answer_1": "乙", "score_1": 0.0,
        },
    ],
}  # fmt: skip
