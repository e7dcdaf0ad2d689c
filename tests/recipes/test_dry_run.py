"""--dry_run and --print_config: what a run would do, without doing it."""

from __future__ import annotations

import re

import pytest
import recipe_runs as rr
import yaml

from align.config import METHODS, load_config
from align.dry_run_size import meta_module

CONFIGS = sorted((rr.ROOT / "recipes" / "configs").glob("*.yaml"))
LORA = ["--policy.lora.r", "4"]


@pytest.fixture
def empty(tmp_path):
    with rr.inside(tmp_path):
        yield tmp_path


def dry(capsys, recipe, *words):
    """(text before the batches, batches, example, size) of a dry run of the smoke configuration."""
    file = [] if "--config" in words else ["--config", rr.SMOKE]
    assert rr.main_of(recipe)([*file, "--dry_run", *words]) == 0
    out = capsys.readouterr().out
    assert out.endswith("Nothing was trained or written.\n")
    head, _, rest = out.partition("# batches\n")
    batches, _, rest = rest.partition("# one example (⟦…⟧ is in the loss)\n")
    shown, _, size = rest.partition("# size\n")
    return head, batches, shown, size


def cost_of(capsys, recipe, *words):
    """The last block of a dry run."""
    return dry(capsys, recipe, *words)[3].partition("# cost\n")[2]


@pytest.mark.parametrize("recipe", [r for r in rr.TRAINING if rr.METHOD.get(r, r) != "tokenizer"])
def test_the_cost_of_a_step(empty, capsys, recipe):
    text = cost_of(capsys, recipe)
    assert "TFLOP" in text
    table = [line for line in text.splitlines() if re.match(r" +\d+ \|", line)]
    assert [int(line.split("|")[0]) for line in table] == [1, 8, 64, 1024]
    for line in table:  # weights, gathered, gradients, optimizer, activations
        *parts, total = map(float, line.split("|")[1].split())
        assert total == pytest.approx(sum(parts), abs=0.04)


def test_the_cost_follows_the_batch_and_the_passes(empty, capsys):
    def operations(recipe, *words):
        found = re.search(r"([\d.e-]+) TFLOP", cost_of(capsys, recipe, *words))
        assert found
        return float(found[1])

    size = "--train.per_device_train_batch_size"
    assert operations("dpo", size, "8") == pytest.approx(2 * operations("dpo", size, "4"), rel=0.05)
    alone = operations("dpo", size, "8", "--policy.layout", "plain")
    assert alone > operations("dpo", size, "8")  # prompts are read twice
    shared = operations("ppo", "--ppo.critic", "shared")
    assert shared < operations("ppo", "--ppo.critic", "separate")


def test_zero_stages_in_the_cost(empty, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    whole = "while it samples a process holds the whole policy as well"
    text = cost_of(capsys, "sft")
    assert "ZeRO stage 3" in text
    assert whole not in text
    assert whole in cost_of(capsys, "ppo")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    assert whole not in cost_of(capsys, "ppo")


@pytest.mark.parametrize("recipe", rr.TRAINING)
def test_a_dry_run_shows_a_plan_and_writes_nothing(empty, capsys, recipe):
    head, batches, shown, size = dry(capsys, recipe)
    method = rr.METHOD.get(recipe, recipe)
    assert yaml.safe_load(head.removeprefix("# configuration\n"))["train"]["max_steps"] == 4
    assert batches.strip()
    assert "春" in shown
    assert ("trained" in size) == (method != "tokenizer")
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("recipe", rr.TRAINING)
def test_a_dry_run_before_the_demo_says_what_comes_first(empty, capsys, recipe):
    """No argument but --dry_run in an empty folder: the embedded default, nothing built yet."""
    assert rr.main_of(recipe)(["--dry_run"]) == 0
    out = capsys.readouterr().out
    needed = {
        "tokenizer": "the demo's data", "pretrain": "the demo's data",
        "sft": "the demo's data, pretrain", "reward": "the demo's data, pretrain, sft",
        "dpo": "the demo's data, pretrain, sft", "orpo": "the demo's data, pretrain, sft",
        "ppo": "the demo's data, pretrain, sft, reward",
    }[rr.METHOD.get(recipe, recipe)]  # fmt: skip
    assert f"# built first, because `auto` refers to them: {needed}\n" in out
    assert list(empty.iterdir()) == []


def test_batch_arithmetic(empty, capsys):
    words = ["--train.per_device_train_batch_size", "3", "--train.gradient_accumulation_steps", "5"]
    assert (
        "3 per device × 1 process(es) × 5 accumulation = 15 examples a step"
        in dry(capsys, "sft", *words)[1]
    )
    assert "= 15 preference groups a step" in dry(capsys, "dpo", *words)[1]
    assert (
        "= 15 rows a step\n  × block_size 64 = 960 tokens a step"
        in dry(capsys, "pretrain", *words)[1]
    )
    ppo = dry(capsys, "ppo", "--train.max_steps", "12")[1]
    assert "4 prompts × 2 = 8 completions of at most 16 tokens" in ppo
    assert "2 passes × 2 minibatches of 4 = 4 optimiser steps an update, 2 completions" in ppo
    assert "for 12 steps = 3 updates" in ppo
    epochs = dry(capsys, "sft", "--train.max_steps", "-1", "--train.num_train_epochs", "2.5")[1]
    assert "for 2.5 epochs" in epochs


def test_batch_arithmetic_of_two_ranks(empty, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "2 per device × 2 process(es) × 1 accumulation = 4 examples" in dry(capsys, "sft")[1]
    assert "4 on each of 2" in dry(capsys, "ppo")[1]


def test_the_mask_of_each_method(empty, capsys):
    prompt = "<|im_start|>user\n春天有哪些花？<|im_end|>\n<|im_start|>assistant\n"
    better, worse = "春天有樱花、桃花、杏花和油菜花。", "不知道。"
    assert dry(capsys, "sft")[2].strip() == f"{prompt}⟦{better}<|im_end|>⟧"
    assert dry(capsys, "ppo")[2].strip() == f"{prompt}⟦sampled completion⟧"
    preferred = "  0 is preferred to 1 with probability 1, weight 1"
    for recipe in ("dpo", "orpo"):
        assert dry(capsys, recipe)[2].strip() == (
            f"[candidate 0] {prompt}⟦{better}<|im_end|>⟧\n"
            f"[candidate 1] {prompt}⟦{worse}<|im_end|>⟧\n{preferred}"
        )
    # A reward model reads everything and answers at the last token.
    assert f"{prompt}{better}⟦<|im_end|>⟧\n" in dry(capsys, "reward")[2]
    assert dry(capsys, "sft", "--sft.loss_on", "all")[2].count("⟦") == 1
    text = dry(capsys, "pretrain")[2]
    assert text.startswith("春⟦天有樱花、桃花、杏花和油菜花。<|endoftext|>")


def test_the_example_is_cut_as_training_cuts_it(empty, capsys):
    shown = dry(capsys, "sft", "--data.max_length", "48", "--data.max_prompt_length", "40")[2]
    assert "(cut to data.max_length)" not in shown
    shown = dry(capsys, "sft", "--data.max_length", "30", "--data.max_prompt_length", "25")[2]
    assert "(cut to data.max_length)" in shown
    assert "<|im_start|>assistant\n⟦" in shown  # the header stays


# Sizes of the smoke model, by hand: V = 560 is asked for, and V is what the tokenizer has.
# A block: q 32², k and v 32·16 each, o 32², three of the MLP 32·64, two norms 32.
BLOCK = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
BODY = 560 * 32 + 2 * BLOCK + 32
# LoRA of rank r on a layer of n inputs and m outputs is r·(n + m).
ADAPTERS = 4 * 2 * (2 * 64 + 2 * 48 + 3 * 96)


@pytest.mark.parametrize(
    ("recipe", "words", "every", "trained"),
    [
        ("sft", [], BODY, BODY),
        ("dpo", [], 2 * BODY, BODY),
        ("dpo", LORA, BODY + ADAPTERS, ADAPTERS),
        ("dpo", [*LORA, "--policy.reference", "frozen"], 2 * BODY + ADAPTERS, ADAPTERS),
        ("dpo", ["--policy.reference", "cached"], BODY, BODY),
        ("dpo", ["--dpo.loss_type", "simpo"], BODY, BODY),
        ("orpo", [], BODY, BODY),
        ("reward", [], BODY + 32, BODY + 32),
        ("reward", [*LORA, "--reward.heads", "3"], BODY + ADAPTERS + 96, ADAPTERS + 96),
        ("ppo", [], 3 * BODY + 32, 2 * BODY + 32),
        ("ppo", LORA, BODY + 2 * ADAPTERS + 33, 2 * ADAPTERS + 33),
        ("ppo", ["--ppo.critic", "shared"], 2 * BODY + 33, BODY + 33),
    ],
)
def test_parameters_by_hand(empty, capsys, recipe, words, every, trained):
    size = dry(capsys, recipe, *words)[3]
    assert f"  {every:,} parameters in all, {trained:,} trained" in size


@pytest.mark.parametrize(
    ("recipe", "words"),
    [("dpo", []), ("dpo", LORA), ("reward", LORA), ("ppo", LORA), ("ppo", [])],
)
def test_the_estimate_is_of_the_module_that_trains(empty, recipe, words):
    from align.policy import Policy

    method = rr.METHOD.get(recipe, recipe)
    config = load_config(method, ["--config", rr.SMOKE, *words])
    role = "reward" if method == "reward" else "policy"
    real = Policy.load(config, role=role, critic=method == "ppo").module
    planned = meta_module(config, 560)

    def shapes(module):
        return {n: (tuple(p.shape), p.requires_grad) for n, p in module.named_parameters()}

    assert planned is not None
    assert shapes(planned) == shapes(real)


def test_memory_by_hand(empty, capsys):
    million = ["--pretrain.n_embd", "256", "--pretrain.intermediate_size", "1024"]
    size = dry(capsys, "sft", *million)[3]
    block = 256 * 256 * 2 + 2 * 256 * 128 + 3 * 256 * 1024 + 2 * 256
    parameters = 560 * 256 + 2 * block + 256
    assert f"{4 * parameters / 2**20:.1f} MiB of weights" in size
    assert f"{12 * parameters / 2**20:.1f} MiB of gradients and Adam's" in size
    size = dry(capsys, "sft", *million, "--policy.dtype", "bfloat16")[3]
    assert f"{2 * parameters / 2**20:.1f} MiB of weights" in size
    assert f"{6 * parameters / 2**20:.1f} MiB of gradients" in size


@pytest.mark.parametrize("file", CONFIGS, ids=lambda p: p.name)
@pytest.mark.parametrize("method", METHODS)
def test_print_config_of_every_shipped_file_loads_to_itself(
    tmp_path, capsys, monkeypatch, file, method
):
    monkeypatch.chdir(rr.ROOT)
    recipe = {v: k for k, v in rr.METHOD.items()}.get(method, method)
    words = ["--config", str(file), "--train.seed", "11"]
    assert rr.main_of(recipe)([*words, "--print_config"]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_config(method, ["--config", str(printed)]) == load_config(method, words)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda p: p.name)
def test_shipped_files_hold_every_section(file):
    loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    contract = {
        "policy", "data", "train", "sft", "reward", "dpo", "orpo", "ppo", "rollout", "rewards",
        "eval",
    }  # fmt: skip
    assert contract <= set(loaded)


def test_help_names_every_key_of_every_section(capsys):
    """The docs say the same: see tests/recipes/test_docs.py."""
    assert rr.main_of("dpo")(["--help"]) == 0
    text = capsys.readouterr().out
    keys = set(re.findall(r"--([a-z_]+\.[a-z_.0-9]+)", text))
    assert {
        "policy.lora.r", "data.chat_template", "train.loss_spike.action", "dpo.loss_type",
        "ppo.missing_eos.mode", "rewards.0.path", "rollout.n", "eval.seeds", "pretrain.arch",
    } <= keys  # fmt: skip
