"""Where the compared answers come from: files, model folders, servers; each made once."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))
import eval_models
import feedback_rows as rows

from align.config_errors import UserError
from align.evaluation.sampling import Decoding
from align.feedback.answers import Given, collect, make_models, read_answers
from align.records import Message
from align.run_manifest import same_setup


class Scripted:
    """Answers by name, and remembers the seeds it was asked with."""

    def __init__(self, name):
        self.name, self.seeds, self.unloaded = name, [], 0

    def answer(self, conversations, seed):
        self.seeds.append(seed)
        return [Given(f"{self.name} {c[-1].content}", 0.5, 3) for c in conversations]

    def unload(self):
        self.unloaded += 1


def test_answers_are_made_once_and_in_blocks(tmp_path):
    prompts, said = rows.prompts(70), []
    models = [Scripted("a"), Scripted("b")]
    first = collect(models, prompts, tmp_path, seed=5, say=said.append)
    assert [m.seeds for m in models] == [[5, 69], [100_008, 100_072]]
    assert [m.unloaded for m in models] == [1, 1]
    assert said[1] == "arena: a answers prompts 65 to 70"
    assert first[prompts[3].prompt_id, "b"] == f"b {prompts[3].messages[0].content}"
    again = [Scripted("a"), Scripted("b")]
    assert collect(again, prompts, tmp_path, seed=5, say=said.append) == first
    assert [m.seeds for m in again] == [[], []]
    # A crash before the second block of b: that block alone is asked again, with its own seed.
    lines = (tmp_path / "answers.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_text("".join(lines[:-6]), "utf-8")
    third = [Scripted("a"), Scripted("b")]
    assert collect(third, prompts, tmp_path, seed=5, say=said.append) == first
    assert [m.seeds for m in third] == [[], [100_072]]


def test_a_file_of_samples_is_read(tmp_path):
    made = rows.sample_rows(3)
    second_seed = [{**made[0], "seed": 1, "completion": "another"}]
    path = rows.write(tmp_path / "samples.jsonl", made + second_seed)
    prompts, answers, names = read_answers(path)
    assert names == ["dpo", "ppo"]
    assert len(prompts) == 3
    assert answers[prompts[0].prompt_id, "dpo"] == made[0]["completion"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "q", "run": "a", "completion": "x"}\n', r"has answers of 1 model\(s\)"),
        ('{"prompt": "q", "completion": "x"}\n', "no prompt, run or completion"),
        ("[]\n", "expected an object"),
        ("{torn\n", "cannot be read"),
    ],
)
def test_a_file_that_holds_no_answers(tmp_path, content, message):
    path = tmp_path / "samples.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_answers(path)


def test_model_folders_answer_the_same_at_every_start(tmp_path):
    runs = [str(eval_models.save(tmp_path / name, i)) for i, name in enumerate(("one", "two"))]
    decoding = Decoding(max_new_tokens=8)
    prompts = rows.prompts(3)
    models = make_models(runs, decoding)
    assert [m.name for m in models] == ["one", "two"]
    first = collect(models, prompts, tmp_path / "a", say=lambda _: None)
    assert first == collect(
        make_models(runs, decoding), prompts, tmp_path / "b", say=lambda _: None
    )
    assert len(set(first.values())) > 3
    too_long = models[0].answer([[Message("user", "长" * 200)], prompts[0].messages], 0)
    assert too_long[0] == Given(None)
    assert too_long[1].text is not None
    assert models[0].answer([[Message("user", "长" * 200)]], 0) == [Given(None)]


@contextmanager
def chat_server():
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = f"{request['model']} 说 {request['messages'][-1]['content']}"
            body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_answers_under_its_models_name():
    with chat_server() as url:
        models = make_models([f"{url}#qwen", f"{url}#llama"], Decoding())
        assert [m.name for m in models] == ["qwen", "llama"]
        (given,) = models[1].answer([[Message("user", "你好")]], 0)
    assert given.text == "llama 说 你好"
    assert given.latency_s >= 0


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["http://127.0.0.1:1/v1"], "does not say which of the server's models. Write http"),
        (["http://127.0.0.1:1/v1#m", "http://127.0.0.1:2/v1#m"], "stand for two models each"),
        (["no/such/run"], "models='no/such/run' no such folder"),
    ],
)
def test_models_that_are_none(specs, message):
    with pytest.raises(UserError, match=message):
        make_models(specs, Decoding())


def test_an_arena_of_other_models_is_not_mixed_in(tmp_path):
    same_setup(tmp_path / "arena.json", {"models": ["a", "b"], "seed": 0})
    same_setup(tmp_path / "arena.json", {"models": ["a", "b"], "seed": 0})
    with pytest.raises(UserError, match="holds results with another seed"):
        same_setup(tmp_path / "arena.json", {"models": ["a", "b"], "seed": 1})
