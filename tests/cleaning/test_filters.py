"""Each rule on texts that it must refuse and texts that it must not, in both languages."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from align.cleaning.filters import Figures, refused
from align.cleaning.languages import UNKNOWN, languages
from align.cleaning.perplexity import CharacterModel, load_scorer
from align.cleaning.phrases import Phrases, evaluation_texts, word_list
from align.cleaning.quality import Quality, main, train
from align.cleaning.settings import Settings
from align.cleaning.tokens import Batch
from align.config_errors import UserError

ZH = "这家酒店的位置非常好，房间也很干净，服务员的态度让人觉得像在自己家里一样。"
EN = "The room was clean and the staff were kind, so we would come back here again."


def reasons(*texts: str, form: str = "text", **switches) -> list[str | None]:
    return refused(Figures(Batch(list(texts)), Settings(**switches)), form)


def test_ordinary_texts_stay():
    poem = "床前明月光，\n疑是地上霜。\n举头望明月，\n低头思故乡。"
    chat = "Human: How do I boil an egg?\n\nAssistant: Put it in water for eight minutes."
    assert (
        reasons(ZH, EN, poem, chat, "很好，下次再来", "3.5 stars, would stay again!") == [None] * 6
    )


@pytest.mark.parametrize(
    ("reason", "bad"),
    [
        ("empty", ""),
        ("too_short", "很好"),
        ("few_letters", "!!! --- ??? ... ab"),
        ("symbols", "♥♦♣♠★☆ 好看的东西呀"),
        ("broken_characters", "这是\ufffd\ufffd一段坏了的文字"),
        ("long_run", "太好了哈哈" + "啊" * 30 + "，下次一定还会再来的，因为真的很不错"),
        ("urls", "看 https://example.com/a/very/long/path/with/many/parts?x=1 这里"),
        ("repetitive", EN + " " + EN + " " + EN),
        ("repetitive", ZH * 3),
        ("one_phrase", "yes sir a yes sir b yes sir c yes sir d"),
        ("one_phrase", "真好啊真好呀真好吧真好呢真好"),
        ("placeholder", "Please enable JavaScript to view this page, thank you."),
        ("placeholder", "您的浏览器不支持 JavaScript，请升级后再访问本站。"),
    ],
)
def test_the_general_rules_refuse(reason, bad):
    assert reasons(bad, EN) == [reason, None]
    if reason not in ("empty", "placeholder"):
        assert reasons(bad, rules="none") == [None]


@pytest.mark.parametrize(
    ("reason", "text", "limits"),
    [
        ("too_long", ZH, {"max_chars": 10}),
        ("few_words", "three short words", {"min_words": 4}),
        ("digits", "123 456 789 ab", {"max_digits": 0.5}),
        ("long_words", "incomprehensibilities internationalization", {"max_word_length": 10}),
        ("repeated_lines", "home\nhome\nhome\nnews", {"max_repeated_lines": 0.3}),
        ("no_sentences", "Home\nNews\nAbout us\nContact", {"min_stops": 0.1}),
        ("bullets", "• one\n• two\n- three", {"max_bullets": 0.9}),
        ("ellipses", "read more...\nread more…\nand so on", {"max_ellipses": 0.3}),
    ],
)
def test_a_limit_that_is_given(reason, text, limits):
    assert reasons(text, rules="none", **limits) == [reason]
    assert reasons(text, rules="none") == [None]
    assert reasons(text, rules="none", **dict.fromkeys(limits, 0)) == [None]


def test_a_long_text_may_have_a_line_of_dashes():
    table = "\n".join(f"{w}性的东西在这里说明" for w in "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳午未申酉")
    assert reasons(table * 9 + "-" * 30, max_repeated=0, max_top_ngram=0) == [None]
    assert reasons("很好" + "-" * 30 + table[:40]) == ["long_run"]


def test_web_rules_keep_an_article_and_drop_a_menu():
    subjects = (
        "The mayor",
        "A teacher",
        "Her brother",
        "The old doctor",
        "One of the players",
        "Our neighbour",
        "The new director",
        "Every visitor",
        "A young writer",
        "Nobody",
    )
    ends = ("opened the bridge before noon.", "asked for a longer break in spring.",
            "walked home along the river.", "found three letters under the floor.",
            "missed the last train to the coast.", "sold apples at the market.",
            "wrote about the long dry summer.", "kept the keys for forty years.",
            "never learned how to swim.", "painted both doors green again.")  # fmt: skip
    article = "\n".join(f"{s} {e}" for s, e in zip(subjects, ends, strict=True))
    menu = "\n".join(f"Category {i}" for i in range(60))
    assert reasons(article, menu, rules="web") == [None, "no_sentences"]


def test_code_is_not_judged_as_prose():
    code = "}\n}\n}\n;;;;\n" * 5
    assert reasons(code, form="code") == [None]
    assert reasons(code) != [None]


def test_one_wrong_rule_is_named_first():
    assert reasons("!!", min_letters=0.9, min_chars=10) == ["too_short"]


# Languages


def test_languages():
    texts = {
        "zh": ZH, "en": EN, "ja": "これは日本語の文章です。", "ko": "이것은 한국어 문장입니다.",
        "ru": "Это обычный русский текст о погоде и о людях.",
        "fr": "Ceci est un texte français assez long pour être reconnu sans doute.",
        "de": "Das ist ein deutscher Satz, der lang genug ist, um erkannt zu werden.",
        "th": "นี่คือข้อความภาษาไทย", UNKNOWN: "12345 !!!",
    }  # fmt: skip
    assert languages(Batch([*texts.values()])) == [*texts]


def test_a_language_filter_keeps_what_it_cannot_tell():
    texts = [
        ZH,
        EN,
        "Ceci est un texte français assez long pour être reconnu sans doute.",
        "ok 12345",
    ]
    assert reasons(*texts, languages=["zh", "en"]) == [None, None, "language", None]


def test_mixed_text_belongs_to_the_script_with_more_of_it():
    assert languages(Batch(["我用 Python 写代码，用 GitHub 管理版本"])) == ["zh"]
    assert languages(Batch(["The word 你好 is what they say for hello in this town"])) == ["en"]


# Phrases


def test_word_lists_match_words_not_parts_of_them(tmp_path):
    (tmp_path / "w.txt").write_text("# comment\n赌博\nbad word\nASS\n")
    hits = word_list([str(tmp_path / "w.txt")]).hits(
        Batch(["网上赌博害人", "a Bad  WORD here", "classic assets", "bad, word", "好赌"])
    )
    assert hits.tolist() == [1, 1, 0, 1, 0]


def test_contamination_by_thirteen_words(tmp_path):
    question = (
        "Which of the following rivers flows through the city of Vienna and then through Budapest"
    )
    (tmp_path / "e.jsonl").write_text(json.dumps({"q": {"text": question, "n": 1}, "a": [ZH]}))
    known = Phrases.parts(evaluation_texts([str(tmp_path)]), 13)
    copied = (
        "He asked: which of the following rivers flows through the city of Vienna, and then left."
    )
    shorter = "which of the following rivers flows through the city of Vienna"
    assert known.hits(Batch([copied, shorter, ZH, ZH[:14], EN])).tolist() == [1, 0, 22, 1, 0]


def test_a_short_evaluation_text_counts_as_a_whole():
    known = Phrases.parts(["one two three four five six seven eight", "too short"], 13)
    assert len(known) == 1
    assert known.hits(Batch(["zero one two three four five six seven eight nine", "too short"]))[0]


def test_evaluation_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"decontaminate=.*does not exist"):
        list(evaluation_texts([str(tmp_path / "gone.jsonl")]))
    (tmp_path / "a.jsonl").write_text("{half")
    with pytest.raises(UserError, match=r"decontaminate=.*a.jsonl:1: not JSON"):
        list(evaluation_texts([str(tmp_path / "a.jsonl")]))
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps({"x": EN}).encode()))
    assert list(evaluation_texts([str(tmp_path)])) == [EN]


# Models


def test_perplexity_of_a_model_that_knows_nothing_but_one_letter():
    # One text "aaaa": 4 a and 1 end. Order 1: p(a) = (4 + 2/3)/(5 + 2), with 2 kinds seen and 3
    # characters in all (a, the end, the unknown).
    model = CharacterModel(["aaaa"])
    assert model.size == 3
    unknown = model.score(Batch(["z"]))[0]
    known = model.score(Batch(["aaaa"]))[0]
    assert known < 1.8 < unknown


def test_ordinary_text_is_less_surprising_than_noise(tmp_path):
    (tmp_path / "r.txt").write_text("\n".join([ZH, EN] * 5))
    model = load_scorer(str(tmp_path / "r.txt"))
    same, english, noise = model.score(Batch([ZH[:20], EN[:30], "龘靐齉爩xqzk鱻麤"]))
    assert same < 5
    assert english < 5
    assert noise > 10 * max(same, english)


def test_probabilities_of_the_character_model_sum_to_one():
    model = CharacterModel(["abab", "ba"])
    # Perplexity of a text of one letter and its end, for each letter that there is and one unknown.
    first = []
    for letter in ("a", "b", "?"):
        both, empty = model.score(Batch([letter, ""]))
        first.append(both**-2)
        end = 1 / empty
    # p(letter) · p(end | letter) for all letters, plus the empty text, is at most one.
    assert sum(first) + end < 1
    assert end == pytest.approx(1 / model.score(Batch([""]))[0])


def test_quality_learns_and_is_saved(tmp_path, capsys):
    rng = np.random.default_rng(0)
    good = [" ".join(rng.permutation(EN.split())) + f" {i}" for i in range(60)]
    bad = [f"click here buy now {i} best price casino bonus {i * 7}" for i in range(60)]
    model, accuracy = train(good, bad)
    assert accuracy == 1.0
    (tmp_path / "g.txt").write_text("\n".join(good))
    (tmp_path / "b.txt").write_text("\n".join(bad))
    argv = ["--good", f"{tmp_path}/g.txt", "--bad", f"{tmp_path}/b.txt"]
    assert main([*argv, "--output", f"{tmp_path}/q.npz"]) == 0
    loaded = Quality.load(f"{tmp_path}/q.npz")
    batch = Batch([good[0], bad[0]])
    np.testing.assert_allclose(loaded.score(batch), model.score(batch), atol=1e-6)
    assert loaded.score(batch)[0] > 0.9 > 0.1 > loaded.score(batch)[1]
    capsys.readouterr()
    assert main(["--good", f"{tmp_path}/gone.txt", *argv[2:], "--output", "x"]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "q.npz").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"is no quality model"):
        Quality.load(f"{tmp_path}/q.npz")


def test_settings_say_what_is_wrong():
    for values, message in (
        ({"rules": "generl"}, "rules='generl' is not one of general, web, none. Use general."),
        ({"min_letters": 1.5}, "min_letters=1.5 must be between 0 and 1"),
        ({"pii": ["emial"]}, "Use email"),
        ({"repeat": ["a"]}, "repeat='a' is not INPUT=NUMBER"),
        ({"repeat": ["a=2"], "share": ["a=1"]}, "says the same as repeat"),
    ):
        with pytest.raises(UserError) as caught:
            Settings(**values)
        assert message in str(caught.value)
