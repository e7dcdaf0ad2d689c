"""Exports: merged weights, stop tokens, refusals, and the parity check itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "evaluation"))
import eval_models as tiny

from align.config import UserError
from align.export import hf as ex
from align.export.command import main

IDS = torch.tensor([[5, 9, 33, 101, 7]])


def logits(folder: Path, ids: torch.Tensor = IDS) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype="float32")(ids).logits


@pytest.fixture
def run(tmp_path) -> Path:
    return tiny.save(tmp_path / "runs" / "ppo", 0)


def test_export_of_a_run_directory(run, tmp_path, capsys):
    from transformers import AutoTokenizer, GenerationConfig

    out = tmp_path / "out"
    assert main(["--model", str(run), "--output", str(out)]) == 0
    assert torch.equal(logits(out), logits(run / "final"))
    tok = AutoTokenizer.from_pretrained(out)
    assert tok.chat_template
    config = GenerationConfig.from_pretrained(out)
    stops = {tok.convert_tokens_to_ids("<|im_end|>"), tok.eos_token_id}
    assert set(config.eos_token_id) == stops
    assert config.pad_token_id == tok.pad_token_id
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "runs"]
    assert json.loads((out / "export.json").read_text())["max_logit_difference"] == 0
    assert "parameters" in capsys.readouterr().out


def test_lora_adapter_is_merged(run, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(run / "final")
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    model.eval()
    with torch.no_grad():
        wanted = model(IDS).logits.clone()
    model.save_pretrained(tmp_path / "adapter")
    ex.export(tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    torch.testing.assert_close(logits(tmp_path / "out"), wanted, atol=1e-5, rtol=1e-5)
    assert (wanted - logits(run / "final")).abs().max() > 1e-3


def test_dtype_casts_and_is_what_servers_read(run, tmp_path):
    report = ex.export(run, tmp_path / "out", dtype="bfloat16")
    assert ex.stored_dtype(tmp_path / "out") == "bfloat16"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert report["reload_difference"] == 0
    assert 0 < report["max_logit_difference"] < 1
    # A second export keeps what is stored.
    assert ex.export(tmp_path / "out", tmp_path / "again")["dtype"] == "bfloat16"


def test_non_empty_output_is_refused_unless_asked(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        ex.export(run, out)
    assert (out / "mine.txt").read_text() == "keep"
    ex.export(run, out, overwrite=True)
    assert not (out / "mine.txt").exists()
    assert (out / "model.safetensors").is_file()


def test_output_over_its_own_source_is_refused(run):
    for target in (run / "final", run):
        with pytest.raises(UserError, match="contains the model"):
            ex.export(run, target, overwrite=True)
    assert (run / "final" / "config.json").is_file()


def test_wrong_input_is_a_user_error(run, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        ex.export(tmp_path / "none", tmp_path / "out")
    with pytest.raises(UserError, match="not supported"):
        ex.export(run, tmp_path / "out", dtype="int3")
    (run / "final" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        ex.export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_changed_on_disk_is_not_exported(run, tmp_path, monkeypatch):
    """The parity check must be able to fail: damage the weights between saving and loading."""
    load = ex.load_causal_lm

    def damaged(path, **kw):
        model, tok = load(path, **kw)
        if Path(path).name.endswith(".partial"):
            with torch.no_grad():
                model.transformer.ln_f.bias.add_(0.01)
        return model, tok

    monkeypatch.setattr(ex, "load_causal_lm", damaged)
    with pytest.raises(RuntimeError, match="nothing was written"):
        ex.export(run, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_newest_checkpoint_is_found(run, tmp_path):
    from align.checkpoints import find_model

    (run / "final").rename(run / "checkpoint-20")
    tiny.gpt2(3).save_pretrained(run / "checkpoint-100")
    assert find_model(run).name == "checkpoint-100"
