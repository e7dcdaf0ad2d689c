"""The page of an import: well-formed, escaped, offline, and with the numbers of the report."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from reward_models.annotations.intake import Options
from reward_models.import_charts import Mark, columns, intervals
from reward_models.import_report import render
from reward_models.importing import ImportSettings, run_import

EVIL = "<script>alert('x')</script>\"&"
VOID = {"meta", "br", "line", "rect", "circle", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks nesting; collects tags, attributes and text by tag."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID or tag in ("rect", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def said(self, tag):
        return [t.strip() for t in self.text.get(tag, []) if t.strip()]


def task(number, *rankings, texts=("one answer", "another, longer answer", "the third of them")):
    items = [{"id": c, "body": t, "model": f"model {c}"} for c, t in zip("abc", texts, strict=True)]
    annotations = [
        {
            "id": number * 10 + k, "completed_by": {"email": name}, "was_cancelled": False,
            "created_at": "t", "lead_time": 0.5,
            "result": [{"from_name": "rank", "to_name": "answers", "type": "ranker",
                        "value": {"ranker": {"rank": list(order)}}}],
        }
        for k, (name, order) in enumerate(rankings)
    ]  # fmt: skip
    data = {"prompt": f"Question {number} {EVIL}", "items": items}
    return {"id": number, "data": data, "annotations": annotations, "predictions": []}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(report.json, report.html) of an import with a hostile annotator and a hostile answer."""
    folder = tmp_path_factory.mktemp("import")
    tasks = [
        task(k, (EVIL, "cab"), ("陈", "cab" if k % 3 else "bac"), ("z", "abc")) for k in range(12)
    ]
    tasks.append(task(99, ("z", "cab"), texts=(EVIL, "&lt;b&gt;", "很抱歉，我不能回答")))
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, tasks)), "utf-8")
    settings = ImportSettings(
        (str(folder / "in.jsonl"),), folder / "out", aggregate="dawid_skene", options=Options()
    )
    run_import(settings, say=lambda _: None)
    html = (folder / "out/report.html").read_text("utf-8")
    return json.loads((folder / "out/report.json").read_text("utf-8")), html


def test_the_page_is_well_formed_and_needs_nothing_from_outside(written):
    _, html = written
    page = Page(html)
    assert {"table", "svg", "figure", "details"} <= set(page.tags)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [v for name, v in page.attributes if name in ("src", "href")]
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "prefers-color-scheme: dark" in html
    assert html.startswith("<!doctype html>")


def test_what_comes_from_the_input_is_escaped_everywhere(written):
    report, html = written
    assert EVIL in report["quality"]["agreement"]["annotators"]
    assert EVIL not in html
    assert "<script" not in html
    page = Page(html)
    assert EVIL in page.said("td")  # the annotator, read back
    assert any(t.startswith(EVIL[:10]) and t.endswith("…") for t in page.said("text"))
    assert any(EVIL in t for t in page.said("title"))


def test_the_numbers_of_the_report_are_on_the_page(written):
    report, html = written
    quality, page = report["quality"], Page(html)
    cells = page.said("td")
    alpha = quality["agreement"]["alpha"]
    assert f"{alpha['alpha']:.3f}" in page.said("b")
    # Three people, three pairs a group; agreement of each by its own row.
    for name, figures in quality["agreement"]["annotators"].items():
        at = cells.index(name)
        assert cells[at + 1] == str(figures["judgements"])
        assert f"{report['aggregation']['annotators'][name]['skill']:.2f}" == cells[at + 2]
        assert cells[at + 3] == f"{figures['too_fast']} of {figures['timed']}"
        assert cells[at + 4] == f"{100 * figures['rate']:.1f} %"
    for name, found in quality["findings"].items():
        at = cells.index(name.replace("_", " "))
        assert cells[at + 1] == str(found["count"])
        assert found["effect"] in cells[at + 3]
    assert "in.jsonl:13 · " in "".join(page.said("code"))
    assert [m["model"] for m in quality["models"]["models"]] == [
        c for c in cells if c.startswith("model ")
    ]
    for text in report["advice"] + report["warnings"]:
        assert text in page.said("li")
    assert any("Findings" in t for t in page.said("h2"))


def test_the_report_of_the_smallest_import(tmp_path):
    row = {"prompt": "Q", "chosen": "Yes, it is.", "rejected": "No"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row), "utf-8")
    settings = ImportSettings((str(tmp_path / "in.jsonl"),), tmp_path / "out")
    report = run_import(settings, say=lambda _: None)
    page = Page(render(report))
    assert "h2" in page.tags
    assert "Models" not in page.said("h2")
    assert any("alpha needs pairs with two votes" in t for t in page.said("p"))
    assert page.said("p").count("nothing to draw") == 2  # annotators and shares


def numbers(svg, css, name):
    return [float(v) for v in re.findall(rf'class="{css}"[^>]*? {name}="([-\d.]+)"', str(svg))]


def test_columns_are_as_high_as_their_values():
    svg = columns(
        [Mark("a", 10), Mark("b", 5), Mark("c", None), Mark("d", 0)], label="L", x_label="X"
    )
    heights = numbers(svg, "bar", "height")
    assert heights[0] == pytest.approx(2 * heights[1])
    assert heights[2] == 0.5  # zero is a hairline; what is not known has no column
    assert len(heights) == 3
    Page(str(svg))
    assert "<title>b: 5</title>" in svg


def test_shares_have_intervals_and_a_reference():
    marks = [Mark("a", 0.5, 0.25, 0.75, "of 9 votes"), Mark(EVIL, 1.0)]
    svg = columns(marks, label="L", x_label="X", percent=True, reference=0.5)
    bar, whole = numbers(svg, "bar", "height")
    assert whole == pytest.approx(2 * bar)
    low, high = numbers(svg, "whisker", "y1") + numbers(svg, "whisker", "y2")
    assert low - high == pytest.approx(bar, abs=0.3)
    assert numbers(svg, "reference", "y1") == numbers(svg, "bar", "y")[:1]
    assert "<title>a: 50.0 % (25.0–75.0 %) of 9 votes</title>" in svg
    assert EVIL not in svg
    rows = intervals(marks, label="L", reference=0.5)
    half, one = numbers(rows, "dot", "cx")
    assert numbers(rows, "reference", "x1") == [half]
    assert numbers(rows, "whisker", "x1")[0] == pytest.approx((3 * half - one) / 2, abs=0.3)
    Page(str(rows))


def test_nothing_to_draw():
    for svg in (
        columns([], label="L", x_label="X"),
        columns([Mark("a", 0), Mark("b", None)], label="L", x_label="X"),
        intervals([Mark("a", None)], label="L"),
    ):
        assert svg == '<p class="soft">nothing to draw</p>'
