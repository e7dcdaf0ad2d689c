"""Adapter-only exports: the right base, only the LoRA, several by name; peft gives the policy."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "policy"))
import tiny_policies as tp

from align.config_errors import Failed, UserError
from align.export.adapter import export_adapter, find_adapter
from align.export.adapter_folder import read_adapters, read_base, serve_args
from align.export.command import main

IDS = torch.tensor([[5, 9, 33, 101, 7]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def by_peft(folder: Path) -> torch.Tensor:
    from peft import AutoPeftModelForCausalLM

    return logits(AutoPeftModelForCausalLM.from_pretrained(folder, dtype="float32"))


def lora_run(folder: Path, base: str, seed: int = 3, **more) -> Path:
    """What a run with LoRA leaves: final/ merged, final/adapter, a manifest."""
    from peft import PeftModel

    final = folder / "final"
    tp.adapter(final / "adapter", base, seed, **more)
    merged = PeftModel.from_pretrained(tp.causal(base), str(final / "adapter")).merge_and_unload()
    merged.save_pretrained(final)
    tp.words().save_pretrained(final)
    manifest = {"method": "ppo", "finished": True,
                "inputs": {"policy.path": {"path": base, "sha256": "x"}}}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def base(tmp_path) -> str:
    return tp.save(tmp_path / "model")


def test_base_and_adapter_give_the_policy(base, tmp_path, capsys):
    run = lora_run(tmp_path / "runs" / "ppo", base)
    assert main(["--model", str(run), "--to", "adapter", "--license", "mit", "--parity", "4"]) == 0
    out = run / "export" / "adapter"
    torch.testing.assert_close(by_peft(out), logits(tp.causal(run / "final")), atol=1e-5, rtol=0)
    assert (by_peft(out) - logits(tp.causal(base))).abs().max() > 1e-2
    said = json.loads((out / "adapter_config.json").read_text())
    assert said["task_type"] == "CAUSAL_LM"
    assert said["base_model_name_or_path"] == str(Path(base).resolve())
    assert not (out / "base").exists()  # a model that was not made here is only named
    assert not (out / "model.safetensors").exists()
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"]
    assert len((out / "parity.jsonl").read_text().splitlines()) == 4
    assert "LoRA of rank 4" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    assert "license: mit" in card
    assert str(tmp_path) not in card


def test_an_adapter_on_a_tuned_base_comes_with_that_base(base, tmp_path):
    """SFT is a merged LoRA: PPO's adapter belongs to it, and not to the model below."""
    sft = lora_run(tmp_path / "runs" / "sft", base, seed=3)
    ppo = lora_run(tmp_path / "runs" / "ppo", str(sft / "final"), seed=4)
    out = tmp_path / "out"
    report = export_adapter(ppo, out)
    named = json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str((out / "base").resolve()) == report["base"]
    assert torch.equal(logits(tp.causal(out / "base")), logits(tp.causal(sft / "final")))
    torch.testing.assert_close(by_peft(out), logits(tp.causal(ppo / "final")), atol=1e-5, rtol=0)
    # The un-tuned model has the same shape; naming it is caught by what it computes.
    with pytest.raises(Failed, match="un-tuned model of the same shape"):
        export_adapter(ppo, tmp_path / "wrong", base=base)
    assert not (tmp_path / "wrong").exists()
    tuned = str(sft / "final")
    assert export_adapter(ppo, tmp_path / "named", base=tuned)["base"] == tuned
    card = (tmp_path / "named" / "README.md").read_text()
    assert "a local folder named final" in card
    assert str(tmp_path) not in card


def test_a_hub_id_is_named_and_said_to_be_unchecked(base, tmp_path):
    run = lora_run(tmp_path / "ppo", base)
    report = export_adapter(run, tmp_path / "out", base="org/model")
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == "org/model"
    assert "base_model: org/model" in (tmp_path / "out" / "README.md").read_text()
    assert any("not compared with model" in note for note in report["notes"])


def test_a_pattern_of_targets_becomes_names(base, tmp_path):
    run = lora_run(tmp_path / "ppo", base, target_modules=r".*\.0\..*(q|v)_proj", r=12)
    export_adapter(run, tmp_path / "out")
    assert "--max-lora-rank 16 " in (tmp_path / "out" / "README.md").read_text()
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    layers = [f"model.layers.0.self_attn.{n}_proj" for n in "qv"]
    assert said["target_modules"] == layers
    wanted = logits(tp.causal(run / "final"))
    torch.testing.assert_close(by_peft(tmp_path / "out"), wanted, atol=1e-5, rtol=0)


def test_what_is_no_adapter_is_refused(base, tmp_path):
    with pytest.raises(UserError, match="full fine-tune, whose weights all changed"):
        main(["--model", base, "--to", "adapter"])
    run = lora_run(tmp_path / "ppo", base)
    with pytest.raises(UserError, match="holds no peft folder"):
        main(["--checkpoint", str(run), "--to", "adapter"])
    from safetensors.torch import load_file, save_file

    weights = run / "final" / "adapter" / "adapter_model.safetensors"
    state = load_file(weights)
    save_file(state | {"base_model.model.score.weight": torch.zeros(1, 32)}, weights)
    with pytest.raises(UserError, match=r"more than a LoRA \(base_model.model.score"):
        find_adapter(run)
    weights.write_bytes(b"cut")
    with pytest.raises(UserError, match="that can be read"):
        find_adapter(run)
    run = lora_run(tmp_path / "gone", base)
    shutil.rmtree(base)
    with pytest.raises(UserError, match="which is gone"):
        find_adapter(run)


def test_several_adapters_in_one_folder(base, tmp_path, capsys):
    runs = [lora_run(tmp_path / n, base, seed=i, r=r) for i, (n, r) in enumerate(
        [("sft", 4), ("dpo", 4), ("ppo", 16)])]  # fmt: skip
    words = [f"{run.name}={run}" for run in runs]
    out = tmp_path / "all"
    more = ["--to", "adapter", "--output", str(out), "--parity", "2"]
    assert main(["--adapters", *words, *more]) == 0
    assert "LoRA of rank 16 on base" in capsys.readouterr().out
    assert read_adapters(out) == [
        ("sft", out / "adapters/sft", 4), ("dpo", out / "adapters/dpo", 4),
        ("ppo", out / "adapters/ppo", 16),
    ]  # fmt: skip
    assert read_base(out) == str(out / "base")
    for run in runs:
        got = by_peft(out / "adapters" / run.name)
        torch.testing.assert_close(got, logits(tp.causal(run / "final")), atol=1e-5, rtol=0)
    wanted = ("--enable-lora --max-lora-rank 16 --max-loras 3 --lora-modules sft=adapters/sft "
              "dpo=adapters/dpo ppo=adapters/ppo")  # fmt: skip
    assert (out / "serve_args.txt").read_text().strip() == wanted
    assert wanted in (out / "README.md").read_text()
    shutil.rmtree(out / "adapters" / "dpo")
    with pytest.raises(UserError, match="lacks the adapter dpo"):
        read_adapters(out)
    with pytest.raises(UserError, match=r"no adapters\.json that can be read"):
        read_adapters(tmp_path)


def test_adapters_of_other_bases_templates_and_names_are_refused(base, tmp_path):
    one = lora_run(tmp_path / "one", base)
    other = lora_run(tmp_path / "two", tp.save(tmp_path / "other", seed=9))
    out = ["--to", "adapter", "--output", str(tmp_path / "out")]

    def refused(*words):
        with pytest.raises(UserError) as error:
            main(["--adapters", *words, *out])
        return str(error.value)

    assert "is on another base" in refused(f"a={one}", f"b={other}")
    assert "uses the name a twice" in refused(f"a={one}", f"a={one}")
    assert "uses the name base, the base's" in refused(f"base={one}")
    assert "is not NAME=PATH" in refused(str(one))
    same = lora_run(tmp_path / "three", base, seed=5)
    tp.words(template="inst").save_pretrained(same / "final")
    assert "another chat template than a" in refused(f"a={one}", f"b={same}")
    with pytest.raises(UserError, match="is needed with --adapters"):
        main(["--adapters", f"a={one}", "--to", "adapter"])
    with pytest.raises(UserError, match="are for --to adapter alone"):
        main(["--adapters", f"a={one}", "--output", "x"])
    assert not (tmp_path / "out").exists()


def test_the_rank_limit_is_one_that_vllm_takes():
    assert serve_args([("a", "x", 4)])[:3] == ["--enable-lora", "--max-lora-rank", "8"]
    assert serve_args([("a", "x", 4), ("b", "y", 48)])[2] == "64"
    assert serve_args([("a", "x", 513)])[2] == "513"
