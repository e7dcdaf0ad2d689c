"""Training a tokenizer: exact round trips, sizes, what AutoTokenizer reads back."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.config import UserError
from align.data.tokenizer import (
    BYTES,
    FIXED,
    SPECIALS,
    compression,
    save_tokenizer,
    train_tokenizer,
)

TEXTS = [
    "酒店的房间很大，早餐品种很多，服务也不错。",
    "酒店的位置很好，早餐一般，前台服务不错！",
    "这本书的内容不错，作者的文字很好。",
    "The room was large and the breakfast was good.",
    "the screen is good, the keyboard is good <0x41> 2008",
] * 4


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 360)


def roundtrip(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids, skip_special_tokens=False)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60))
def test_every_string_survives(tokenizer, text):
    assert roundtrip(tokenizer, text) == text


@pytest.mark.parametrize(
    "text",
    [
        "酒店 早餐", "  two  spaces\n\n\tand tabs\r\n", "罕见字：𠮷龘㐂",
        "\U0001f600\U0001f468\u200d\U0001f469",
        "<0x41><0xE4>", "e\u0301 vs é", "\ufeff\u200b\x00", "한국어 العربية हिन्दी",
        "# 指令\n写\n\n# 回覆\n",
        "a<|endoftext|>b", "▁ Ġ ##", "\ufffd",
    ],
)  # fmt: skip
def test_hard_strings_survive(tokenizer, text):
    assert roundtrip(tokenizer, text) == text


def test_byte_names_in_text_are_text(tokenizer):
    ids = tokenizer("<0x41>", add_special_tokens=False)["input_ids"]
    assert not set(ids) & set(tokenizer.convert_tokens_to_ids(list(BYTES)))


def test_unknown_character_becomes_its_utf8_bytes(tokenizer):
    ids = tokenizer("龘", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<0xE9>", "<0xBE>", "<0x98>"]


def test_words_are_learned_and_digits_stay_single(tokenizer):
    def tokens(text):
        return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])

    assert "早餐" in tokens("早餐")
    assert tokens("2008") == ["2", "0", "0", "8"]


def test_size_specials_and_layout(tokenizer):
    assert len(tokenizer) == 360 == len(set(tokenizer.get_vocab()))
    assert tokenizer.convert_tokens_to_ids(list(SPECIALS)) == [0, 1, 2, 3]
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert max(tokenizer.get_vocab().values()) == 359
    assert FIXED == 260


def test_auto_tokenizer_reads_it_back(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    save_tokenizer(tokenizer, tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.is_fast
    assert (again.eos_token, again.pad_token) == ("<|endoftext|>", "<|pad|>")
    for text in [*TEXTS[:5], "罕见字：𠮷 \U0001f600", "a<|im_end|>b"]:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert roundtrip(again, text) == text


def test_order_of_texts_does_not_matter(tokenizer):
    shuffled = list(TEXTS)
    random.Random(3).shuffle(shuffled)
    assert train_tokenizer(shuffled, 360).get_vocab() == tokenizer.get_vocab()


def test_too_large_a_vocabulary_names_the_maximum():
    with pytest.raises(UserError, match="at most") as caught:
        train_tokenizer(TEXTS, 5000)
    most = int(caught.value.reason.split("at most ")[1].split()[0])
    assert len(train_tokenizer(TEXTS, most)) == most
    with pytest.raises(UserError):
        train_tokenizer(TEXTS, most + 1)


def test_too_small_a_vocabulary_and_no_text():
    with pytest.raises(UserError, match=r"take 260\. Use 261 or more"):
        train_tokenizer(TEXTS, 260)
    with pytest.raises(UserError, match="no text"):
        train_tokenizer([], 300)


def test_chat_template_is_set():
    tokenizer = train_tokenizer(TEXTS, 360, chat_template="zh_instruction")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "写"}], tokenize=False, add_generation_prompt=True
    )
    assert "指令" in text
    assert text.endswith("回覆\n") or "回覆" in text


def test_compression_by_hand():
    class Letters:
        """One token a character."""

        def convert_tokens_to_ids(self, tokens):
            return [-1] * len(tokens)

        def __call__(self, text, add_special_tokens, verbose):
            return {"input_ids": [ord(c) for c in text]}

        def decode(self, ids, skip_special_tokens):
            return "".join(map(chr, ids))

    measured = compression(Letters(), ["早餐", "ab"])
    assert measured["chars_per_token"] == 1.0
    assert measured["bytes_per_token"] == (6 + 2) / 4
    assert measured["byte_fallback_share"] == 0.0


def test_compression_refuses_a_lossy_tokenizer(tokenizer):
    class Lossy:
        convert_tokens_to_ids = staticmethod(tokenizer.convert_tokens_to_ids)

        def __call__(self, text, add_special_tokens, verbose):
            return tokenizer(text.lower(), add_special_tokens=add_special_tokens)

        decode = staticmethod(tokenizer.decode)

    with pytest.raises(ValueError, match="changes 'The"):
        compression(Lossy(), ["The"])
