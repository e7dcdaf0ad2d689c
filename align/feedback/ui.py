"""The arena's pages in gradio: thin; what happens is `align.feedback.arena`'s and `chat`'s."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

# Before gradio is imported: it reports its start to its makers otherwise.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio

from align.config_errors import UserError
from align.feedback import pages
from align.feedback.arena import Arena, annotator_name
from align.feedback.chat import Chat
from align.feedback.queue import to_json
from align.feedback.records import read_log
from align.feedback.summary import summarise, table
from align.feedback.texts import TEXTS

# Untyped: its signatures take what its documentation says and its hints do not.
gr: Any = gradio
_BUTTONS = (("left", "primary"), ("tie", "secondary"), ("both_bad", "secondary"),
            ("right", "primary"), ("skip", "secondary"))  # fmt: skip


class _Comparing:
    """What the events of the arena's page do; every one returns what `out` lists."""

    def __init__(self, arena: Arena, words: dict[str, str], reveal: bool) -> None:
        self.arena, self.words, self.reveal = arena, words, reveal

    def results(self) -> str:
        rows, _ = read_log(self.arena.log.path)
        return pages.results_html(table(summarise(rows)), self.words) if rows else ""

    def screen(self, who: dict[str, Any], notice: str = "") -> tuple[Any, ...]:
        """State, bar, question, answers, their row, the buttons, notice."""
        shown = self.arena.next(who["name"])
        bar = pages.progress_html(*self.arena.progress(who["name"]), self.words)
        note = pages.notice_html(notice)
        if shown is None:
            who = {**who, "item": None}
            done, hidden = pages.done_html(self.words, self.results()), {"visible": False}
            return who, bar, done, "", "", gr.Row(**hidden), gr.Column(**hidden), note
        prompt, left, right = pages.shown_html(shown, self.words)
        prompt += self.results() if self.reveal else ""
        who = {**who, "item": shown.item.id}
        return who, bar, prompt, left, right, gr.Row(visible=True), gr.Column(visible=True), note

    def start(self, name: str, consent: bool) -> tuple[Any, ...]:
        who = {"name": _checked(annotator_name, name), "consent": bool(consent)}
        return gr.Column(visible=False), gr.Column(visible=True), *self.screen(who)

    def cast(self, choice: str) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
        def vote(who: dict[str, Any]) -> tuple[Any, ...]:
            if not who or not who.get("item"):
                raise gr.Error(self.words["done"])
            taken = self.arena.vote(who["name"], who["item"], choice, consent=who["consent"])
            return self.screen(who, "" if taken else self.words["late"])

        return vote

    def ask(self, who: dict[str, Any], text: str) -> tuple[Any, ...]:
        _checked(self.arena.own_prompt, who["name"], text)
        return *self.screen(who), ""


def arena_page(
    arena: Arena, *, language: str = "en", reveal: bool = False, annotator: str = ""
) -> Any:
    """The page of blind comparisons, and the functions `next` and `vote` for programs.

    reveal: show the results while votes are cast; else an annotator sees them when nothing is left.
    annotator: the name that stands in the field.
    """
    words = TEXTS[language]
    does = _Comparing(arena, words, reveal)
    with _blocks(words["title"]) as page, gr.Column(elem_id="arena"):
        _for_programs(arena)  # first: the names `next` and `vote` are theirs
        who = gr.State({})
        _heading(words["title"], words["intro"])
        with gr.Column(elem_id="welcome") as welcome:
            name, consent, begin = _welcome(words, annotator)
        with gr.Column(visible=False) as work:
            bar, prompt = gr.HTML(), gr.HTML(elem_id="question")
            with gr.Row(elem_id="pair", equal_height=True) as pair:
                left, right = gr.HTML(), gr.HTML()
            notice = gr.HTML()
            with gr.Column() as votes:
                with gr.Row(elem_id="votes"):
                    buttons = {
                        choice: gr.Button(words[choice], variant=kind, elem_id=f"vote-{choice}")
                        for choice, kind in _BUTTONS
                    }
                gr.HTML(f'<p class="keys">{pages.text_html(words["keys"])}</p>')
            out: list[Any] = [who, bar, prompt, left, right, pair, votes, notice]
            if arena.takes_prompts:
                _own_prompt(words, does.ask, who, out)
        first = [welcome, work, *out]
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        for event in (begin.click, name.submit):
            event(does.start, [name, consent], first, **quiet)
        for choice, button in buttons.items():
            button.click(does.cast(choice), [who], out, **quiet)
    return page


def chat_page(model: Any, log: Any, *, language: str = "en", keeps_votes: bool = False,
              annotator: str = "") -> Any:  # fmt: skip
    """A conversation with one model, and thumbs for its last answer."""
    words = TEXTS[language]

    def start(name: str, consent: bool) -> tuple[Any, ...]:
        chat = Chat(
            model, log, _checked(annotator_name, name), consent=bool(consent),
            keeps_votes=keeps_votes,
        )  # fmt: skip
        return gr.Column(visible=False), gr.Column(visible=True), chat

    def view(chat: Chat, notice: str = "") -> tuple[Any, ...]:
        note = pages.notice_html(notice)
        return pages.chat_html(chat.messages, words), gr.Row(visible=chat.can_vote), note, ""

    def say(chat: Chat, text: str) -> tuple[Any, ...]:
        _checked(chat.say, text)
        return view(chat)

    def reset(chat: Chat) -> tuple[Any, ...]:
        chat.reset()
        return view(chat)

    def cast(vote: str) -> Callable[[Chat], tuple[Any, ...]]:
        return lambda chat: view(chat, words["thanks"] if chat.vote(vote) else "")

    title = words["chat_title"]
    with _blocks(title) as page, gr.Column(elem_id="arena"):
        chat = gr.State(None)
        _heading(title, words["chat_intro"])
        with gr.Column(elem_id="welcome") as welcome:
            name, consent, begin = _welcome(words, annotator)
        with gr.Column(visible=False) as work:
            turns = gr.HTML()
            with gr.Row(elem_id="votes", visible=False) as votes:
                up = gr.Button(f"+ {words['up']}", elem_id="vote-up")
                down = gr.Button(f"− {words['down']}", elem_id="vote-down")
            notice = gr.HTML()
            message = gr.Textbox(label=words["message"], lines=1, max_lines=8, elem_id="message")
            with gr.Row():
                send = gr.Button(words["send"], variant="primary", elem_id="send")
                again = gr.Button(words["reset"], elem_id="reset")
        out: list[Any] = [turns, votes, notice, message]
        private: dict[str, Any] = {"api_visibility": "private"}
        for event in (begin.click, name.submit):
            event(start, [name, consent], [welcome, work, chat], **private)
        for event in (send.click, message.submit):
            event(say, [chat, message], out, show_progress="minimal", **private)
        up.click(cast("up"), [chat], out, show_progress="hidden", **private)
        down.click(cast("down"), [chat], out, show_progress="hidden", **private)
        again.click(reset, [chat], out, show_progress="hidden", **private)
    return page


def launch(page: Any, *, host: str, port: int, share: bool, block: bool = True) -> str:
    """Serve a page; return its address. block: until it is interrupted."""
    fonts = ["system-ui", "-apple-system", "PingFang SC", "Microsoft YaHei", "sans-serif"]
    mono = ["ui-monospace", "monospace"]  # plain names: none is fetched
    theme = gr.themes.Default(primary_hue="blue", font=fonts, font_mono=mono)
    _, local, public = page.queue(default_concurrency_limit=8).launch(
        server_name=host, server_port=port, share=share, prevent_thread_lock=True, quiet=True,
        ssr_mode=False, mcp_server=False, pwa=False, show_error=True, footer_links=[],
        run_history=False, theme=theme, css=pages.asset("arena.css"),
        head=f"<script>{pages.asset('arena.js')}</script>",
    )  # fmt: skip
    address = public or local
    print(f"[align] the page is open at {address} (Ctrl+C ends)", flush=True)
    if block:
        page.block_thread()
    return address


def _blocks(title: str) -> Any:
    return gr.Blocks(title=title, analytics_enabled=False, fill_width=True)


def _heading(title: str, intro: str) -> None:
    gr.HTML(f"<h1>{pages.text_html(title)}</h1><p class='intro'>{pages.text_html(intro)}</p>")


def _welcome(words: dict[str, str], annotator: str) -> tuple[Any, Any, Any]:
    name = gr.Textbox(
        value=annotator, label=words["name"], info=words["name_hint"], max_lines=1, elem_id="name"
    )
    consent = gr.Checkbox(label=words["consent"], elem_id="consent")
    return name, consent, gr.Button(words["start"], variant="primary", elem_id="start")


def _own_prompt(words: dict[str, str], ask: Any, who: Any, out: list[Any]) -> None:
    with gr.Accordion(words["own"], open=False, elem_id="own"):
        text = gr.Textbox(label=words["own"], info=words["own_hint"], lines=2, elem_id="own-text")
        button = gr.Button(words["ask"], elem_id="own-ask")
        for event in (button.click, text.submit):
            event(ask, [who, text], [*out, text], show_progress="minimal",
                  api_visibility="private")  # fmt: skip


def _for_programs(arena: Arena) -> None:
    """What gradio_client calls: `/next` and `/vote`, blind as the page is."""

    def next_item(annotator: str) -> dict:
        shown = arena.next(_checked(annotator_name, annotator))
        return {"item": None} if shown is None else to_json(shown)

    def vote(annotator: str, item: str, vote: str, consent: bool) -> dict:
        name = _checked(annotator_name, annotator)
        taken = _checked(arena.vote, name, item, vote, consent=bool(consent))
        return {"taken": taken}

    gr.api(next_item, api_name="next")
    gr.api(vote, api_name="vote")


def _checked(function: Any, *args: Any, **options: Any) -> Any:
    """The function's value; what is wrong with the input becomes a message on the page."""
    try:
        return function(*args, **options)
    except UserError as error:
        raise gr.Error(pages.text_html(str(error)), print_exception=False) from None
