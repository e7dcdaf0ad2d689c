"""The tokenizer's page: escaped, offline, with every tokenizer, language and token."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from align.report import write_run_report

EVIL = "</span><script>alert('注入')</script>"
RATES = {
    "chars_per_token": 2.0, "fertility": 0.5, "bytes_per_token": 4.0, "byte_fallback_share": 0.25,
    "unknown_rate": 0.0, "vocabulary_coverage": 0.4, "tokens": 100.0,
}  # fmt: skip


def report(**changes) -> dict:
    double = RATES | {"fertility": 1.0, "tokens": 200.0}
    return {
        "measured_on": "3 paragraphs of held.txt",
        "held_out": True,
        "texts": {"all": 3, "zh": 2, "latin": 1},
        "vocabulary": {"this": 5000, "base models/b/final": 4000, "models/c": 9},
        "changed": {"this": 0, "base models/b/final": 0, "models/c": 3},
        "rates": {
            "this": {"all": RATES, "zh": RATES, "latin": RATES},
            "base models/b/final": {"all": double, "zh": double},
            "models/c": {"all": RATES},
        },
        "samples": [
            {"language": "zh", "tokens": {"this": [["酒店", "酒店 · 7"], [EVIL, f"{EVIL} · 8"]]}}
        ],
        **changes,
    }


def page(tmp_path, **changes) -> str:
    (tmp_path / "manifest.json").write_text('{"method": "tokenizer"}', encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "fertility": 0.5}\n', encoding="utf-8")
    text = json.dumps(report(**changes), ensure_ascii=False)
    (tmp_path / "tokenizer_report.json").write_text(text, encoding="utf-8")
    return write_run_report(tmp_path).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Table rows and tokens as a browser reads them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tokens: list[tuple[str, str]] = []
        self.scripts = 0
        self._into = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.scripts += tag == "script"
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        self._into = tag
        if tag == "span" and (found.get("class") or "").startswith("k"):
            self.tokens.append(("", found["title"]))
            self._into = "token"

    def handle_data(self, data):
        if self._into == "td":
            self.rows[-1][-1] += data
        elif self._into == "token":
            self.tokens[-1] = (self.tokens[-1][0] + data, self.tokens[-1][1])

    def handle_endtag(self, tag):
        self._into = ""


def test_every_language_and_tokenizer_has_a_row(tmp_path):
    rows = [row for row in Page(page(tmp_path)).rows if len(row) == 9]
    assert [row[:3] for row in rows] == [
        ["all", "this", "0.500"], ["", "base b", "1.000"], ["", "c", "0.500"],
        ["zh", "this", "0.500"], ["", "base b", "1.000"], ["latin", "this", "0.500"],
    ]  # fmt: skip
    assert rows[0][3:] == ["2.000", "4.000", "25.00%", "0.00%", "40.00%", "100"]


def test_tokens_are_shown_whatever_they_hold(tmp_path):
    html = page(tmp_path)
    read = Page(html)
    assert read.tokens == [("酒店", "酒店 · 7"), (EVIL, f"{EVIL} · 8")]
    assert read.scripts == 1
    assert "<script>alert" not in html
    assert "http://" not in html.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "50.0% fewer tokens than base b."),
        ({}, "5,000 entries, 0.5 tokens a character"),
        ({}, "The measured text uses 40% of the vocabulary."),
        ({"held_out": False}, "Measured on the text it was learned from"),
        ({"changed": {"this": 2}}, "2 of 3 texts do not come back exactly."),
        (
            {"rates": {"this": {"all": RATES | {"unknown_rate": 0.02}}}, "texts": {"all": 3}},
            "2.00% of the tokens are unknown.",
        ),
    ],
)
def test_the_verdict_says_what_to_look_at(tmp_path, changes, words):
    assert words in page(tmp_path, **changes)


def test_a_run_without_the_file_still_has_a_page(tmp_path):
    (tmp_path / "manifest.json").write_text('{"method": "tokenizer"}', encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "fertility": 0.5}\n', encoding="utf-8")
    assert "fertility" in write_run_report(tmp_path).read_text(encoding="utf-8")
