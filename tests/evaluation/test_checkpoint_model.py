"""A run's checkpoints, read back: the logits are those of the model that was saved."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import eval_models as tiny

from align.config_errors import UserError
from align.evaluation.checkpoint_model import holds_policy, load_at


def save_state(model, folder: Path, **more) -> Path:
    """Trainable weights under the training module's names."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    tied = "lm_head.weight"
    own = {f"lm.{n}": p.detach().clone().contiguous() for n, p in model.named_parameters()
           if p.requires_grad and n != tied}  # fmt: skip
    save_file({**own, **more}, folder / "model.safetensors")
    return folder


def logits(model, tokenizer):
    import torch

    ids = torch.tensor([tokenizer("写一条好评 good", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        return model(ids).logits


def test_full_weights(tmp_path):
    import torch

    final = tiny.save(tmp_path / "dpo", 1) / "final"
    earlier = tiny.gpt2(7)
    folder = save_state(earlier, tmp_path / "dpo" / "checkpoint-3",
                        **{"critic.transformer.wte.weight": torch.ones(2)})  # fmt: skip
    assert holds_policy(folder)
    model, tokenizer = load_at(folder, final)
    assert tokenizer.chat_template
    torch.testing.assert_close(logits(model, tokenizer), logits(earlier, tokenizer))
    assert not any(p.requires_grad for p in model.parameters())


def test_adapter_weights_without_those_of_the_critic(tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    base = tiny.save(tmp_path / "base", 0) / "final"
    run = tmp_path / "ppo"
    lora = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = get_peft_model(tiny.gpt2(0), lora)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(run / "final" / "adapter")
    tiny.gpt2(0).save_pretrained(run / "final")
    tiny.tokenizer("zh_instruction").save_pretrained(run / "final")
    torch.manual_seed(5)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    critic = "lm.base_model.model.transformer.h.0.attn.c_attn.lora_A.critic.weight"
    folder = save_state(model, run / "checkpoint-9", **{critic: torch.ones(2, 16)})
    read, tokenizer = load_at(folder, run / "final")
    assert (
        "###" in tokenizer.chat_template or "指令" in tokenizer.chat_template
    )  # final's, not base's
    torch.testing.assert_close(logits(read, tokenizer), logits(model.eval(), tokenizer),
                               atol=1e-5, rtol=1e-5)  # fmt: skip
    plain = logits(tiny.gpt2(0), tokenizer)
    assert float((logits(read, tokenizer) - plain).abs().max()) > 0.01


def test_weights_of_another_model_are_refused(tmp_path):
    import torch
    from safetensors.torch import save_file

    final = tiny.save(tmp_path / "dpo", 1) / "final"
    for number, content in enumerate([{"lm.other.weight": torch.ones(2)}, {"x": torch.ones(2)}]):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        save_file(content, folder / "model.safetensors")
        with pytest.raises(UserError, match="does not hold the weights"):
            load_at(folder, final)
    (folder / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="no weights that can be read"):
        load_at(folder, final)
