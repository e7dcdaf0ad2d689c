"""Cleaning and de-duplication."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.config import UserError
from align.data.clean import Report, Rules, clean, main, reject, repair, repeated_share
from align.data.dedup import Deduplicator, shingles, text_key

PLAIN = Rules(fix_mojibake=False, exact_duplicates=False, near_duplicates=0)


def run(texts, rules):
    report = Report()
    return list(clean(texts, rules, report)), report


@pytest.mark.parametrize(
    ("raw", "fixed", "rule"),
    [
        ("房间很大，“早餐”不错！（推荐）：①好；②近……", None, None),
        ("ｗｉｆｉ２００６　好", "wifi2006 好", "unicode_form"),
        ("价格㎡ ﬁne", "价格m2 fine", "unicode_form"),
        ("早\u200b餐\ufeff不\u00ad错\x07吧\u202e", "早餐不错吧", "invisible"),
        ("早\u200d餐 a\u200db", "早餐 ab", "invisible"),
        ("一家\U0001f468\u200d\U0001f469\u200d\U0001f467人", None, None),
        ("नमस्\u200dते लोग", None, None),
        ("  two \t spaces\n and a line  ", "two spaces and a line", "white_space"),
    ],
)
def test_repairs(raw, fixed, rule):
    changed = Counter()
    assert repair(raw, PLAIN, changed) == (raw if fixed is None else fixed)
    assert rule is None or changed[rule] == 1
    assert rule is not None or not changed


def test_mojibake_is_decoded_again_and_quotes_and_width_stay():
    pytest.importorskip("ftfy")
    assert repair("cafÃ© crÃ¨me", Rules()) == "café crème"
    for good in ("“好”，ＡＢ", "it’s", "房间很大。"):
        assert repair(good, Rules(normalise="none")) == good


def test_nfc_leaves_width_alone_and_none_leaves_everything():
    text = "ｗｉｆｉ e\u0301"
    assert repair(text, Rules(fix_mojibake=False, normalise="nfc")) == "ｗｉｆｉ é"
    assert repair(text, Rules(fix_mojibake=False, normalise="none")) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("不错。", "too_short"),
        ("一二三四五", None),
        ("！！！？？？。。。好", "few_letters"),
        ("好好学习" + "啊" * 21, "long_run"),
        ("这家酒店的早餐真的很不错" * 5, "repetitive"),
        ("前台服务很好，房间也很干净，早餐品种丰富。", None),
    ],
)
def test_filters(text, reason):
    assert reject(text, Rules()) == reason


def test_too_long():
    assert reject("一二三四五六", Rules(max_chars=5)) == "too_long"
    assert reject("一二三四五六", Rules(max_chars=0)) is None


def test_zero_switches_a_filter_off():
    off = Rules(min_chars=0, max_chars=0, min_letters=0, max_run=0, max_repeated=0)
    assert reject("！" * 100, off) is None


def test_repeated_share_by_hand():
    # 30 characters; the window at 20 repeats the one at 0: ten of thirty.
    text = "abcdefghij" + "0123456789" + "abcdefghij"
    assert repeated_share(text) == pytest.approx(10 / 30)
    assert repeated_share("abcdefghijklmnopqrstuvwxyz") == 0.0
    assert repeated_share("短") == 0.0


def test_exact_duplicates_read_the_same():
    kept, report = run(["酒店 ＷＩＦＩ 不错", "酒店  wifi 不错", "酒店 wifi 很差"],
                       Rules(fix_mojibake=False, normalise="none", near_duplicates=0))  # fmt: skip
    assert kept == ["酒店 ＷＩＦＩ 不错", "酒店 wifi 很差"]
    assert report.dropped == {"exact_duplicate": 1}


LONG = (
    "这家酒店位于市中心，交通非常方便，前台服务员态度很好，"
    "房间干净整洁，早餐品种丰富，下次还会再来入住。"
)


def test_near_duplicates():
    pytest.importorskip("datasketch")
    near = LONG.replace("下次还会", "下次一定")
    other = "屏幕很亮，键盘手感不错，就是散热差了一点，风扇声音也有点大，玩游戏的时候比较明显。"
    memory = Deduplicator(0.7)
    assert memory.seen(LONG) is None
    assert memory.seen(near) == "near_duplicate"
    assert memory.seen(other) is None
    assert memory.seen(LONG) == "exact_duplicate"
    # The same pair is no duplicate at a stricter threshold.
    strict = Deduplicator(0.95)
    assert [strict.seen(LONG), strict.seen(near)] == [None, None]


def test_near_duplicates_agree_with_the_true_similarity():
    pytest.importorskip("datasketch")
    for cut in (2, 20):
        a, b = shingles(LONG), shingles(LONG[:-cut])
        true = len(a & b) / len(a | b)
        memory = Deduplicator(0.75, permutations=256)
        memory.seen(LONG)
        assert (memory.seen(LONG[:-cut]) == "near_duplicate") == (true >= 0.75)


def test_shingles_by_hand():
    assert shingles("A b，c", 2) == {"ab", "bc"}
    assert shingles("好", 5) == {"好"}
    assert shingles("！！", 5) == {"！！"}
    assert text_key("Ａ  b") == text_key("a b") != text_key("ab")


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=12))
def test_every_paragraph_is_kept_or_dropped_for_one_reason(texts):
    kept, report = run(texts, Rules(fix_mojibake=False, near_duplicates=0))
    assert report.read == len(texts) == report.kept + sum(report.dropped.values())
    assert report.kept == len(kept)
    assert report.chars_kept == sum(map(len, kept))
    again, second = run(kept, Rules(fix_mojibake=False, near_duplicates=0))
    assert again == kept
    assert not second.changed


def test_main_writes_corpus_and_report(tmp_path, capsys):
    source = tmp_path / "raw.txt"
    source.write_text("房间很大，早餐不错。\n房间很大，早餐不错。\n好\n", encoding="utf-8")
    out = tmp_path / "clean"
    assert main(["--input", str(source), "--output", str(out), "--near_duplicates", "0",
                 "--no-fix_mojibake"]) == 0  # fmt: skip
    assert (out / "corpus.txt").read_text(encoding="utf-8") == "房间很大，早餐不错。\n"
    report = json.loads((out / "corpus.txt.report.json").read_text(encoding="utf-8"))
    assert report["dropped"] == {"exact_duplicate": 1, "too_short": 1}
    assert report["rules"]["fix_mojibake"] is False
    assert "kept 1 paragraphs (33.3%)" in capsys.readouterr().out


def test_main_jsonl_output(tmp_path):
    source = tmp_path / "raw.jsonl"
    source.write_text('{"text": "两行\\n文字都在这里"}\n', encoding="utf-8")
    out = tmp_path / "out.jsonl"
    assert main(["--input", str(source), "--output", str(out), "--near_duplicates", "0",
                 "--no-fix_mojibake"]) == 0  # fmt: skip
    assert json.loads(out.read_text(encoding="utf-8")) == {"text": "两行 文字都在这里"}


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--output", "x.csv"], "output='x.csv'"),
        (["--output", "SOURCE"], "is also an input"),
        (["--normalise", "nfd"], "normalise='nfd'"),
        (["--min_letters", "1.5"], "min_letters=1.5"),
        (["--min_chars", "-1"], "min_chars=-1"),
        (["--input", "gone.txt"], "does not exist"),
    ],
)
def test_main_refuses_wrong_input(tmp_path, capsys, extra, words):
    source = tmp_path / "raw.txt"
    source.write_text("房间很大，早餐不错。\n", encoding="utf-8")
    extra = [str(source) if word == "SOURCE" else word for word in extra]
    argv = ["--input", str(source), "--output", str(tmp_path / "o.txt"), *extra]
    assert main(argv) == 2
    assert words in capsys.readouterr().err
    assert source.read_text(encoding="utf-8") == "房间很大，早餐不错。\n"


def test_missing_packages_are_named(monkeypatch):
    import builtins

    real = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name in ("ftfy", "datasketch"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(UserError, match=r"ftfy.*pip install 'align\[data\]'"):
        repair("x", Rules())
    with pytest.raises(UserError, match=r"datasketch.*pip install 'align\[data\]'"):
        Deduplicator(0.8)
    assert Deduplicator(None).seen("x") is None


def test_threshold_range():
    with pytest.raises(UserError, match=r"near_duplicates=1\.5"):
        Deduplicator(1.5)
