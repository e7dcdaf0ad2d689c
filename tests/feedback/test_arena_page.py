"""The real page: votes by keyboard in headless Chromium, and through the functions for programs."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import feedback_rows as rows

from align.feedback.answers import Given, read_answers
from align.feedback.arena import Arena
from align.feedback.chat import open_log
from align.feedback.queue import build_items
from align.feedback.records import read_log

pytest.importorskip("gradio", reason="pip install 'align[arena]'")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="apt-get install --no-install-recommends chromium"
)

EVIL = (
    "<script>document.title='owned'</script> <img src=x onerror=\"document.title='owned'\"> ${1+1}"
)


@contextmanager
def served(page):
    from align.feedback.ui import launch

    with __import__("socket").socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        yield launch(page, host="127.0.0.1", port=port, share=False, block=False)
    finally:
        page.close()


def arena_in(tmp_path, text=None, **options):
    samples = [
        {**row, "completion": f"{row['completion']} {text or ''}"} for row in rows.sample_rows(6)
    ]
    file = rows.write(tmp_path / "samples.jsonl", samples)
    prompts, answers, names = read_answers(file)
    items, _ = build_items(prompts, answers, names, overlap=1.0)
    return Arena(items, tmp_path / "out", overlap=1.0, **options)


@contextmanager
def browser(width=1280, height=900):
    """A page, and the addresses of everything that it asked for."""
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = chromium.new_page(viewport={"width": width, "height": height})
        asked = []
        tab.on("request", lambda request: asked.append(request.url))
        try:
            yield tab, asked
        finally:
            chromium.close()


def begin(tab, address, name, consent=True):
    tab.goto(address)
    tab.fill("#name input, #name textarea", name)
    if consent:
        tab.check("#consent input")
    tab.click("#start")


@needs_chromium
@pytest.mark.slow
def test_votes_by_keyboard_are_on_disk_and_nothing_in_an_answer_runs(tmp_path):
    from align.feedback.ui import arena_page

    arena = arena_in(tmp_path, EVIL)
    with served(arena_page(arena)) as address, browser() as (tab, asked):
        begin(tab, address, "王小明")
        shown = []
        for done, key in enumerate(["1", "ArrowRight", "3", "4", "s"], 1):
            tab.wait_for_selector(".progress[aria-valuenow='%d']" % (done - 1))  # noqa: UP031
            tab.wait_for_timeout(450)  # a second vote within 400 ms is no vote
            shown.append((tab.inner_text("#text-left .said"), tab.inner_text("#text-right .said")))
            tab.keyboard.press(key)
            tab.keyboard.press(key)
        tab.wait_for_selector(".progress[aria-valuenow='5']")
        assert tab.title() == "Which answer is better?"
        assert EVIL in tab.inner_text("#text-left")
        assert "dpo against" not in tab.content()  # no results while there is something to judge
        tab.wait_for_timeout(450)
        tab.click("#vote-left")
        tab.wait_for_selector(".done")
        assert "dpo: wins" in tab.inner_text(".results")
        assert [url for url in asked if "127.0.0.1" not in url] == []
    lines, _ = read_log(arena.log.path)
    assert [r["vote"] for r in lines] == ["left", "right", "tie", "both_bad", None, "left"]
    assert {r["annotator"] for r in lines} == {"王小明"}
    for line, texts in zip(lines, shown, strict=False):
        assert [c["text"].strip() for c in line["completions"]] == [t.strip() for t in texts]


@needs_chromium
@pytest.mark.slow
def test_a_narrow_screen_without_consent_and_the_key_that_writes(tmp_path):
    from align.feedback.ui import arena_page

    def ask(names, conversation):
        return [f"{n} says {conversation[0].content}" for n in names]

    arena = arena_in(tmp_path, "很长的词" * 60, models=["dpo", "ppo"], ask=ask)
    page = arena_page(arena, language="zh", reveal=False)
    with served(page) as address, browser(360, 740) as (tab, _):
        begin(tab, address, "ann", consent=False)
        tab.wait_for_selector("#text-left")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        for choice in ("left", "right", "tie", "both_bad", "skip"):
            box = tab.locator(f"#vote-{choice}").bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360
            assert box["height"] >= 34
        # Own question: digits in it are no votes.
        tab.click("#own button")
        tab.fill("#own-text textarea", "")
        tab.locator("#own-text textarea").press_sequentially("1 2 3 s 问")
        assert arena.progress("ann")[0] == 0
        tab.click("#own-ask")
        tab.wait_for_function("document.querySelector('#text-left').innerText.includes('s 问')")
        tab.click("#vote-tie")
        tab.wait_for_selector(".progress[aria-valuenow='1']")
    assert read_log(arena.log.path) == ([], 0)


@needs_chromium
@pytest.mark.slow
def test_the_chat_page_logs_thumbs(tmp_path):
    from align.feedback.ui import chat_page

    class Echo:
        name = "echo"

        def answer(self, conversations, seed):
            return [Given(f"回答 {EVIL} {conversations[0][-1].content}", 0.1, 5)]

    log = open_log(tmp_path)
    with served(chat_page(Echo(), log)) as address, browser() as (tab, asked):
        begin(tab, address, "ann")
        tab.wait_for_selector("#message textarea")
        for text, key in (("你好", "+"), ("more", "-")):
            tab.fill("#message textarea", text)
            tab.click("#send")
            tab.wait_for_selector("#vote-up")
            assert text in tab.inner_text(".chat")
            tab.locator("h1").click()  # out of the field
            tab.wait_for_timeout(450)
            tab.keyboard.press(key)
            tab.wait_for_selector("#vote-up", state="hidden")
        assert tab.title() == "Talk to the model"
        assert [url for url in asked if "127.0.0.1" not in url] == []
    lines, _ = read_log(log.path)
    assert [(r["vote"], r["completions"][0]["model"]) for r in lines] == [
        ("up", "echo"), ("down", "echo"),
    ]  # fmt: skip
    assert [len(r["prompt"]) for r in lines] == [1, 3]


@pytest.mark.slow
def test_programs_vote_through_the_same_queue(tmp_path):
    from gradio_client import Client

    from align.feedback.ui import arena_page

    arena = arena_in(tmp_path)
    with served(arena_page(arena)) as address:
        client = Client(address, verbose=False, analytics_enabled=False)
        for name in ("ann", "bob"):
            while (shown := client.predict(name, api_name="/next"))["item"]:
                assert "dpo" not in json.dumps(shown["prompt"])
                vote = "left" if "dpo" in shown["left"] else "right"
                args = (name, shown["item"], vote, True)
                assert client.predict(*args, api_name="/vote") == {"taken": True}
                assert client.predict(*args, api_name="/vote") == {"taken": False}
        with pytest.raises(Exception, match="is not known"):
            client.predict("cat", "x", "best", True, api_name="/vote")
    lines, _ = read_log(arena.log.path)
    assert len(lines) == 12
    winners = [r["completions"][0 if r["vote"] == "left" else 1]["model"] for r in lines]
    assert set(winners) == {"dpo"}
