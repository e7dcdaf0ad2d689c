"""Chinese, English and mixtures, told by the script."""

from __future__ import annotations

import pytest

from reward_models.language import LANGUAGES, language


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("房间很干净，服务很好。", "zh"),
        ("The room was clean.", "en"),
        ("Où est la chambre ?", "en"),  # Latin letters, whatever the language
        ("我们用 Python 写的", "mixed"),  # 6 characters and 1 word
        ("这家酒店的早餐非常好吃也很便宜 OK", "zh"),  # 15 characters and 1 word
        ("The word 好 means good and nothing else at all here", "en"),  # 1 character, 10 words
        ("The word 好 means good", "mixed"),  # 1 character, 4 words
        ("", "other"),
        ("123 + 456 = 579 ！", "other"),
        ("Привет, как дела?", "other"),
        ("お部屋はきれいでした。", "other"),
        ("서울은 어디에 있나요", "other"),
        ("𠀀𠀁〇々", "zh"),
    ],
)
def test_language_by_script(text, wanted):
    assert language(text) == wanted
    assert wanted in LANGUAGES


def test_length_and_repetition_do_not_matter():
    for text in ("房间很干净。", "The room was clean. ", "我们用 Python 写的 "):
        assert language(text * 50) == language(text)
