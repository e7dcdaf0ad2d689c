"""export_model --to: which folder, all forms checked before the first, words of a config file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "evaluation"))
import eval_models as tiny

from align.config_errors import UserError
from align.export import formats
from align.export.command import main, parser
from align.tools import to_words


def test_where_a_form_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/ppo/final").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    place = formats.places
    assert place(["hf"], "runs/ppo", None) == {"hf": Path("runs/ppo/export/hf")}
    assert place(["gguf"], "runs/ppo/final", None) == {"gguf": Path("runs/ppo/export/gguf")}
    assert place(["hf"], "runs/ppo/checkpoint-20", None) == {
        "hf": Path("runs/ppo/export/checkpoint-20/hf")
    }
    assert place(["hf"], "runs/ppo/final/adapter", None) == {"hf": Path("runs/ppo/export/hf")}
    assert place(["hf"], "model", None) == {"hf": Path("model-export/hf")}
    assert place(["hf"], "model/", None) == {"hf": Path("model-export/hf")}
    assert place(["hf"], "runs/ppo", "out") == {"hf": Path("out")}
    both = {"hf": Path("out/hf"), "bnb-4bit": Path("out/bnb-4bit")}
    assert place(["hf", "bnb-4bit"], "runs/ppo", "out") == both
    with pytest.raises(UserError, match="names hf twice"):
        place(["hf", "gguf", "hf"], "runs/ppo", None)


def test_every_form_has_a_line_of_help():
    names = ["hf", "adapter", "gguf", "awq", "gptq", "w8a8", "bnb-4bit", "bnb-8bit", "int8"]
    assert list(formats.FORMATS) == names
    text = parser().format_help()
    assert all(f"  {name} " in text for name in names)
    args = parser().parse_args(["--model", "x"])
    assert (args.to, args.output) == (["hf"], None)
    with pytest.raises(SystemExit):
        parser().parse_args(["--model", "x", "--to", "ggfu"])


def test_a_list_in_a_config_file_is_several_forms():
    words = to_words({"model": "m", "to": ["hf", "gguf"], "overwrite": True})
    args = parser().parse_args(words)
    assert (args.to, args.overwrite) == (["hf", "gguf"], True)


def test_nothing_is_written_where_one_of_several_cannot_be(tmp_path):
    run = tiny.save(tmp_path / "run", 0)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="full fine-tune"):
        main(["--model", str(run), "--to", "hf", "adapter", "--output", str(out)])
    assert not out.exists()
    taken = out / "adapter"
    taken.mkdir(parents=True)
    (taken / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        main(["--model", str(run), "--to", "hf", "adapter", "--output", str(out)])
    assert [p.name for p in out.iterdir()] == ["adapter"]


def test_the_default_output_of_a_run(tmp_path, capsys):
    run = tiny.save(tmp_path / "run", 0)
    assert main(["--model", str(run / "final"), "--parity", "1"]) == 0
    files = {p.name for p in (run / "export" / "hf").iterdir()}
    assert files == {
        "README.md", "chat_template.jinja", "config.json", "export.json", "generation_config.json",
        "model.safetensors", "parity.jsonl", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert "largest logit difference 0.0e+00" in capsys.readouterr().out
    with pytest.raises(UserError, match="not empty"):
        main(["--model", str(run)])


def test_wrong_options_are_refused_before_anything_is_loaded(tmp_path):
    run = tiny.save(tmp_path / "run", 0)
    with pytest.raises(UserError, match="max_shard_size='5 gigs' is no size"):
        main(["--model", str(run), "--max_shard_size", "5 gigs"])
    reward = tmp_path / "rm"
    reward.mkdir()
    (reward / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    with pytest.raises(UserError, match="gives no text"):
        main(["--model", str(reward)])
