"""Figures of a tokenizer by hand, languages by script, and what is shown of tokens."""

from __future__ import annotations

import pytest

from align.config_schema import Tokenizer
from align.data.tokenizer import learn_tokenizer
from align.data.tokenizer_statistics import (
    Meter,
    byte_ids,
    compare,
    compression,
    language_of,
    shown_tokens,
    visible,
)


class Letters:
    """One token a character, ids are code points; "q" is unknown, "z" is lost."""

    unk_token_id, eos_token_id = ord("q"), 0

    def get_vocab(self):
        return {chr(i): i for i in range(32, 132)}

    def __len__(self):
        return 100

    def batch_decode(self, rows):
        return ["".join(map(chr, row)) for row in rows]

    def __call__(self, text, add_special_tokens, verbose):
        return {"input_ids": [ord(c) for c in text if c != "z"]}

    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids))


def test_rates_by_hand():
    # 8 characters, 8 tokens, 5 + 3·2 bytes... é is two bytes, two kinds of tokens are used twice.
    rates = compression(Letters(), ["aab q", "\u00e9\u00e9a"])
    assert rates == {
        "chars_per_token": 1.0,
        "fertility": 1.0,
        "bytes_per_token": (5 + 5) / 8,
        "byte_fallback_share": 0.0,
        "unknown_rate": 1 / 8,
        "vocabulary_coverage": 5 / 100,  # a, b, space, q, é
        "tokens": 8.0,
    }


def test_sums_by_language_add_up():
    sums = compare({"letters": Letters()}, ["abc", "ab z", "房间", "！"])["letters"]
    assert {name: fit.texts for name, fit in sums.items()} == {
        "all": 4, "latin": 2, "zh": 1, "other": 1,
    }  # fmt: skip
    assert (sums["latin"].characters, sums["latin"].tokens, sums["latin"].changed) == (7, 6, 1)
    assert sums["all"].size == 3 + 4 + 6 + 3
    with pytest.raises(ValueError, match="changes 'ab z'"):
        compare({"letters": Letters()}, ["ab z"], exact=["letters"])


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("房间很好 ok", "zh"), ("The room 房", "latin"), ("Größe naïve", "latin"),
        ("部屋はとてもきれい", "ja"), ("東京都庁 の", "ja"), ("房间と", "ja"),
        ("방이 깨끗해요", "ko"),
        ("Комната чистая", "cyrillic"), ("الغرفة نظيفة", "arabic"), ("कमरा", "other"),
        ("123 !", "other"), ("", "other"),
    ],
)  # fmt: skip
def test_language_by_script(text, language):
    assert language_of(text) == language


def test_parts_of_characters_are_known_for_every_kind():
    texts = ["the room was good", "酒店 good"] * 30
    by_bytes = learn_tokenizer(texts, Tokenizer(kind="byte_bpe", vocab_size=262)).tokenizer
    # 128 bytes stand for ASCII, the others are no character alone.
    assert len(byte_ids(by_bytes)) == 128
    pieces = learn_tokenizer(texts, Tokenizer(kind="char_bpe", vocab_size=280)).tokenizer
    assert byte_ids(pieces) == set(
        pieces.convert_tokens_to_ids([f"<0x{i:02X}>" for i in range(256)])
    )
    fit = Meter(pieces).fit("龘a")
    assert (fit.fallback, fit.tokens, fit.characters) == (3, 4, 2)


@pytest.mark.parametrize("kind", ["byte_bpe", "char_bpe"])
def test_shown_tokens_spell_the_text_once(kind):
    size = 262 if kind == "byte_bpe" else 280
    texts = ["the room was good"] * 30
    tokenizer = learn_tokenizer(texts, Tokenizer(kind=kind, vocab_size=size)).tokenizer
    shown = shown_tokens(tokenizer, "a 龘\n!")
    spelled = [text for text, _ in shown]
    assert "".join(spelled) == "a␣龘··⏎!"
    assert all(" · " in hint for _, hint in shown)


def test_signs_for_what_cannot_be_seen():
    assert visible(" \n\t\rx\u200b\x00") == "␣⏎⇥␍xU+200BU+0000"
