"""One short literal sample of every format; the tests of detection and of accounting run over them.

A format's rows are what one input file of it holds, as JSON values. They must import without a
rejected row and give at least one group.
"""

from __future__ import annotations

from typing import Any

SAMPLES: dict[str, list[Any]] = {
    "alpaca_eval": [
        {
            "instruction": "Q", "output_1": "A", "output_2": "B", "generator_1": "x",
            "generator_2": "y", "dataset": "koala", "annotator": "j", "preference": preference,
        }
        for preference in (1.4, 2)
    ],
    "arena": [
        {
            "question_id": "q", "model_a": "x", "model_b": "y", "winner": "tie (bothbad)",
            "judge": "u", "turn": 1, "anony": True, "language": "English",
            "conversation_a": [{"role": "user", "content": "Q"},
                               {"role": "assistant", "content": "A"}],
            "conversation_b": [{"role": "user", "content": "Q"},
                               {"role": "assistant", "content": "B"}],
        },
        {
            "id": 1, "model_a": "x", "model_b": "y", "prompt": '["问"]', "response_a": '["甲"]',
            "response_b": '["乙"]', "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0,
        },
    ],
    "argilla": [
        {"id": "r1", "fields": {"instruction": "Q", "response1": "A", "response2": "B"},
         "metadata": {}, "vectors": {}, "status": "completed", "_server_id": "s1",
         "suggestions": {"ranking": {"value": ["response1", "response2"], "score": None,
                                     "agent": None}},
         "responses": {"ranking": [{"value": ["response2", "response1"], "user_id": "u1"}],
                       "rating": [{"value": 4, "user_id": "u1"}]}},
        {"id": "r2", "status": "completed", "_server_id": "s2", "instruction": "问",
         "response1": "甲", "response2": "乙", "ranking.responses": [["response1", "response2"]],
         "ranking.responses.users": ["u1"], "ranking.responses.status": ["submitted"],
         "ranking.suggestion": None},
    ],
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
    "doccano": [
        {"id": 1, "text": "Q", "answer_a": "one", "answer_b": "two", "label": ["A"],
         "Comments": []},
        {"id": 2, "text": "问", "answer_a": "甲", "answer_b": "乙", "label": ["平局"],
         "Comments": ["难"]},
    ],
    "feedback": [
        {"id": "1", "time": "2026-05-01T08:00:00+00:00", "source": "arena", "annotator": "x",
         "session": None, "item": "i", "prompt": [{"role": "user", "content": "Q"}],
         "completions": [{"model": "m", "text": "A"}, {"model": "n", "text": "B"}],
         "vote": "left", "position": "ab", "latency_s": None, "seconds": 3.5, "tokens": None,
         "consent": True},
        *[
            {"id": text, "source": "chat", "annotator": "x", "prompt": "问",
             "completions": [{"model": "m", "text": text}], "vote": vote, "consent": True}
            for text, vote in (("甲", "up"), ("乙", "down"))
        ],
    ],
    "helpsteer2": [
        {
            "prompt": prompt, "response": response, "helpfulness": rating, "correctness": 4,
            "coherence": 4, "complexity": 2, "verbosity": 1,
        }
        for prompt, response, rating in (
            ("Q", "A", 3), ("问", "甲", 2), ("Q", "B", 1), ("问", "乙", 2),
        )
    ],
    "helpsteer2_preference": [
        {
            "split": "train", "prompt": "Q", "response_1": "A", "response_2": "B",
            "preference_strength": strength, "preference_statement": "Response 1 is better.",
            "preference_elaboration": "It answers.",
        }
        for strength in (-2, 0)
    ],
    "helpsteer3": [
        {
            "domain": "general", "language": "chinese",
            "context": [{"role": "user", "content": "问"}], "response1": "甲", "response2": "乙",
            "overall_preference": -2,
            "individual_preference": [
                {"score": -2, "reasoning": "r"}, {"score": 0, "reasoning": "r"},
            ],
        },
        {
            "domain": "code", "language": "python",
            "context": [
                {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"},
                {"role": "user", "content": "Q2"},
            ],
            "response1": "B", "response2": "C", "overall_preference": 1,
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
    "nectar": [
        {
            "prompt": "\n\nHuman: Q\n\nAssistant: ", "turns": 1, "num_responses": 3,
            "source": ["sharegpt"], "good_natured": True,
            "answers": [
                {"answer": "A", "model": "gpt-4", "rank": 2.0},
                {"answer": "B", "model": "llama-2-7b-chat", "rank": 3.0},
                {"answer": "C", "model": "gpt-3.5-turbo", "rank": 1.0},
            ],
        },
    ],
    "label_studio_min": [
        {"prompt": "Q", "answer1": "A", "answer2": "B", "id": 1,
         "comparison": [{"selected": "left"}], "annotator": 10, "annotation_id": 7,
         "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
         "lead_time": 4.2},
        {"prompt": "问", "answer1": "甲", "answer2": "乙", "id": 2, "best": "右", "annotator": 10,
         "annotation_id": 8, "created_at": "2026-01-01T00:00:00Z",
         "updated_at": "2026-01-01T00:00:00Z", "lead_time": None},
    ],
    "oasst": [
        {
            "message_tree_id": "t1",
            "tree_state": "ready_for_export",
            "prompt": {
                "message_id": "r1", "role": "prompter", "text": "Q", "lang": "en", "rank": None,
                "replies": [
                    {"message_id": "a1", "role": "assistant", "text": "A", "rank": 1,
                     "replies": []},
                    {"message_id": "b1", "role": "assistant", "text": "B", "rank": 0,
                     "replies": []},
                ],
            },
        },
        *(
            {"message_id": name, "parent_id": parent, "role": role, "text": text, "lang": "zh",
             "rank": rank, "deleted": False, "message_tree_id": "t2",
             "tree_state": "ready_for_export"}
            for name, parent, role, text, rank in (
                ("b2", "r2", "assistant", "乙", 1),
                ("a2", "r2", "assistant", "甲", 0),
                ("r2", None, "prompter", "问", None),
            )
        ),
    ],
    "pairs": [
        {"prompt": "Q", "chosen": "A", "rejected": "B", "annotator": "x"},
        {"prompt": "问", "chosen": "甲", "rejected": "乙"},
    ],
    "pku_saferlhf": [
        {
            "prompt": "Q", "response_0": "A", "response_1": "B", "is_response_0_safe": True,
            "is_response_1_safe": False, "better_response_id": 1, "safer_response_id": 0,
        },
    ],
    "prodigy": [
        {"text": "Q", "options": [{"id": "A", "text": "one"}, {"id": "B", "text": "two"}],
         "accept": ["A"], "answer": "accept", "_input_hash": 1, "_task_hash": 2,
         "_session_id": "d-al", "_annotator_id": "d-al", "_view_id": "choice",
         "_timestamp": 1700000000},
        {"text": "问", "options": [{"id": 1, "text": "甲"}, {"id": 2, "text": "乙"}],
         "accept": [2], "answer": "accept", "_task_hash": 3, "_session_id": None},
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
    "table": [
        {"prompt": "Q", "response_1": "A", "response_2": "B", "response_3": "C", "rank_1": 2,
         "rank_2": 1, "rank_3": 3, "annotator": "x"},
        {"prompt": "问", "response_1": "甲", "response_2": "乙", "response_3": None, "rank_1": "1",
         "rank_2": "2", "rank_3": None, "annotator": "x"},
    ],
    "ultrafeedback": [
        {
            "source": "sharegpt", "instruction": "Q", "models": ["m", "n"],
            "completions": [
                {
                    "model": model, "response": text, "overall_score": 7.5,
                    "fine-grained_score": 4.0,
                    "annotations": {
                        "helpfulness": {"Rating": "4", "Rationale": "r"},
                        "honesty": {"Rating": "N/A", "Rationale": "r"},
                    },
                }
                for model, text in (("m", "A"), ("n", "B"))
            ],
            "correct_answers": ["None"], "incorrect_answers": ["None"],
        },
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
