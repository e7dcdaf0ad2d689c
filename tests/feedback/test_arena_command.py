"""recipes/arena.py: what is refused before anything is loaded, and the summary."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import feedback_rows as rows

from align.feedback import main as command
from align.feedback import pages
from align.tools import run_tool


def arena(*words, code):
    assert run_tool("arena", list(map(str, words))) == code


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "x"], "models and --answers are both missing. Name two models"),
        (["a", "b", "--prompts", "none.jsonl"], "--prompts='none.jsonl' does not exist"),
        (["--answers", "f", "--prompts", "g"], "cannot be used with --answers"),
        (["a", "--answers", "f"], "is one model beside --answers"),
        (["a", "b", "--no_own_prompts"], "is needed: there is nothing to compare"),
        (["a", "--prompts", "pyproject.toml"], "is not read by the chat page of a single model"),
        (["a", "b", "--port", "70000"], "--port=70000 is not a port"),
        (["a", "b"], "models='a' no such folder"),
        (["--answers", "none.jsonl"], "--answers='none.jsonl' does not exist"),
        (["--summary", "none"], "--summary='none' holds no votes"),
    ],
)
def test_wrong_options_are_said_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("x")
    arena(*words, code=2)
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["pyproject.toml"]


def test_an_output_that_is_a_file(tmp_path, capsys):
    (tmp_path / "f").write_text("x")
    arena("a", "b", "--output", tmp_path / "f", code=2)
    assert "is a file. Give a folder" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--overlap", "1.5"], ["--reveal", "maybe"]])
def test_values_out_of_range(words, capsys):
    arena("a", "b", *words, code=2)
    assert words[1] in capsys.readouterr().err


def test_without_gradio_the_install_is_named(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    arena("a", "b", code=2)
    assert "gradio' is not installed. pip install 'align[arena]'" in capsys.readouterr().err


def test_a_port_in_use_is_said_before_models_work(monkeypatch, capsys):
    monkeypatch.setattr(command, "need_gradio", lambda: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        arena("a", "b", "--port", taken.getsockname()[1], code=2)
    assert "cannot be listened on at 127.0.0.1" in capsys.readouterr().err


def made(tmp_path, *words):
    path = rows.write(tmp_path / "samples.jsonl", rows.sample_rows())
    args = command.parser().parse_args(["--answers", str(path), "--output",
                                        str(tmp_path / "out"), *words])  # fmt: skip
    return command.make_arena(args)


def test_an_arena_of_a_file_goes_on_and_refuses_others(tmp_path, capsys):
    first = made(tmp_path)
    assert "6 comparisons of 2 models" in capsys.readouterr().out
    assert first.vote("ann", first.next("ann").item.id, "left", consent=True)
    assert made(tmp_path).resumed == 1
    assert "goes on after 1 votes" in capsys.readouterr().out
    with pytest.raises(Exception, match="holds results with another seed"):
        made(tmp_path, "--seed", "3")


def test_the_summary_is_printed_and_written(tmp_path, capsys):
    log = [rows.vote(prompt=str(i), said="left" if i else "both_bad") for i in range(4)]
    rows.write(tmp_path / "votes.jsonl", log)
    rows.write(tmp_path / "feedback.jsonl", [rows.thumb()])
    arena("--summary", tmp_path, code=0)
    printed = capsys.readouterr().out
    assert "x: wins 88% [" in printed  # (1 + 1 + 1 + ½) / 4
    assert "x: 100% [21%, 100%] of 1 thumbs are up" in printed  # Wilson: 1 / (1 + 1.96²)
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    assert summary["models"]["x"]["value"] == pytest.approx(0.875)


def test_every_text_from_outside_is_escaped():
    evil = "<script>alert(1)</script> \"' & <img src=x onerror=alert(1)>"
    words = command.TEXTS["en"]
    from align.records import Message

    made_pages = [
        pages.answer_html(evil, "left", words),
        pages.prompt_html((Message("user", evil),), words),
        pages.prompt_html((Message("system", evil), Message("user", evil)), words),
        pages.chat_html((Message("assistant", evil),), words),
        pages.results_html(evil, words),
        pages.notice_html(evil),
    ]
    for page in made_pages:
        assert "<script" not in page
        assert "<img" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_both_languages_have_every_text():
    assert command.TEXTS["en"].keys() == command.TEXTS["zh"].keys()
    assert all(text for words in command.TEXTS.values() for text in words.values())
