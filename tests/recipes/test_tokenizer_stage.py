"""recipes/train_tokenizer.py from the command line: files, report, extension, refusals."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import recipe_runs as rr
from transformers import AutoModelForCausalLM, AutoTokenizer

ZH = (("酒店", "房间", "早餐", "服务"), ("位置", "价格", "味道"), ("下次还来", "不错", "值得推荐"))
EN = (("room", "staff", "breakfast", "price"), ("good", "bad", "clean"), ("cheap", "near", "kind"))
TEXT = [
    *(f"{a}的{b}很好，{c}。" for a, b, c in itertools.product(*ZH)),
    *(f"the {a} was {b} and {c}" for a, b, c in itertools.product(*EN)),
]


@pytest.fixture
def corpus(tmp_path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(TEXT) + "\n", encoding="utf-8")
    return file


def run(tmp_path, corpus, *words):
    """Exit code of the recipe with a configuration of its own."""
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps({"data": {"text": str(corpus), "max_length": 64}}), "utf-8")
    out = ["--train.output_dir", str(tmp_path / "run")]
    return rr.main_of("train_tokenizer")(["--config", str(file), *out, *words])


@pytest.mark.parametrize("kind", ["bpe", "unigram", "byte_bpe", "char_bpe"])
def test_a_run_leaves_a_tokenizer_figures_and_a_report(tmp_path, corpus, kind, capsys):
    size = "320" if kind == "unigram" else "380"
    assert run(tmp_path, corpus, "--tokenizer.kind", kind, "--tokenizer.vocab_size", size) == 0
    final = tmp_path / "run" / "final"
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert len(tokenizer) == int(size)
    assert tokenizer.model_max_length == 64
    assert "generation" in tokenizer.chat_template
    assert (final / "tokenizer.model").exists() is (kind in ("bpe", "unigram"))
    (row,) = rr.rows(tmp_path / "run" / "metrics.jsonl")
    names = {"chars_per_token", "bytes_per_token", "byte_fallback_share", "tokens", "vocab_size",
             "fertility", "unknown_rate", "vocabulary_coverage", "fertility/zh",
             "fertility/latin"}  # fmt: skip
    assert names <= row.keys()
    assert row["fertility/latin"] < row["fertility/zh"] < 2
    assert rr.counts(tmp_path / "run")[0]["used"] == 72
    assert "72 texts" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Fit by language" in page
    assert page.count('class="k0"') > 4


def test_a_comparison_is_in_the_report(tmp_path, corpus):
    other = rr.tiny_model(tmp_path / "other")
    words = ["--tokenizer.vocab_size", "380", "--tokenizer.compare_with", json.dumps([str(other)])]
    assert run(tmp_path, corpus, *words) == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<td>other</td>" in page
    assert "tokens than other." in page


def test_extend_on_the_command_line_writes_tokenizer_and_model(tmp_path, corpus):
    base = rr.tiny_model(tmp_path / "base")
    words = ["--extend", str(base), "--tokenizer.vocab_size", "440"]
    assert run(tmp_path, corpus, *words) == 0
    final = tmp_path / "run" / "final"
    model = AutoModelForCausalLM.from_pretrained(final)
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert len(tokenizer) == 440 == model.config.vocab_size
    assert AutoTokenizer.from_pretrained(base).chat_template == tokenizer.chat_template
    (row,) = rr.rows(tmp_path / "run" / "metrics.jsonl")
    assert row["fertility"] < row["base_fertility"]
    written = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    assert f"extend: {base}" in written
    assert rr.manifest(tmp_path / "run")["inputs"]["tokenizer.extend"]["sha256"]


def test_an_extended_folder_is_where_training_goes_on(tmp_path, corpus):
    base = rr.tiny_model(tmp_path / "base")
    assert run(tmp_path, corpus, "--extend", str(base), "--tokenizer.vocab_size", "420") == 0
    text = {"data": {"text": str(corpus), "max_length": 64}, "pretrain": {"block_size": 32}}
    text["policy"] = {"path": str(tmp_path / "run" / "final")}
    text["train"] = {"output_dir": str(tmp_path / "more"), "max_steps": 1}
    file = rr.settings(tmp_path, **text)
    assert rr.main_of("pretrain")(["--config", str(file)]) == 0
    assert (
        AutoModelForCausalLM.from_pretrained(tmp_path / "more" / "final").config.vocab_size == 420
    )


WRONG = {
    "large": (["--tokenizer.vocab_size", "9000"], ["tokenizer.vocab_size=9000", "at most", "Use "]),
    "small": (["--tokenizer.vocab_size", "270"], ["tokenizer.vocab_size=270", "or more"]),
    "kind": (["--tokenizer.kind", "unigramm"], ["tokenizer.kind='unigramm'", "'unigram'"]),
    "key": (["--tokenizer.vocabsize", "9"], ["Did you mean 'tokenizer.vocab_size'?"]),
    "coverage": (["--tokenizer.character_coverage", "1.5"], ["above the largest", "≤ 1"]),
    "symbol": (["--tokenizer.control_symbols", "['a b']"], ["tokenizer.control_symbols.0='a b'"]),
    "base": (["--extend", "./nowhere"], ["tokenizer.extend='./nowhere'", "does not exist"]),
    "other": (["--tokenizer.compare_with", "[./nowhere]"], ["tokenizer.compare_with.0"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_ends_with_2_and_leaves_nothing_half_written(tmp_path, corpus, case, capsys):
    words, parts = WRONG[case]
    assert run(tmp_path, corpus, *words) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    assert all(part in message for part in parts), message
    left = {p.name for p in (tmp_path / "run").rglob("*")} if (tmp_path / "run").exists() else set()
    assert left <= {"config.yaml", "manifest.json", "report.html"}


@pytest.mark.parametrize("kind", ["bpe", "byte_bpe", "char_bpe"])
@pytest.mark.parametrize("text", ["", "\n \n\n"])
def test_an_empty_corpus_is_named(tmp_path, corpus, kind, text, capsys):
    corpus.write_text(text, encoding="utf-8")
    assert run(tmp_path, corpus, "--tokenizer.kind", kind, "--tokenizer.vocab_size", "300") == 2
    message = capsys.readouterr().err
    assert f"data.text='{corpus}'" in message
    assert "no text" in message
    assert not (tmp_path / "run" / "final").exists()


def test_half_a_surrogate_pair_is_named(tmp_path, corpus, capsys):
    file = tmp_path / "bad.jsonl"
    file.write_text('{"text": "好 ok"}\n{"text": "a\\ud800b"}\n', encoding="utf-8")
    assert run(tmp_path, file, "--tokenizer.vocab_size", "380") == 2
    assert "surrogate pair in text 2, character 2" in capsys.readouterr().err
    words = ["--tokenizer.vocab_size", "380", "--data.validation", str(file)]
    assert run(tmp_path, corpus, *words) == 2
    assert "data.validation" in capsys.readouterr().err
    assert not (tmp_path / "run" / "final").exists()


def test_a_size_not_above_the_bases_is_refused(tmp_path, corpus, capsys):
    base = rr.tiny_model(tmp_path / "base")
    assert run(tmp_path, corpus, "--extend", str(base), "--tokenizer.vocab_size", "400") == 2
    assert "is not above the 400 entries" in capsys.readouterr().err


def test_a_failed_run_leaves_the_earlier_result(tmp_path, corpus):
    assert run(tmp_path, corpus, "--tokenizer.vocab_size", "380") == 0
    before = (tmp_path / "run" / "final" / "tokenizer.json").read_bytes()
    assert run(tmp_path, corpus, "--tokenizer.vocab_size", "9000") == 2
    assert (tmp_path / "run" / "final" / "tokenizer.json").read_bytes() == before
    assert [p.name for p in (tmp_path / "run").iterdir() if p.name.startswith(".")] == []


def test_extend_does_not_belong_to_a_fresh_model(tmp_path, corpus, capsys):
    base = rr.tiny_model(tmp_path / "base")
    file = rr.settings(
        tmp_path, policy={"path": None}, data={"text": str(corpus)},
        tokenizer={"extend": str(base)},
    )  # fmt: skip
    assert rr.main_of("pretrain")(["--config", str(file)]) == 2
    assert "tokenizer.extend" in capsys.readouterr().err
