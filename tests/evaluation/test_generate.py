"""Generation: the same seed the same text, whatever the batch; whole characters; refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import eval_models as tiny

from align.evaluation.decoding import (
    PARTIAL,
    RowChoice,
    Sampling,
    TextStream,
    complete,
    complete_text,
)
from align.tools import run_tool

PROMPTS = ["写一条酒店评论", "The room", "早餐", "Terrible food, never"]


@pytest.fixture(scope="module")
def model():
    return tiny.gpt2(3)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("models") / "run", 3)


def texts(model, tokenizer, prompts=PROMPTS, **options):
    ids = [tokenizer(p)["input_ids"] for p in prompts]
    how = Sampling(**{"max_new_tokens": 12, **options})
    found = complete(model, tokenizer, ids, how, [tokenizer.eos_token_id])
    return [c.ids for c in found]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_batch_decides_nothing(model, tokenizer, temperature):
    options = {"temperature": temperature, "num_samples": 2, "repetition_penalty": 1.2}
    found = [texts(model, tokenizer, batch_size=size, **options) for size in (1, 3, 8)]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 8


def test_greedy_is_the_likeliest_token(model, tokenizer):
    [ids] = texts(model, tokenizer, ["早餐"], temperature=0.0)
    row = tokenizer("早餐")["input_ids"]
    for token in ids:
        with torch.no_grad():
            assert int(model(torch.tensor([row])).logits[0, -1].argmax()) == token
        row.append(token)


def test_seeds_and_samples_differ_and_repeat(model, tokenizer):
    first = texts(model, tokenizer, num_samples=3, seed=1)
    assert first == texts(model, tokenizer, num_samples=3, seed=1)
    assert first != texts(model, tokenizer, num_samples=3, seed=2)
    assert first[0] != first[1] != first[2]
    state = torch.random.get_rng_state()
    texts(model, tokenizer)
    assert torch.equal(state, torch.random.get_rng_state())


def draws(scores, n=4000, **options):
    """How often each token comes up in n rows of the same scores."""
    how = Sampling(**options)
    ids = torch.zeros(n, 1, dtype=torch.long)
    chosen = RowChoice(how, [0] * n, [(i, 0) for i in range(n)])(
        ids, torch.tensor(scores).repeat(n, 1)
    )
    return torch.bincount(chosen.argmax(-1), minlength=len(scores)) / n


def test_what_is_drawn_is_the_softmax():
    """Logits 0, ln 2, ln 5 are 1/8, 2/8, 5/8; at temperature 1/2 they are 1/30, 4/30, 25/30."""
    scores = [0.0, 0.6931, 1.6094]
    assert draws(scores).tolist() == pytest.approx([0.125, 0.25, 0.625], abs=0.025)
    assert draws(scores, temperature=0.5).tolist() == pytest.approx(
        [1 / 30, 4 / 30, 25 / 30], abs=0.02
    )
    assert draws(scores, top_k=2).tolist() == pytest.approx([0, 2 / 7, 5 / 7], abs=0.025)
    assert draws(scores, top_p=0.6).tolist() == [0, 0, 1]
    assert draws(scores, temperature=0.0).tolist() == [0, 0, 1]


def test_the_penalty_by_hand():
    """Tokens 0 (logit 2) and 1 (logit −1) were seen; the pad (token 3) was not, it is padding."""
    how = Sampling(temperature=0.0, repetition_penalty=2.0)
    found = RowChoice(how, [1], [(0, 0)])(
        torch.tensor([[3, 0, 1]]), torch.tensor([[2.0, -1.0, 0.5, 4.0]])
    )
    assert found.tolist() == [[1.0, -2.0, 0.5, 4.0]]


# Streaming


def streamed(tokenizer, prompt, ids, **options):
    """The parts that a stream shows."""
    parts: list[str] = []
    stream = TextStream(tokenizer, prompt, parts.append, **options)
    stream.put(torch.tensor([prompt]))
    for token in ids:
        stream.put(torch.tensor([token]))
    stream.end()
    return parts


@pytest.mark.parametrize("text", ["酒店很好😀，龘 ok", "The room was clean.", "é😀龘"])
def test_no_part_holds_half_a_character(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    prompt = tokenizer("写一条")["input_ids"]
    parts = streamed(tokenizer, prompt, ids)
    assert "".join(parts) == text
    assert not any(PARTIAL in part for part in parts)
    assert len(parts) > 1 or "é" in text  # nothing but bytes: shown when they end


def test_bytes_that_never_become_a_character_are_shown_in_the_end(tokenizer):
    [lead] = tokenizer.convert_tokens_to_ids(["<0xE4>"])
    after = tokenizer("好", add_special_tokens=False)["input_ids"]
    parts = streamed(tokenizer, [5], [lead, *after])
    assert "".join(parts) == complete_text(tokenizer, [5], [lead, *after])
    assert PARTIAL in "".join(parts)
    assert streamed(tokenizer, [5], [lead]) == [PARTIAL]


def test_a_stream_shows_what_the_completion_is(model, tokenizer):
    ids = tokenizer("写一条")["input_ids"]
    parts: list[str] = []
    stop = tokenizer.eos_token_id
    stream = TextStream(tokenizer, ids, parts.append, skip=[stop])
    [found] = complete(model, tokenizer, [ids], Sampling(20, seed=4), [stop], stream=stream)
    assert "".join(parts) == found.text


# The command


def tool(*words):
    return run_tool("generate", [*map(str, words)])


def test_a_file_of_prompts(run_dir, tmp_path, capsys):
    file, out = tmp_path / "p.txt", tmp_path / "out.jsonl"
    file.write_text("写一条评论\n\nThe room\n写一条评论\n", encoding="utf-8")
    few = ("--max_new_tokens", 6, "--num_samples", 2)
    assert tool("--model", run_dir, "--prompts", file, "--output", out, *few) == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(r["prompt"], r["sample"]) for r in rows] == [
        (p, s) for p in ("写一条评论", "The room", "写一条评论") for s in (0, 1)
    ]
    assert rows[0]["completion"] != rows[4]["completion"]  # the number of the prompt is in the seed
    assert tool("--model", run_dir, "--prompts", file, *few) == 0
    assert "--- prompt 3, sample 2" in capsys.readouterr().out


def test_messages_are_answered_by_the_template(run_dir, tmp_path):
    file, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    rows = [{"prompt": "写一条评论"}, {"messages": [{"role": "user", "content": "写一条评论"}]}]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    words = ("--model", run_dir, "--prompts", file, "--output", out, "--max_new_tokens", 6)
    assert tool(*words, "--chat", "--temperature", 0) == 0
    found = [json.loads(line)["completion"] for line in out.read_text().splitlines()]
    assert found[0] == found[1]
    assert tool(*words) == 2  # messages need --chat


def test_one_prompt_is_streamed_and_the_same_without(run_dir, capsys):
    words = ("--model", run_dir, "--prompt", "早餐", "--max_new_tokens", 8, "--seed", 5)
    shown = []
    for more in ((), ("--no-stream",)):
        assert tool(*words, *more) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


def test_a_conversation_at_the_terminal(run_dir, monkeypatch, capsys):
    lines = iter(["写一条评论", "", "再写一条", "/reset", "写" * 80, "早餐", "/exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert tool("--model", run_dir, "--chat", "--max_new_tokens", 16) == 0
    assert "does not fit: the longest prompt has" in capsys.readouterr().err
    assert next(lines, None) is None


def test_old_turns_give_way(run_dir, monkeypatch):
    from align.evaluation import generate

    lines = iter(["写一条酒店评论"] * 6)
    seen = []

    def read(_):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    answer = generate.Writer.answer
    monkeypatch.setattr(
        generate.Writer, "answer",
        lambda self, ids, turn=0: (seen.append(len(ids)), answer(self, ids, turn))[1],
    )  # fmt: skip
    assert tool("--model", run_dir, "--chat", "--max_new_tokens", 10, "--temperature", 0) == 0
    assert len(seen) == 6
    assert seen[1] > seen[0]
    assert max(seen) <= 86  # 96 positions


def test_an_adapter(run_dir, tmp_path, capsys):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        tiny.gpt2(3), LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    )
    adapted.peft_config["default"].base_model_name_or_path = str(run_dir / "final")
    adapted.save_pretrained(tmp_path / "adapter")
    words = ("--prompt", "早餐", "--max_new_tokens", 8, "--temperature", 0)
    for folder in (run_dir, tmp_path / "adapter"):
        assert tool("--model", folder, *words) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == shown[1]  # an adapter that was not trained changes nothing


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a", "--prompts", "b"], "cannot be used with --prompts"),
        (["--output", "x.jsonl"], "needs prompts"),
        (["--prompts", "nowhere.txt"], "does not exist"),
        (["--prompt", "a", "--max_new_tokens", "500"], "does not fit"),
        (["--prompt", ""], "has no token"),
        (["--prompt", "a", "--system", "s"], "needs --chat"),
        (["--prompt", "a", "--temperature", "-1"], "-1 is below 0"),
        (["--prompt", "a", "--top_p", "0"], "0 is not above 0, and at most 1"),
        (["--prompt", "a", "--repetition_penalty", "0"], "0 is not above 0"),
        (["--prompt", "a", "--num_samples", "0"], "is below 1"),
    ],
)
def test_wrong_options_are_refused(run_dir, capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    assert tool("--model", run_dir, *words) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_there_or_of_another_kind(tmp_path, capsys):
    assert tool("--model", tmp_path / "no", "--prompt", "a") == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
    assert tool("--model", tmp_path / "bert", "--prompt", "a") == 2
    assert "fills in masked tokens" in capsys.readouterr().err
