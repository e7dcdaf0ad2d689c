"""check_server: who does everything right passes, who does one thing wrong does not."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "evaluation"))
import eval_models
import stub_server as st

from align.config_errors import UserError
from align.jsonl import write_jsonl
from align.run import guarded
from align.serving.check_server import main
from align.serving.parity_check import read_parity


@functools.cache
def tokenizer():
    return eval_models.tokenizer()


@pytest.fixture
def parity(tmp_path) -> Path:
    write_jsonl(tmp_path / "parity.jsonl", st.rows(tokenizer()))
    return tmp_path / "parity.jsonl"


def run(stub: st.Stub, parity: Path, *words: str) -> int:
    with st.serve(stub) as url:
        return main(["--url", url, "--parity", str(parity), *words])


@pytest.mark.parametrize("kind", ["vllm", "token_ids", "llama.cpp", "count"])
def test_a_server_that_renders_answers_and_stops_passes(kind, parity, capsys):
    report = parity.with_name("report.json")
    assert run(st.Stub(tokenizer(), kind), parity, "--report", str(report)) == 0
    said = json.loads(report.read_text())
    assert said["passed"] is True
    assert said["prompts"] == kind
    # The text that spells <|im_end|> is letters in training and a token in the server.
    assert (said["as_special"], said["compared"], said["stopped"]) == (1, 3, 3)
    out = capsys.readouterr().out
    assert "4 of 4 as trained" in out
    assert "1 prompts spell special tokens" in out
    assert "passes: stub at http://127.0.0.1" in out


@pytest.mark.parametrize("kind", ["vllm", "token_ids", "llama.cpp", "count"])
@pytest.mark.parametrize(
    ("fault", "lines", "says"),
    [
        ("no_header", 4, "without a generation prompt"),
        ("double_bos", 4, "second BOS"),
        ("merged_system", 1, "rendered"),
    ],
)
def test_a_wrong_prompt_is_caught_and_shown(kind, fault, lines, says, parity, capsys):
    report = parity.with_name("report.json")
    assert run(st.Stub(tokenizer(), kind, fault), parity, "--report", str(report)) == 1
    failures = json.loads(report.read_text())["failures"]
    assert {f["check"] for f in failures} == {"prompt"}
    assert len(failures) == lines
    out = capsys.readouterr().out
    assert says in out or fault == "merged_system"
    assert "does not pass" in out
    if fault == "merged_system":
        assert "line 3, prompt" in out
        assert "评价房间" in out
    if kind == "vllm":
        assert "expected ids" in out
        assert "got text" in out


@pytest.mark.parametrize(
    ("fault", "check", "says"),
    [
        ("runs_on", "stop", "the server goes on"),
        ("shows_stop", "stop", "the answer shows '<|im_end|>'"),
        ("wrong_finish", "stop", "finish_reason is 'length', not 'stop'"),
        ("other_answer", "first token", "parts at token 0"),
    ],
)
def test_a_wrong_answer_is_caught(fault, check, says, parity, capsys):
    assert run(st.Stub(tokenizer(), "vllm", fault), parity) == 1
    out = capsys.readouterr().out
    assert f"FAIL {check}" in out
    assert says in out


def test_ids_show_where_an_answer_parts(parity, capsys):
    """The server's second answer is another one, from its first token on."""
    talks = [*st.TALKS[:1], (st.TALKS[1][0], "Terrible food"), *st.TALKS[2:]]
    stub = st.Stub(tokenizer(), "token_ids", talks=talks)
    assert run(stub, parity) == 1
    assert "line 2, first token: parts at token 0" in capsys.readouterr().out
    # One of three differs: enough for a quantised engine that is asked for half.
    assert run(stub, parity, "--min_agreement", "0.5") == 0
    assert run(stub, parity, "--min_agreement", "0.7") == 1
    assert "2 of 3 agree" in capsys.readouterr().out


def test_tokens_that_spell_one_character_are_not_told_apart(tmp_path, capsys):
    """🌟 is four bytes, a token each; another text from the first character on parts in them."""
    talks = [(st.TALKS[0][0], "🌟好")]
    made = st.rows(tokenizer(), talks)
    assert made[0]["offsets"][:4] == [0, 0, 0, 1]
    write_jsonl(tmp_path / "p.jsonl", made)
    stub = st.Stub(tokenizer(), "count", talks=[(st.TALKS[0][0], "早餐")])
    assert run(stub, tmp_path / "p.jsonl") == 1
    assert "parts at tokens 0 to 3, which spell one character" in capsys.readouterr().out
    made[0]["margins"][2] = 0.001  # any of them may be the tie
    write_jsonl(tmp_path / "p.jsonl", made)
    assert run(stub, tmp_path / "p.jsonl") == 0


def test_a_tie_is_no_error(tmp_path):
    made = st.rows(tokenizer())
    talks = [(st.TALKS[0][0], "早餐不错"), *st.TALKS[1:]]
    for margin, code in ((0.5, 1), (0.01, 0)):
        made[0]["margins"][0] = margin
        write_jsonl(tmp_path / "p.jsonl", made)
        assert run(st.Stub(tokenizer(), "vllm", talks=talks), tmp_path / "p.jsonl") == code


def test_a_server_that_says_nothing_of_the_prompt_does_not_pass(parity, capsys):
    assert run(st.Stub(tokenizer(), "count", "says_nothing"), parity) == 1
    assert "neither the ids of a prompt nor their number" in capsys.readouterr().out


def test_a_refused_conversation_is_shown(parity, capsys):
    stub = st.Stub(tokenizer())
    stub.answers.pop(json.dumps(st.TALKS[2][0]))  # the handler fails: the connection is closed
    assert run(stub, parity) == 1
    assert "line 3, prompt: the server does not answer" in capsys.readouterr().out


def test_a_server_that_has_died_is_not_asked_to_the_end(tmp_path, capsys):
    made = st.rows(tokenizer()) * 3
    write_jsonl(tmp_path / "p.jsonl", made)
    stub = st.Stub(tokenizer())
    stub.answers.clear()
    assert run(stub, tmp_path / "p.jsonl") == 1
    assert stub.asked.count("/v1/chat/completions") <= 2 * 3  # a closed connection is tried again
    assert "0 of 12 as trained" in capsys.readouterr().out


def test_wrong_input_is_a_user_error(parity, tmp_path, capsys):
    dead = "http://127.0.0.1:9"
    with pytest.raises(UserError, match="cannot be asked for its models"):
        main(["--url", dead, "--parity", str(parity)])
    with pytest.raises(UserError, match=r"parity=.*does not exist.*parity\.jsonl"):
        main(["--url", dead, "--parity", str(tmp_path / "parity.json")])
    with st.serve(st.Stub(tokenizer())) as url, pytest.raises(UserError, match="models are: stub"):
        main(["--url", url, "--parity", str(parity), "--model", "other"])
    assert guarded(lambda: main(["--url", dead, "--parity", str(parity)])) == 2
    assert "error: url=" in capsys.readouterr().err


def test_a_broken_line_is_named(parity):
    lines = parity.read_text(encoding="utf-8").splitlines()
    cut = json.loads(lines[1])
    del cut["greedy_ids"]
    cases = {
        "cannot be read: .*:2": [lines[0], lines[1][:40]],
        "parity:2=null has no usable 'greedy_ids'": [lines[0], json.dumps(cut)],
        "parity:1='text' is no JSON object": ['"text"'],
        "has no lines": [],
    }
    for says, text in cases.items():
        parity.write_text("\n".join(text), encoding="utf-8")
        with pytest.raises(UserError, match=says):
            read_parity(parity)


def test_a_key_is_sent_where_the_environment_has_one(parity, monkeypatch):
    seen = []

    class Guarded(st.Stub):
        def reply(self, path, body):
            seen.append(path)
            return super().reply(path, body)

    monkeypatch.setenv("MY_KEY", "no spaces allowed")
    with st.serve(Guarded(tokenizer())) as url, pytest.raises(UserError, match="MY_KEY"):
        main(["--url", url, "--parity", str(parity), "--api_key_env", "MY_KEY"])
    assert seen == []
