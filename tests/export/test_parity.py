"""The parity file and the tokens that a server gets: what is written, what is refused."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "policy"))
import tiny_policies as tp

from align.chat import prepare_tokenizer, render_prompt
from align.config_errors import Failed
from align.export import parity, tokens
from align.export.conversations import CONVERSATIONS
from align.export.hf import export

SIZE = {"max_position_embeddings": 512}


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    tp.save(folder / "model", **SIZE)
    report = export(folder / "model", folder / "out", parity=32)
    assert report["parity"]["conversations"] + len(report["notes"]) >= 30
    return folder


def lines(folder: Path) -> list[dict]:
    text = (folder / "out" / "parity.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_file_holds_what_training_renders_and_the_model_answers(exported):
    from transformers import AutoTokenizer

    model = tp.causal(exported / "out")
    trained = AutoTokenizer.from_pretrained(exported / "model")
    rows = lines(exported)
    texts = json.dumps([row["messages"] for row in rows], ensure_ascii=False)
    for part in ("你好", "France", "👨‍👩‍👧‍👦", "𠮷", "system", "<|im_end|>", "[INST]"):
        assert part in texts
    assert {len(row["messages"]) for row in rows} >= {1, 2, 3, 5}
    for row in rows:
        prompt, greedy = row["prompt_ids"], row["greedy_ids"]
        assert prompt == render_prompt(trained, row["messages"])
        assert len(greedy) == len(row["logprobs"]) == len(row["margins"])
        with torch.no_grad():
            logits = model(torch.tensor([prompt + greedy])).logits[0].log_softmax(-1)
        for i, token in enumerate(greedy):
            best = logits[len(prompt) - 1 + i].topk(2).values
            given = float(logits[len(prompt) - 1 + i][token])
            assert given == pytest.approx(row["logprobs"][i], abs=1e-4)
            assert float(best[0]) - given <= 1e-4
            assert float(best[0] - best[1]) == pytest.approx(row["margins"][i], abs=1e-4)
        assert greedy[-1] in row["stop_ids"] or len(greedy) == parity.TOKENS
        assert not set(greedy[:-1]) & set(row["stop_ids"])


def test_text_that_spells_a_special_token_has_both_readings(exported):
    rows = lines(exported)
    marked = [row for row in rows if "plain_ids" in row]
    assert marked
    for row in marked:
        assert "<|" in row["messages"][-1]["content"]
        assert row["plain_ids"] != row["prompt_ids"]
        assert len(row["plain_ids"]) < len(row["prompt_ids"])


def test_a_folder_that_renders_otherwise_is_refused():
    trained = tp.words()
    for change in (
        lambda t: t.replace("assistant\\n", "bot\\n"),
        lambda t: t.replace("{%- if add_generation_prompt -%}", "{%- if false -%}"),
        lambda t: "x" + t,
    ):
        other = copy.deepcopy(trained)
        other.chat_template = change(other.chat_template)
        assert other.chat_template != trained.chat_template
        with pytest.raises(Failed, match="does not render what training renders"):
            parity.render(trained, other, CONVERSATIONS[:1], None)


def test_a_tokenizer_that_transformers_would_rebuild_is_refused(tmp_path):
    """AutoTokenizer goes by the model type, and makes Qwen2's own of what lies beside a Qwen2."""
    tp.save(tmp_path / "model", kind="qwen2", **SIZE)
    with pytest.raises(Failed, match=r"read by Qwen2Tokenizer.*--parity 0 writes it unchecked"):
        export(tmp_path / "model", tmp_path / "out", parity=2)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert "parity" not in export(tmp_path / "model", tmp_path / "out")


def test_what_does_not_fit_or_is_refused_is_left_out_and_said(exported):
    tok = tp.words()
    rows, notes = parity.render(tok, tok, CONVERSATIONS, 100)
    assert 0 < len(rows) < len(CONVERSATIONS)
    assert all(len(row["prompt_ids"]) <= 100 - parity.TOKENS for row in rows)
    assert "longer than the model's positions" in notes[0]
    strict = copy.deepcopy(tok)
    strict.chat_template = (
        "{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('no') -}}{%- endif -%}"
        + tok.chat_template
    )
    with_system = [c for c in CONVERSATIONS if c[0]["role"] == "system"]
    rows, notes = parity.render(strict, strict, [*CONVERSATIONS[:2], *with_system[:3]], None)
    assert len(rows) == 2
    assert "3 parity conversations left out: the template refuses" in notes[0]


def test_a_quarter_comes_from_the_runs_own_prompts():
    own = [[{"role": "user", "content": f"own {i}"}] for i in range(40)]
    found = parity.choose(own, 32)
    mine = [turns for turns in found if turns in own]
    assert (len(found), len(mine)) == (32, 8)
    assert parity.choose([], 5) == [list(turns) for turns in CONVERSATIONS[:5]]
    assert len(parity.choose(own, 60)) == 60  # beyond the built-in ones


def test_pad_that_ends_an_answer_is_replaced_by_an_unused_token():
    """As in SmolLM2: pad = eos = the end of a turn, and <|endoftext|> is used by nothing."""
    tok = copy.deepcopy(tp.words())
    tok.eos_token = tok.pad_token = "<|im_end|>"
    tok.unk_token = "<|endoftext|>"
    served, notes = tokens.serving_tokenizer(tok, tp.VOCAB)
    assert served.pad_token == "<|pad|>"
    assert served.pad_token_id not in tokens.stops_of(tok)
    assert "was <|im_end|>, which ends an answer" in notes[0]
    assert tok.pad_token == "<|im_end|>"  # the trained tokenizer is left as it was
    assert served("你好 <|im_end|>")["input_ids"] == tok("你好 <|im_end|>")["input_ids"]
    kept, notes = tokens.serving_tokenizer(tp.words(), tp.VOCAB)
    assert (kept.pad_token, notes) == ("<|pad|>", [])


def bare_tokenizer():
    """Bytes, and two special tokens: BOS and an end of text that is all it has to pad with."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return prepare_tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>"),
        "zh_instruction",
    )


def test_without_an_unused_token_a_spare_row_is_taken_and_else_nothing_changes():
    tok = bare_tokenizer()
    assert tok.pad_token == "</s>"
    served, notes = tokens.serving_tokenizer(tok, 260)
    assert (served.pad_token, served.pad_token_id) == ("<|pad|>", 258)
    assert "unused row 258" in notes[0]
    served, notes = tokens.serving_tokenizer(tok, 258)
    assert served.pad_token == "</s>"  # never BOS
    assert len(served) == 258
    assert "Pass an attention mask" in notes[0]


def test_a_template_without_a_header_gets_the_one_that_training_adds():
    tok = copy.deepcopy(tp.words())
    tok.chat_template = (
        "{%- for m in messages -%}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + "
        "'<|im_end|>\\n' -}}{%- endfor -%}"
    )
    asked = [{"role": "user", "content": "你好"}]
    served, _ = tokens.serving_tokenizer(tok, tp.VOCAB)
    text = served.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    assert served(text)["input_ids"] == render_prompt(tok, asked)


@pytest.mark.parametrize("name", ["chatml", "zh_instruction", "inst"])
def test_marks_of_training_are_gone_and_nothing_else(name):
    trained = tp.words(template=name)
    served, _ = tokens.serving_tokenizer(trained, tp.VOCAB)
    assert "{%- generation" in trained.chat_template
    assert "{%- generation" not in served.chat_template
    assert "{%- endgeneration" not in served.chat_template
    for talk in CONVERSATIONS:
        for header in (True, False):
            said = [t.apply_chat_template(talk, tokenize=False, add_generation_prompt=header)
                    for t in (trained, served)]  # fmt: skip
            assert said[0] == said[1]


def test_older_readers_find_what_they_look_for(exported):
    out = exported / "out"
    said = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert said["chat_template"] == (out / "chat_template.jinja").read_text(encoding="utf-8")
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in said
    assert "<|im_end|>" in said["additional_special_tokens"]
    assert (out / "tokenizer.json").is_file()
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert config["pad_token_id"] not in json.loads(
        (out / "generation_config.json").read_text()
    )["eos_token_id"]  # fmt: skip


def test_large_weights_are_sharded_with_an_index(exported, tmp_path):
    export(exported / "model", tmp_path / "out", max_shard_size="20KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 1
    assert all((tmp_path / "out" / name).is_file() for name in files)
    ids = torch.tensor([[5, 9, 33]])
    with torch.no_grad():
        assert torch.equal(tp.causal(tmp_path / "out")(ids).logits,
                           tp.causal(exported / "model")(ids).logits)  # fmt: skip
