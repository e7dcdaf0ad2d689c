"""The chat page's logic: one line for each answer, whatever becomes of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import feedback_rows as rows

from align.config_errors import UserError
from align.feedback.answers import Given
from align.feedback.chat import Chat, open_log
from align.feedback.records import read_log
from reward_models.annotations.detect import detect


class Echo:
    name = "echo"

    def answer(self, conversations, seed):
        (turns,) = conversations
        return [Given(f"{len(turns)}:{turns[-1].content}", 0.25, 4)]


class Mute:
    name = "mute"

    def answer(self, conversations, seed):
        return [Given(None)]


def chat(tmp_path, **options):
    log = open_log(tmp_path)
    return Chat(Echo(), log, "王", **{"consent": True, **options}), log.path


def test_answers_are_logged_with_their_thumb_time_and_history(tmp_path):
    talk, path = chat(tmp_path)
    assert talk.say("你好") == "1:你好"
    assert talk.vote("up")
    assert not talk.vote("down")  # judged once
    talk.say("and now?")
    talk.say("third")  # the second was not judged
    talk.vote("down")
    lines, _ = read_log(path)
    assert [r["vote"] for r in lines] == ["up", None, "down"]
    assert lines[0]["completions"] == [{"model": "echo", "text": "1:你好"}]
    assert [m["role"] for m in lines[1]["prompt"]] == ["user", "assistant", "user"]
    assert (lines[0]["latency_s"], lines[0]["tokens"], lines[0]["annotator"]) == (0.25, 4, "王")
    assert len({r["session"] for r in lines}) == 1
    talk.reset()
    assert talk.messages == []
    talk.say("new")
    talk.vote("up")
    assert len({r["session"] for r in read_log(path)[0]}) == 2
    assert detect(path).format.name == "feedback"


@pytest.mark.parametrize(("keeps", "kept"), [(False, 0), (True, 1)])
def test_without_consent_no_text_is_logged(tmp_path, keeps, kept):
    talk, path = chat(tmp_path, consent=False, keeps_votes=keeps)
    talk.say("秘密")
    talk.vote("up")
    talk.say("another 秘密")
    talk.reset()
    lines, _ = read_log(path)
    assert len(lines) == kept
    assert not path.exists() or "秘密" not in path.read_text("utf-8")


def test_what_cannot_be_said(tmp_path):
    talk, path = chat(tmp_path)
    with pytest.raises(UserError, match="message=' ' is empty"):
        talk.say(" ")
    with pytest.raises(UserError, match="Use one of up, down"):
        talk.vote("left")
    silent = Chat(Mute(), open_log(tmp_path), consent=True)
    with pytest.raises(UserError, match="got no answer"):
        silent.say("长" * 100)
    assert silent.messages == []
    assert read_log(path) == ([], 0)


def test_rows_of_the_helper_are_what_the_log_writes(tmp_path):
    talk, path = chat(tmp_path)
    talk.say("问")
    talk.vote("up")
    (line,), _ = read_log(path)
    assert set(rows.thumb()) == set(rows.vote()) == set(line)
