"""Texts that another trainer has rendered score like the messages that they are."""

from __future__ import annotations

import pytest
import tiny_rewards as tiny

from align.chat import prepare_tokenizer
from align.records import Message, RecordError
from reward_models.contract import make_contract
from reward_models.scorer import Scorer
from reward_models.server_engine import ScorerEngine
from reward_models.server_requests import Item, Query

CHATS = [
    ([("user", "写一条酒店评论")], "房间很干净，服务很好。"),
    ([("user", "Write a review of a hotel")], "The room was clean."),
    ([("system", "你是客人。"), ("user", "问"), ("assistant", "答"), ("user", "再")], "早餐不错。"),
    ([("user", "q")], ""),
    ([("user", "q")], "  two spaces, \n\n and lines\n"),
]  # fmt: skip


def turns(pairs):
    return tuple(Message(role, text) for role, text in pairs)


def engine(template="chatml", **contract):
    words = prepare_tokenizer(tiny.tokenizer(), template)
    made = tiny.model(), words, make_contract(words, **contract)
    return ScorerEngine(Scorer(loaded=made, batch_size=4))


@pytest.fixture(scope="module", params=["chatml", "zh_instruction", "inst"])
def own(request):
    return engine(request.param)


def rendered(engine, pairs, answer=None):
    """What a trainer with the same tokenizer sends: its prompt, and prompt with answer."""
    words = engine.scorer.tokenizer
    chat = [{"role": role, "content": text} for role, text in pairs]
    prompt = words.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    if answer is None:
        return prompt
    full = [*chat, {"role": "assistant", "content": answer}]
    return prompt, words.apply_chat_template(full, tokenize=False)


@pytest.mark.parametrize("chat", CHATS)
def test_a_text_in_the_models_own_template_reads_as_its_messages(own, chat):
    pairs, answer = chat
    expected, cut = own.encode(Item(turns(pairs), answer))
    assert not cut
    prompt, full = rendered(own, pairs, answer)
    words = own.scorer.tokenizer
    for text in (full, full.rstrip("\n"), full + words.pad_token * 3):
        assert own.encode(Query(text, prompt)) == (expected, False)
        assert own.encode(Query(text, None)) == (expected, False)


def test_an_answer_that_was_cut_off_is_read_as_a_whole_turn(own):
    expected = own.encode(Item((Message("user", "写一条"),), "房间很"))[0]
    prompt = rendered(own, [("user", "写一条")])
    lead = {True: " ", False: ""}["[/INST]" in prompt]  # what a policy of that template samples
    assert own.encode(Query(f"{prompt}{lead}房间很", prompt))[0] == expected


def test_plain_prompts_become_a_user_turn(own):
    expected = own.encode(Item((Message("user", "写一条"),), "很好"))[0]
    eos = own.scorer.tokenizer.eos_token
    for end in ("", eos, "</s>", "<|im_end|>", "<|eot_id|>", eos * 2):
        assert own.encode(Query("写一条很好" + end, "写一条"))[0] == expected


def test_scores_are_those_of_the_scorer(own):
    chats = [(turns(pairs), answer) for pairs, answer in CHATS]
    prompts, answers = zip(*chats, strict=True)
    expected = own.scorer.score(prompts, answers)
    rows = [own.encode(Query(rendered(own, p, a)[1], None))[0] for p, a in CHATS]
    assert own.score(rows) == pytest.approx(expected, abs=1e-6)
    assert len({round(score, 4) for score in expected}) == len(CHATS)


@pytest.mark.parametrize(
    ("text", "prompt", "said"),
    [
        ("just an answer", None, "no answer in this model's chat template"),
        ("question answer", "another question", "does not begin with its prompt"),
        (
            "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>a",
            "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>",
            "it has <|start_header_id|>",
        ),
        ("[INST] q [/INST] a", "[INST] q [/INST]", "in another chat template"),
        ("<start_of_turn>user\nq", "<start_of_turn>user\nq", "in another chat template"),
        ("<｜User｜>q<｜Assistant｜>a", "<｜User｜>q<｜Assistant｜>", "it has <｜User｜>"),
    ],
)
def test_what_would_be_scored_wrongly_is_refused(text, prompt, said):
    with pytest.raises(RecordError, match=said) as caught:
        engine("chatml").encode(Query(text, prompt))
    assert "or use /score" in caught.value.message


def test_a_long_text_is_cut_like_messages():
    made = engine(max_length=30)
    pairs, answer = [("user", "写一条酒店评论" * 9)], "房间很干净。"
    expected, cut = made.encode(Item(turns(pairs), answer))
    assert cut
    assert len(expected) == 30
    prompt, full = rendered(made, pairs, answer)
    assert made.encode(Query(full, prompt)) == (expected, True)
    assert made.encode(Item(turns([("user", "q")]), "a"))[1] is False
    narrow = engine(max_length=30)
    narrow.scorer.max_length = 3
    for unreadable in (Item(turns(pairs), answer), Query(full, prompt)):
        with pytest.raises(RecordError, match="no room for a completion in 3 tokens"):
            narrow.encode(unreadable)


def test_calibrated_and_heads():
    words = tiny.tokenizer()
    made = tiny.model(heads=3), words, make_contract(words, heads=3, scores=[-2.0, 6.0])
    raw, calibrated = (ScorerEngine(Scorer(loaded=made), calibrated=c) for c in (False, True))
    rows = [raw.encode(Item((Message("user", "q"),), text))[0] for text in ("a", "好")]
    # Mean 2 and population deviation 4.
    assert [4 * s + 2 for s in calibrated.score(rows)] == pytest.approx(raw.score(rows))
