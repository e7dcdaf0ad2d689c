"""ROUGE, BLEU, chrF, exact match and F1 against the libraries themselves and by hand."""

from __future__ import annotations

import sys

import pytest
import sacrebleu
from rouge_score import rouge_scorer

from align.config_errors import UserError
from align.evaluation import metrics

EN = ["The cat sat on the mat.", "It rained all day long, and we stayed in."]
EN_REFS = [
    ["A cat sat on a mat.", "The cat is on the mat."],
    ["It rained the whole day; we stayed."],
]
ZH = ["今天天气很好，我们去公园。", "他昨天买了三本书。"]
ZH_REFS = [["今天天气不错，我们去公园玩。"], ["昨天他买了三本书。", "他买了三本书。"]]


def test_rouge_equals_rouge_score_on_english():
    scorer = rouge_scorer.RougeScorer(list(metrics.ROUGE_TYPES), use_stemmer=True)
    found = metrics.rouge(EN, EN_REFS, stemmer=True)
    for i, (text, refs) in enumerate(zip(EN, EN_REFS, strict=True)):
        for name in metrics.ROUGE_TYPES:
            best = max(scorer.score(ref, text)[name].fmeasure for ref in refs)
            assert found[name][i] == pytest.approx(best, abs=1e-12)


def test_rouge_of_chinese_by_hand():
    # 我爱北京 against 我爱天安门: 2 of 4 and 2 of 5 characters -> F = 2·0.5·0.4/0.9;
    # bigrams 我爱 of 3 and 4 -> F = 2·(1/3)·(1/4)/(7/12) = 2/7.
    found = metrics.rouge(["我爱北京"], ["我爱天安门"], tokenizer="char")
    assert found["rouge1"][0] == pytest.approx(4 / 9)
    assert found["rouge2"][0] == pytest.approx(2 / 7)
    assert found["rougeL"][0] == pytest.approx(4 / 9)
    # rouge-score's own tokenizer sees nothing of it; auto chooses characters.
    assert metrics.rouge(["我爱北京"], ["我爱天安门"])["rouge1"] == [0.0]
    assert metrics.rouge(["我爱北京"], ["我爱天安门"], tokenizer="auto") == found
    assert metrics.rouge(["a cat"], ["a dog"], tokenizer="auto")["rouge1"] == [0.5]


def test_rouge_of_characters_equals_rouge_score_on_letters():
    """A character as a word of its own must score as any word does."""
    names = {c: f"w{i}" for i, c in enumerate("今天气很好不错我们去公园玩")}

    def spelled(text):
        return " ".join(names[c] for c in text if c in names)

    ours = metrics.rouge(ZH[:1], ZH_REFS[0], tokenizer="char")
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    theirs = scorer.score(spelled(ZH_REFS[0][0]), spelled(ZH[0]))
    for name, score in theirs.items():
        assert ours[name][0] == pytest.approx(score.fmeasure, abs=1e-12)


def test_rouge_by_words_of_jieba(monkeypatch):
    jieba = pytest.importorskip("jieba", reason="extra 'zh'")
    words = jieba.lcut("我们去公园")
    assert len(words) < 5
    found = metrics.rouge(["我们去公园"], ["我们去学校"], tokenizer="jieba")
    shared = len(set(words) & set(jieba.lcut("我们去学校")))
    assert found["rouge1"][0] == pytest.approx(shared / len(words))
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(UserError, match=r"jieba.*pip install 'align\[eval\]'"):
        metrics.rouge(["我"], ["我"], tokenizer="jieba")


@pytest.mark.parametrize(("texts", "refs", "tokenize"), [(EN, EN_REFS, "13a"), (ZH, ZH_REFS, "zh")])
def test_bleu_and_chrf_equal_sacrebleu(texts, refs, tokenize):
    columns = [[r[0] for r in refs], [r[1] if len(r) > 1 else None for r in refs]]
    found = metrics.bleu(texts, refs)
    theirs = sacrebleu.corpus_bleu(texts, columns, tokenize=tokenize)
    assert found["tokenize"] == tokenize
    assert found["score"] == pytest.approx(theirs.score, abs=1e-9)
    assert 0 < found["score"] < 100
    assert metrics.chrf(texts, refs)["score"] == pytest.approx(
        sacrebleu.corpus_chrf(texts, columns).score, abs=1e-9
    )


def test_an_unknown_tokenizer_of_bleu_is_refused():
    with pytest.raises(UserError, match="tokenize='zhh' is not usable"):
        metrics.bleu(EN, EN_REFS, tokenize="zhh")


def test_exact_match_and_what_does_not_matter():
    assert metrics.exact_match("北京。", "北京") == 1.0
    assert metrics.exact_match("ＡＢＣ１", "abc1") == 1.0  # full width
    assert metrics.exact_match("北 京", "北京") == 1.0
    assert metrics.exact_match("The  End!", ["the end", "x"]) == 1.0
    assert metrics.exact_match("the end", "The End", case=False) == 0.0
    assert metrics.exact_match("a b", "ab") == 0.0
    assert metrics.exact_match("a b.", "a b", punctuation=False) == 0.0
    assert metrics.exact_match("the cat", "a cat", articles=True) == 1.0
    assert metrics.exact_match("page 3", "page 4", numbers=True) == 1.0


def test_f1_by_hand():
    # {cat, sat} against {cat, ran, far}: 1 of 2 and 1 of 3 -> 2·(1/2)(1/3)/(5/6)
    assert metrics.f1("The cat sat.", "a cat ran far") == pytest.approx(0.4)
    # 我爱北京 against 我爱你: 2 of 4 and 2 of 3 -> 4/7
    assert metrics.f1("我爱北京", ["你好", "我爱你！"]) == pytest.approx(4 / 7)
    assert metrics.f1("", "") == 1.0
    assert metrics.f1("", "x") == 0.0


def test_is_chinese_counts_letters():
    assert metrics.is_chinese(["今天用 AI"])
    assert not metrics.is_chinese(["a long English text with 一 character"])
    assert not metrics.is_chinese(["123 …"])


def test_calibration_by_hand():
    # bins of ten: 0.95 (1 of 1), 0.15 (1 of 2 at 0.15) -> (1·0.05 + 2·0.35)/3
    p, y = [0.95, 0.15, 0.15], [1, 1, 0]
    assert metrics.expected_calibration_error(p, y) == pytest.approx((0.05 + 2 * 0.35) / 3)
    assert metrics.brier(p, y) == pytest.approx((0.05**2 + 0.85**2 + 0.15**2) / 3)
    for wrong in ([1.5], [float("nan")]):
        with pytest.raises(ValueError, match="probabilities"):
            metrics.brier(wrong, [1])


def test_pass_at_k_by_hand_and_by_drawing():
    # 5 samples, 2 right, 2 drawn: 1 − C(3,2)/C(5,2) = 1 − 3/10
    assert metrics.pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert metrics.pass_at_k(4, 0, 4) == 0.0
    assert metrics.pass_at_k(4, 1, 4) == 1.0
    assert metrics.pass_at_k(3, 2, 1) == pytest.approx(2 / 3)
    from itertools import combinations

    drawn = [any(i < 3 for i in pick) for pick in combinations(range(7), 3)]
    assert metrics.pass_at_k(7, 3, 3) == pytest.approx(sum(drawn) / len(drawn))
    with pytest.raises(ValueError, match="pass@4"):
        metrics.pass_at_k(3, 1, 4)


def test_which_k_are_reported():
    assert metrics.tries(1) == [1]
    assert metrics.tries(8) == [1, 2, 4, 8]
    assert metrics.tries(6) == [1, 2, 4, 6]


def test_worst_cases_are_percentiles():
    found = metrics.worst_cases(list(range(101)))
    assert found == {"p1": 1.0, "p5": 5.0, "p10": 10.0, "min": 0.0}
