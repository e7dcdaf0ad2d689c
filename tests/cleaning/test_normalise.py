from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from align.cleaning.normalise import repair, repairs
from align.cleaning.settings import Settings

PLAIN = Settings()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ＡＢＣ１２３，你好！", "ABC123，你好！"),
        ("ｶﾀｶﾅ ㈱ ① … 。", "カタカナ ㈱ ① … 。"),
        ("e\u0301 ﬁne", "é fine"),
        ("中\u200b文\u00ad字\ufeff", "中文字"),
        ("نمی\u200cخواهم", "نمی\u200cخواهم"),
        ("👩\u200d💻 writes", "👩\u200d💻 writes"),
        ("a\u200db", "ab"),
        ("a  b\t c \n\n\n\n d ", "a b c\n\nd"),
        ("one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour"),
        ("bell\x07 and nul\x00", "bell and nul"),
        ("&lt;b&gt; AT&amp;T &hellip; &nosuch; R&D", "<b> AT&T … &nosuch; R&D"),
        ("cafÃ© â€œhiâ€\x9d", "café “hi”"),
        ("æˆ‘å¾ˆå–œæ¬¢", "我很喜欢"),
        ("浣犲ソ锛屼笘鐣屻€", "浣犲ソ锛屼笘鐣屻€"),  # a byte is lost: left as it is
        ("élève, naïve, Ångström", "élève, naïve, Ångström"),
        ("bad \ud83d half", "bad half"),
    ],
)
def test_text_is_repaired(text, wanted):
    assert repair(text, PLAIN) == wanted


@pytest.mark.parametrize("whole", ["服务很好，房间也干净", "这本书很好，推荐"])
def test_utf8_read_as_gbk_is_read_again(whole):
    broken = whole.encode("utf-8").decode("gb18030")
    assert broken != whole
    assert repair(f"第一行\n{broken}", PLAIN) == f"第一行\n{whole}"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("很好,下次再来!", "很好，下次再来！"),
        ("第一(很好)第二", "第一（很好）第二"),
        ("他说...好吧。。。。不", "他说……好吧……不"),
        ("可以--是—的", "可以——是——的"),
        ("结束.\n开始", "结束。\n开始"),
        ("Hello，world", "Hello,world"),
        # Times, numbers, code, English and addresses stay.
        ("时间12:30,价格1,000元", "时间12:30,价格1,000元"),
        ("Wait... what? (yes)", "Wait... what? (yes)"),
        ("用 f(x) 计算 a.b", "用 f(x) 计算 a.b"),
        ("A — B … C", "A — B … C"),
    ],
)
def test_punctuation_has_one_form(text, wanted):
    assert repair(text, PLAIN) == wanted


def test_chinese_punctuation_survives_nfkc():
    text = "（一）他说：“好！”；《书》、…①"
    assert repair(text, Settings(punctuation=False)) == text


def test_quotes_as_asked():
    assert repair("“a” ‘b’ «c»", Settings(quotes="straight")) == '"a" \'b\' "c"'
    assert repair('"a" it\'s', Settings(quotes="curly")) == "“a” it’s"
    assert repair('"a" “b”', PLAIN) == '"a" “b”'


def test_characters_as_asked():
    assert repair("漢字與電腦", Settings(chinese="simplified")) == "汉字与电脑"
    assert repair("汉字与电脑", Settings(chinese="traditional")) == "漢字與電腦"


@pytest.mark.parametrize(
    ("switch", "text"),
    [
        ({"normalise": "none"}, "ＡＢ"),
        ({"invisible": False}, "中\u200b文"),
        ({"fix_mojibake": False}, "cafÃ©"),
        ({"unescape_html": False}, "&amp;"),
        ({"white_space": False}, "a  b"),
        ({"punctuation": False}, "很好,下次"),
    ],
)
def test_every_repair_can_be_switched_off(switch, text):
    assert repair(text, Settings(**switch)) == text
    assert repair(text, PLAIN) != text


def test_code_and_markdown_keep_their_layout():
    code = "def f(x):\n\tif x:\n\n\n\n        return  'ＡＢ，&amp;'  \n"
    assert repair(code, PLAIN, "code") == code
    assert repair("a\x07b", PLAIN, "code") == "ab"
    markdown = "- one\n    - two\n\n```\n  x = ＡＢ\n```\n"
    assert repair(markdown, PLAIN, "markdown") == markdown.replace("ＡＢ", "AB")


ALPHABET = st.sampled_from(
    [
        *"ab ,.!?-(\n\t…。，；：（&;\"'",
        *"中文。很",
        "Ã",
        "©",
        "\u200b",
        "é",
        "\u0301",
        "锛",
        "銆",
        "Ａ",
        "１",
        "\u200d",
        "‥",
        "—",
        "\r",
    ]
)
TEXT = st.text(ALPHABET, max_size=30)


@given(st.lists(TEXT, min_size=1, max_size=5))
@example(["a…", "中"])
@example(["很好,", "b"])
@example(["中 ", "\n"])
def test_a_text_does_not_depend_on_its_neighbours(texts):
    joined = "\0".join(texts)
    for _, action in repairs(PLAIN):
        joined = action(joined, PLAIN)
    assert joined.split("\0") == [repair(text, PLAIN) for text in texts]


@given(st.text(max_size=60))
def test_any_string_is_repaired_to_nfkc_like_text_without_controls(text):
    fixed = repair(text, PLAIN)
    assert not any(unicodedata.category(c) == "Cc" and c != "\n" for c in fixed)
    assert "\n\n\n" not in fixed
    assert fixed == fixed.strip(" \n")
