"""The page: complete, escaped, self-contained; charts with the data where the axes say."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from align.records import Candidate, Judgement, Message, PreferenceGroup
from reward_models import evaluation_charts as charts
from reward_models.evaluation import evaluate_scores
from reward_models.evaluation_compare import compare_scores
from reward_models.evaluation_lines import lines
from reward_models.evaluation_report import advice, headline, render
from reward_models.rewardbench import COUNTS, SUBSETS, Item, evaluate_items

VOID = {"meta", "br", "line", "polyline", "polygon"}


class Page(HTMLParser):
    """Checks that elements are closed in order; collects text and tags."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def group(*judgements, texts, name="g"):
    candidates = tuple(Candidate("abcdef"[i], text) for i, text in enumerate(texts))
    return PreferenceGroup(name, (Message("user", name),), candidates, judgements)


def win(winner, loser, **more):
    return Judgement(None, "pair", {"winner": winner, "loser": loser}, **more)


EVIL = '</td><script>alert("1")</script>&amp;'


@pytest.fixture(scope="module")
def evaluated():
    rank = Judgement("x", "rank", {"a": 1, "b": 2, "c": 3}, source=EVIL)
    groups = [group(rank, texts=("很好" * i, "好", EVIL), name=f"问{EVIL}{i}") for i in range(1, 9)]
    scores = [[1.0, 0.5 * i, 0.2] for i in range(1, 9)]
    return evaluate_scores(groups, scores, resamples=50)


def test_an_evaluation_has_all_its_parts(evaluated):
    text = render({**evaluated, "rows": {"used": 8, "dropped": {"cancelled": 2}}},
                  {"model": EVIL, "input": "test.jsonl"})  # fmt: skip
    page = Page(text)
    assert sum(tag == "svg" for tag, _ in page.tags) == 3  # reliability, length, best of n
    for word in (
        "Accuracy in parts", "Calibration", "Length", "Best of n", "Surest mistakes", "Accounting",
        "2 cancelled", "one vote", "longer wins", "mixed", headline(evaluated),
    ):  # fmt: skip
        assert word in page.words()
    assert EVIL in " ".join(page.text)


def test_the_page_is_self_contained_and_knows_both_themes(evaluated):
    text = render(evaluated, {"model": "m"})
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"<script|<link|<img|src=|href=|url\(|@import|https?:", text)
    tags = Page(render(evaluated, {"model": EVIL})).tags
    assert "script" not in {tag for tag, _ in tags}


def test_a_result_with_ties_alone_has_a_page():
    tie = Judgement(None, "pair", {"tie": ["a", "b"]})
    result = evaluate_scores([group(tie, texts=("x", "y"))], [[1.0, 0.0]])
    assert "there is no accuracy" in Page(render(result, {})).words()


def test_sampled_answers_without_votes_have_a_headline():
    sampled = group(texts=("好", "很好", "x"))
    sampled.meta["gold"] = [0.25, 0.75, 0.5]
    result = evaluate_scores([sampled], [[1.0, 2.0, 0.0]])
    assert headline(result) == (
        "The best of 3 by this model: 0.75 (gold); a random one 0.5, the best there is 0.75."
    )
    assert headline(result) in Page(render(result, {})).words()
    assert [line.split()[0] for line in lines({**result, "truncated": 0})] == ["best"]


def test_sections_that_are_the_subsets_are_shown_once():
    rows = [(Item(name, "p", ("a",), ("b",)), [1.0, 0.0]) for name in SUBSETS[:-1]]
    rows += [
        (Item("Ties", "p", ("a",), ("b",), "ref:1"), [1.0, 0.0]),
        (Item("Ties", "p", ("a", "c"), ("b",), "tied:1"), [3.0, 2.0, 0.0]),
    ]
    for kept, titles in ((rows, ["Subsets"]), (rows[:2], ["Sections", "Subsets"])):
        items, scores = [i for i, _ in kept], [s for _, s in kept]
        result = evaluate_items("rewardbench2", items, scores, scores, resamples=5)
        text = render(result, {})
        assert re.findall("<h2>(Sections|Subsets)</h2>", text) == titles
        assert "Precise IF" in Page(text).words()


def test_a_benchmarks_page():
    items = [Item(name, "p", ("a",), ("b",)) for c in COUNTS.values() for name in c]
    result = evaluate_items(
        "rewardbench", items, [[1.0, 0.0]] * len(items), [[1.0, 1.0]] * len(items), resamples=5
    )
    page = Page(render(result, {"model": "m"}))
    assert "Overall 100.0% (95 %: 100.0% to 100.0%)." in page.words()
    for name in ("Chat Hard", "hep-rust", "math-prm"):
        assert name in page.words()
    part = evaluate_items("rewardbench", items[:1], [[1.0, 0.0]], [[1.0, 1.0]], resamples=5)
    words = Page(render(part, {})).words()
    assert "No overall score: Chat Hard, Safety, Reasoning missing." in words
    assert "without alpacaeval-length" in words


def test_a_comparisons_page():
    groups = [group(win("a", "b"), texts=("甲", EVIL))] * 2
    result = compare_scores(groups, [[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]])
    page = Page(render(result, {"A": "one", "B": "two"}))
    assert "of 2 pairs alike" in page.words()
    assert "Surest disagreements" in page.words()
    assert EVIL in " ".join(page.text)


def test_advice_says_what_stands_out():
    long, short = ("a" * 400, "b" * 20), ("a" * 20, "b" * 400)
    groups = [group(win("a", "b"), texts=long)] * 60 + [group(win("a", "b"), texts=short)] * 40
    by_length = [[4.0, 0.0]] * 60 + [[0.0, 4.0]] * 40
    said = " ".join(advice(evaluate_scores(groups, by_length, resamples=100)))
    assert "not clearly better than length" in said
    assert "prefers longer answers" in said
    assert "too sure" in said
    assert "wide" in said
    # Nine of ten right whatever the length, and as sure as that: σ(2.2) = 0.9.
    good = [[2.2, 0.0]] * 54 + [[0.0, 2.2]] * 6 + [[2.2, 0.0]] * 36 + [[0.0, 2.2]] * 4
    assert " ".join(advice(evaluate_scores(groups * 8, good * 8, resamples=100))) == ""


def test_advice_about_shortened_answers_and_strange_subsets():
    tie = Judgement(None, "pair", {"tie": ["a", "b"]})
    result = evaluate_scores([group(tie, texts=("x", "y"))], [[1.0, 0.0]])
    told = ["3 of 30 answers were too long: the model read them shortened."]
    assert advice({**result, "truncated": 3, "answers": 30}) == told
    assert advice({**result, "truncated": 2, "answers": 30}) == []
    assert advice({"pair_agreement": {}, "truncated": [0, 3], "answers": 30}) == told
    bench = evaluate_items("rewardbench", [Item("mine", "p", ("a",), ("b",))], [[1.0, 0.0]])
    assert advice({**bench, "truncated": 1, "answers": 2}) == [
        "1 of 2 answers were too long: the model read them shortened.",
        "In no section: mine.",
    ]


def test_ticks_are_round_and_inside():
    assert charts.ticks(0.0, 1.0) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert charts.ticks(-3.2, 7.1) == pytest.approx([-2.0, 0.0, 2.0, 4.0, 6.0])
    assert charts.ticks(1200.0, 9100.0) == pytest.approx([2000.0, 4000.0, 6000.0, 8000.0])


def test_marks_stand_where_their_values_are():
    plot = charts.Plot((0.0, 10.0), (0.0, 1.0), "x", "y", "label")
    left, bottom = charts.LEFT, charts.HEIGHT - charts.BOTTOM
    right, top = charts.WIDTH - charts.RIGHT, charts.TOP
    assert (plot.x(0.0), plot.y(0.0)) == (left, bottom)
    assert (plot.x(10.0), plot.y(1.0)) == (right, top)
    assert plot.x(5.0) == pytest.approx((left + right) / 2, abs=0.1)
    plot.dot(10.0, 1.0, "c0", "a < b")
    assert f'cx="{float(right)}" cy="{float(top)}"' in plot.svg()
    assert "<title>a &lt; b</title>" in plot.svg()


def test_charts_of_one_value_can_be_drawn():
    same = {"n": 1, "gold": 2.0, "low": None, "high": None, "random": 2.0, "longest": 2.0,
            "oracle": 2.0, "groups": 1}  # fmt: skip
    assert "<svg" in charts.curves([same], "unit")
    assert "<svg" in charts.scatter([(0.0, 0.0)], 0.0, 100.0)
    assert (charts.number(None), charts.number(0.0), charts.number(1234.56)) == ("–", "0", "1235")
