"""The parts of the arena's pages that are our own HTML; every text from outside is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources

from align.config_errors import UserError
from align.feedback.queue import Shown
from align.records import Message

INSTALL = "pip install 'align[arena]'"


def asset(name: str) -> str:
    """Text of a file in align/feedback/assets."""
    return (resources.files("align.feedback") / "assets" / name).read_text(encoding="utf-8")


def text_html(text: str | None) -> str:
    """A text as it is: its tags are shown, not obeyed; line breaks stay."""
    return escape(text or "", quote=True)


def prompt_html(messages: Sequence[Message], words: dict[str, str]) -> str:
    """What was asked, with the speaker of each turn where there are several."""
    if len(messages) == 1 and messages[0].role == "user":
        inner = f'<div class="said" dir="auto">{text_html(messages[0].content)}</div>'
    else:
        inner = "".join(
            f'<div class="turn {m.role}"><b>{text_html(words[m.role])}</b>'
            f'<div class="said" dir="auto">{text_html(m.content)}</div></div>'
            for m in messages
        )
    return f'<section class="prompt"><h2>{text_html(words["prompt"])}</h2>{inner}</section>'


def answer_html(text: str | None, side: str, words: dict[str, str]) -> str:
    """One of the two answers. side: left or right."""
    heading = text_html(words[f"answer_{side}"])
    return (
        f'<section class="answer" id="text-{side}"><h2>{heading}</h2>'
        f'<div class="said" dir="auto" tabindex="0">{text_html(text)}</div></section>'
    )


def progress_html(done: int, total: int, words: dict[str, str]) -> str:
    """A bar and the numbers."""
    share = 100.0 * done / total if total else 100.0
    label = text_html(words["progress"].format(done=done, total=total))
    return (
        f'<div class="progress" role="progressbar" aria-valuemin="0" aria-valuemax="{total}" '
        f'aria-valuenow="{done}"><i style="width:{share:.1f}%"></i><span>{label}</span></div>'
    )


def done_html(words: dict[str, str], results: str = "") -> str:
    """What stands there when nothing is left, with the results where they may be seen."""
    head = f"<h2>{text_html(words['done'])}</h2><p>{text_html(words['done_hint'])}</p>"
    return f'<section class="done">{head}{results}</section>'


def results_html(table: str, words: dict[str, str]) -> str:
    """The summary of the votes."""
    heading = text_html(words["results"])
    return f'<section class="results"><h2>{heading}</h2><pre>{text_html(table)}</pre></section>'


def notice_html(notice: str) -> str:
    """A line that a screen reader says aloud; empty, it takes no room."""
    return f'<div class="notice" role="status">{text_html(notice)}</div>'


def chat_html(messages: Sequence[Message], words: dict[str, str]) -> str:
    """A conversation so far."""
    turns = "".join(
        f'<div class="turn {m.role}"><b>{text_html(words[m.role])}</b>'
        f'<div class="said" dir="auto">{text_html(m.content)}</div></div>'
        for m in messages
    )
    return f'<section class="chat" aria-live="polite">{turns}</section>'


def shown_html(shown: Shown, words: dict[str, str]) -> tuple[str, str, str]:
    """(prompt, left, right) of an item."""
    left, right = shown.completions
    prompt = prompt_html(shown.item.prompt, words)
    return prompt, answer_html(left.text, "left", words), answer_html(right.text, "right", words)


def need_gradio() -> None:
    """UserError where gradio is not installed; nothing is imported."""
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise UserError("arena", "gradio", "is not installed", INSTALL)
