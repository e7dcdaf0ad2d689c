"""The page of a comparison in Chromium: keys, filters, differences, narrow screens, no network."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import comparison_data

from align.report import write_comparison
from align.report.comparison import sample_id

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="apt-get install --no-install-recommends chromium"
)


@pytest.fixture(scope="module")
def made() -> tuple[dict, list[dict]]:
    return comparison_data.comparison()


@pytest.fixture(scope="module")
def file(made, tmp_path_factory) -> Path:
    return write_comparison(made[0], tmp_path_factory.mktemp("page") / "report.html", made[1])


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        flags = ["--no-sandbox", "--disable-dev-shm-usage"]
        started = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield started
        started.close()


@pytest.fixture
def view(browser, file):
    """view(hash, width): the page, watched: no error, no request but for itself."""
    opened = []

    def show(fragment: str = "", width: int = 1280, scheme: str = "light"):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        told: list[str] = []
        page.on("console", lambda m: told.append(m.text))
        page.on("pageerror", lambda e: told.append(str(e)))
        page.on("request", lambda r: told.append(r.url))
        opened.append((page, told))
        page.goto(file.as_uri() + fragment)
        return page

    yield show
    for page, told in opened:
        title = page.title()
        page.close()
        assert [t for t in told if not t.startswith((file.as_uri(), "data:,"))] == []
        assert title.startswith("Comparison")


def prompts(page) -> list[str]:
    return page.locator(".sample .prompt").all_inner_texts()


def counted(page) -> int:
    return int(page.locator("output").inner_text().split()[0])


def choose(page, label: str, value: str) -> None:
    page.locator(f"select[aria-label='{label}']").select_option(value)


def gains(page) -> list[float]:
    return [float(t) for t in page.locator(".answer .gain").all_inner_texts()]


def test_search_in_both_languages(view):
    page = view()
    assert counted(page) == 48
    page.get_by_label("search samples").fill("写第4条")
    assert set(prompts(page)) == {"写第4条评论"}
    assert counted(page) == 2  # two seeds
    page.get_by_label("search samples").fill("WRITE REVIEW 13")
    assert counted(page) == 2
    page.get_by_label("search samples").fill("nowhere to be found")
    assert page.get_by_text("No sample fits.").is_visible()


def test_filters_show_what_they_say(view, made):
    page = view()
    choose(page, "run", "dpo")
    assert set(page.locator(".answer h3").evaluate_all("n => n.map(x => x.firstChild.data)")) == {
        "sft", "dpo",
    }  # fmt: skip
    choose(page, "gain", "-1")
    assert gains(page)
    assert all(g < 0 for g in gains(page))
    own = {(r["prompt_id"], r["seed"], r["run"]): r for r in made[1]}
    lost = sum(own[p, s, "dpo"]["score"] < own[p, s, "sft"]["score"]
               for p, s, name in own if name == "dpo")  # fmt: skip
    assert counted(page) == lost
    choose(page, "gain", "")
    choose(page, "category", "酒店")
    assert counted(page) == 16
    choose(page, "seed", "seed 1")
    assert counted(page) == 8
    choose(page, "category", "")
    choose(page, "seed", "")
    choose(page, "ended", "false")
    cut = sum(not r["finished"] for r in made[1] if r["run"] == "dpo")
    assert counted(page) == cut
    choose(page, "ended", "")
    page.get_by_label("score from").fill("1")
    page.get_by_label("score to").fill("2")
    assert counted(page) == sum(1 <= r["score"] <= 2 for r in made[1] if r["run"] == "dpo")


def test_order_by_gain(view):
    page = view()
    choose(page, "run", "ppo")
    choose(page, "order", "low")
    low = gains(page)
    assert low == sorted(low)
    choose(page, "order", "high")
    assert gains(page) == sorted(gains(page), reverse=True)
    assert gains(page)[0] > low[-1]


@pytest.mark.parametrize(
    ("a", "b", "removed", "added"),
    [
        ("房间很干净。", "房间不干净。", ["很"], ["不"]),
        ("the cat sat", "the dog sat", ["cat"], ["dog"]),
        ("one two three four", "one 2 3 four", ["two three"], ["2 3"]),
        ("same", "same", [], []),
        ("", "新的 text", [], ["新的 text"]),
        ("a b", "", ["a b"], []),
    ],
)
def test_differences_are_those_of_words_and_characters(view, a, b, removed, added):
    page = view()
    found = page.evaluate("""([a, b]) => {
      const parts = diff(a, b), out = [];
      for (const sign of "-+") {
        const node = document.createElement("div");
        showSide(node, parts, sign);
        out.push(node.textContent, [...node.querySelectorAll("ins, del")].map(n => n.textContent));
      }
      return out;
    }""", [a, b])  # fmt: skip
    assert found == [a, removed, b, added]  # nothing of either text is lost


def test_a_very_long_text_is_still_shown_whole(view):
    page = view()
    a, b = "甲 " * 4000, "乙 " * 4000
    parts = page.evaluate("([a, b]) => diff(a, b)", [a, b])
    assert "".join(t for s, t in parts if s != "+") == a
    assert "".join(t for s, t in parts if s != "-") == b


def test_marks_of_differences_can_be_turned_off_with_a_key(view):
    page = view()
    choose(page, "run", "dpo")
    assert page.locator(".sample ins").count() > 0
    assert page.locator(".sample del").count() > 0
    page.locator(".sample").first.focus()
    page.keyboard.press("d")
    assert page.locator(".sample ins, .sample del").count() == 0


def test_keys_alone(view):
    page = view()
    page.keyboard.press("/")
    page.keyboard.type("Write")
    assert counted(page) == 24
    page.keyboard.press("Escape")
    seen = page.evaluate("document.activeElement.id")
    page.keyboard.press("j")
    second = page.evaluate("document.activeElement.id")
    assert second.startswith("s-")
    assert second != seen
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.id") == seen
    page.keyboard.press("ArrowRight")
    assert "page 2/3" in page.locator("output").inner_text()
    for _ in range(10):
        page.keyboard.press("j")
    assert "page 3/3" in page.locator("output").inner_text()
    page.keyboard.press("k")
    page.keyboard.press("k")
    assert "page 2/3" in page.locator("output").inner_text()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("/")
    page.keyboard.type("jk")  # letters in the search are letters, and replace the last search
    assert page.get_by_label("search samples").input_value() == "jk"


def test_tabs_go_by_arrows_and_hide_the_others(view):
    page = view()
    tabs = page.locator(".tablist").filter(has_text="reward").get_by_role("tab")
    assert tabs.all_inner_texts() == ["reward", "gold"]
    tabs.first.focus()
    page.keyboard.press("ArrowRight")
    assert tabs.nth(1).get_attribute("aria-selected") == "true"
    assert page.evaluate("document.activeElement.textContent") == "gold"
    panel = page.locator("#" + tabs.nth(0).get_attribute("aria-controls"))
    assert not panel.is_visible()
    page.keyboard.press("Home")
    assert panel.is_visible()


def test_a_regression_opens_by_key_and_leads_to_its_sample(view, made):
    page = view()
    worst = next(r for r in made[0]["runs"] if r["name"] == "dpo")["regressions"][0]
    pair = page.locator(".panel:not([hidden]) details.pair").first
    pair.locator("summary").focus()
    page.keyboard.press("Enter")
    texts = pair.locator(".answer .text")
    assert texts.nth(0).inner_text().strip() == worst["baseline"].strip()
    assert texts.nth(1).inner_text().strip() == worst["completion"].strip()
    assert pair.locator("ins, del").count() > 0
    pair.locator("a").click()
    expected = "s-" + sample_id(worst["prompt_id"], worst["seed"])
    page.wait_for_function(f"document.activeElement.id === '{expected}'")
    assert worst["prompt"][0]["content"] in page.locator(f"#{expected} .prompt").inner_text()


def test_a_link_opens_the_page_of_its_sample(view, made):
    row = made[1][40]
    name = "s-" + sample_id(row["prompt_id"], row["seed"])
    page = view("#" + name)
    assert page.evaluate("document.activeElement.id") == name
    assert "page 5/5" in page.locator("output").inner_text()
    choose(page, "category", "food")
    page.evaluate(f"location.hash = ''; location.hash = '#{name}'")
    page.wait_for_function(f"document.activeElement.id === '{name}'")
    assert counted(page) == 48  # filters that hid it are gone
    page.evaluate("location.hash = '#s-%E0%A4%A'")  # no such sample, and no proper escape either


@pytest.mark.parametrize("width", [360, 768])
def test_narrow_screens_do_not_scroll_sideways(view, width):
    page = view(width=width)
    for tabs in page.get_by_role("tablist").all():
        tabs.get_by_role("tab").last.click()
    for pair in page.locator("details.pair").all()[:3]:
        if pair.is_visible():
            pair.locator("summary").click()
    page.get_by_label("search samples").fill("script")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator(".sample").first.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width


def test_markup_in_an_answer_is_text(view):
    page = view()
    page.get_by_label("search samples").fill("pwned")
    assert comparison_data.EVIL in page.locator(".sample").first.inner_text()
    assert page.locator("main img").count() == 0


def test_both_themes_have_readable_text(view):
    shades = {}
    for scheme in ("light", "dark"):
        page = view(scheme=scheme)
        rgb = page.evaluate("""['color', 'backgroundColor'].map(
            k => getComputedStyle(document.body)[k].match(/\\d+/g).map(Number))""")  # fmt: skip
        shades[scheme] = [sum(c) for c in rgb]
    assert shades["light"][0] + 400 < shades["light"][1]
    assert shades["dark"][1] + 400 < shades["dark"][0]


def test_without_scripts_every_panel_is_there(browser, file):
    page = browser.new_page(java_script_enabled=False)
    page.goto(file.as_uri())
    assert all(p.is_visible() for p in page.locator(".panel").all())
    page.close()


def test_two_thousand_samples_stay_below_two_megabytes(made, tmp_path):
    summary, rows = made
    many = [
        row | {"prompt_id": f"{row['prompt_id']}-{copy}", "completion": row["completion"] * 2}
        for copy in range(14) for row in rows
    ]  # fmt: skip
    assert len(many) == 2016
    page = write_comparison(summary, tmp_path / "report.html", many)
    assert page.stat().st_size < 2_000_000
    store = re.search(r'id="samples">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert store is not None
    assert len(json.loads(store.group(1))["rows"]) == 672
