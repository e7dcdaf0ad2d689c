"""Whole runs of pre-training: what each option does, exact resume, and what is refused."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from align.run import run

sys.path.insert(0, str(Path(__file__).parent))
import small_runs as runs
from test_resume import in_parts

# 16 rows of 64 tokens, four a step: steps 3 and 7 are inside an epoch.
STOPS = (3, 7)
ENGLISH = "A spider has eight legs. Leaves fall in autumn. Boil the egg for eight minutes.\n"
CHINESE = "春天有樱花、桃花、杏花和油菜花。水烧到八十度左右，放三克茶叶，泡两分钟就可以喝了。\n"


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    for name, text, times in (("en", ENGLISH, 12), ("zh", CHINESE, 9)):
        lines = [f"{number} {text}" for number in range(times)]
        (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def mixed_text(folder: Path) -> tuple:
    return ("--data.text", json.dumps({f"{folder}/zh.txt": 3, f"{folder}/en.txt": 1}))


def fresh(folder: Path, *extra: object) -> Path:
    """A run of the smoke configuration from nothing."""
    argv = [*runs.SMOKE, "--train.output_dir", str(folder), *map(str, extra)]
    assert run("pretrain", argv) == 0
    return folder


def said(capsys: pytest.CaptureFixture, folder: Path, *extra: object) -> str:
    """The message of a run that is refused."""
    argv = [*runs.SMOKE, "--train.output_dir", str(folder), *map(str, extra)]
    assert run("pretrain", argv) == 2
    return capsys.readouterr().err


RESUMED = {
    "mask": ("--pretrain.document_mask", "true"),
    "z": ("--pretrain.z_loss", 1e-3, "--pretrain.dropout", 0.1),
    "streaming": ("--pretrain.streaming", "true", "--pretrain.shuffle_buffer", 5),
    "samples": ("--pretrain.sample_prompts", "[春天, A]", "--pretrain.sample_tokens", 5),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", RESUMED)
def test_a_run_in_parts_is_the_whole(tmp_path, case):
    in_parts("pretrain", tmp_path, 9, STOPS, *RESUMED[case])
    if case == "samples":
        files = [(tmp_path / part / "samples.jsonl").read_text() for part in ("whole", "parts")]
        assert files[0] == files[1]
        rows = [json.loads(line) for line in files[0].splitlines()]
        assert [r["step"] for r in rows] == [s for s in range(1, 10) for _ in "ab"]


@pytest.mark.slow
@pytest.mark.parametrize("streaming", ["true", "false"])
def test_a_mixture_in_parts_is_the_whole(tmp_path, corpora, streaming):
    extra = (*mixed_text(corpora), "--pretrain.streaming", streaming)
    in_parts("pretrain", tmp_path, 9, STOPS, *extra)


def test_a_masked_model_in_parts_is_the_whole(tmp_path):
    base = fresh(tmp_path / "base", "--pretrain.arch", "bert", "--train.max_steps", 1)
    path = ("--policy.path", base / "final", "--pretrain.arch", "bert")
    in_parts("pretrain", tmp_path, 9, STOPS, *path, "--pretrain.dropout", 0.1)


def test_a_masked_model_learns_and_loads(tmp_path):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder = fresh(tmp_path / "run", "--pretrain.arch", "bert", "--train.max_steps", 30,
                   "--train.learning_rate", 3e-3, "--train.per_device_train_batch_size", 8,
                   "--train.logging_steps", 10)  # fmt: skip
    rows = runs.lines(folder)
    held_out = [r["eval_loss"] for r in rows if "eval_loss" in r]
    assert held_out[-1] < held_out[0] - 0.3
    assert rows[-2]["eval_perplexity"] == pytest.approx(math.exp(held_out[-1]))
    tokenizer = AutoTokenizer.from_pretrained(folder / "final")
    assert tokenizer.mask_token_id is not None
    model = AutoModelForMaskedLM.from_pretrained(folder / "final")
    assert model.config.model_type == "bert"
    assert model.config.vocab_size == len(tokenizer)


# Options of the Trainer that this stage must take


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(("--train.bf16", "true"), id="bf16"),
        pytest.param(("--train.gradient_checkpointing", "true"), id="checkpointing"),
        pytest.param(("--train.lr_scheduler_type", "wsd"), id="wsd"),
        pytest.param(("--pretrain.arch", "gpt2", "--pretrain.document_mask", "true"), id="gpt2"),
        pytest.param(("--train.optim", "adafactor"), id="optimiser"),
    ],
)
def test_an_option_to_the_end(tmp_path, extra):
    plain = runs.lines(fresh(tmp_path / "plain"))
    rows = runs.lines(fresh(tmp_path / "run", *extra))
    both = [[r["loss"] for r in x if "loss" in r] for x in (plain, rows)]
    assert both[0][0] == pytest.approx(both[1][0], abs=0.05)
    assert all(r["mfu"] > 0 for r in rows if "loss" in r)


@pytest.mark.slow
def test_a_compiled_model_computes_the_same(tmp_path):
    few = ("--train.max_steps", 2, "--train.eval_strategy", "no")
    plain = runs.lines(fresh(tmp_path / "plain", *few))
    compiled = runs.lines(fresh(tmp_path / "run", *few, "--train.torch_compile", "true"))
    both = [[r["loss"] for r in x if "loss" in r] for x in (plain, compiled)]
    assert both[0] == pytest.approx(both[1], abs=1e-4)


def test_a_schedule_of_three_parts(tmp_path):
    """Ten steps: 4 % of warm-up rounds to one, the last two decay."""
    folder = fresh(tmp_path / "run", "--train.lr_scheduler_type", "wsd", "--train.max_steps", 10,
                   "--train.warmup_steps", 2, "--train.eval_strategy", "no")  # fmt: skip
    rates = [r["learning_rate"] for r in runs.lines(folder) if "loss" in r]
    assert rates[:2] == [0, pytest.approx(5e-4)]
    assert rates[2:9] == pytest.approx([1e-3] * 7)
    assert 0 < rates[9] < 1e-3


def test_only_matrices_decay(tmp_path):
    """At a rate of 0 for the loss's gradient nothing moves; what decays shrinks by 1 − η·λ."""
    from align.config import load_config
    from align.policy import Policy
    from align.train import pretrain, pretrain_data
    from align.train.runner import training_arguments

    config = load_config("pretrain", [*runs.SMOKE, "--train.output_dir", str(tmp_path / "run")])
    policy = Policy.load(config)
    data = pretrain_data.load(config, policy.tokenizer)
    trainer = pretrain.PretrainTrainer(policy, config, training_arguments(config), data)
    decayed = set(trainer.get_decay_parameter_names(policy.module))
    kinds = {n: p.dim() for n, p in policy.module.named_parameters()}
    assert {n for n, d in kinds.items() if d >= 2} == decayed
    assert any("norm" in n for n in kinds.keys() - decayed)


def test_defaults_are_visible_and_give_way():
    from align.config import load_config

    args = load_config("pretrain", [*runs.SMOKE]).train.args
    assert (args["adam_beta2"], args["weight_decay"]) == (0.95, 0.0)  # the file says 0.0
    assert "adam_beta2" not in load_config("sft", [*runs.SMOKE]).train.args


# Presets


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        (["--pretrain.preset", "mini"], ("gpt2", 384, 4, 6, 256)),
        (["--pretrain.preset", "small"], ("gpt2", 768, 12, 12, 1024)),
        (["--pretrain.preset", "mini", "--pretrain.n_layer", "2"], ("gpt2", 384, 2, 6, 256)),
        (["--pretrain.preset", "1b"], ("llama", 2048, 16, 32, 2048)),
        ([], ("llama", 32, 2, 2, 64)),
    ],
)
def test_a_preset_gives_what_was_not_said(words, sizes):
    from align.config import load_config

    p = load_config("pretrain", [*runs.SMOKE, *words]).pretrain
    assert (p.arch, p.n_embd, p.n_layer, p.n_head, p.block_size) == sizes
    assert p.n_kv_head == {"gpt2": None, "llama": 8 if words else 1}[p.arch]


def test_a_size_beside_the_preset_in_the_file_stays(tmp_path):
    from align.config import load_config

    file = tmp_path / "c.yaml"
    file.write_text("pretrain: {preset: small, n_layer: 6}\ndata: {text: t.txt}\n")
    (tmp_path / "t.txt").write_text("春\n")
    p = load_config("pretrain", ["--config", str(file)]).pretrain
    assert (p.n_layer, p.n_embd) == (6, 768)
    written = tmp_path / "again.yaml"
    written.write_text(load_config("pretrain", ["--config", str(file)]).to_yaml())
    assert load_config("pretrain", ["--config", str(written)]).pretrain == p


# What is refused


def test_an_empty_corpus(tmp_path, capsys):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    for more in ((), ("--pretrain.streaming", "true")):
        message = said(capsys, tmp_path / "run", "--data.text", empty, "--policy.path",
                       runs.base(), *more)  # fmt: skip
        assert f"data.text='{empty}' holds no text" in message
    assert list(tmp_path.iterdir()) == [empty]


def test_a_corpus_smaller_than_a_row(tmp_path, capsys):
    tiny, short = tmp_path / "tiny.txt", tmp_path / "short.txt"
    tiny.write_text("春天有樱花。\n")
    short.write_text("春天有樱花、桃花、杏花和油菜花。水烧到八十度左右。\n")
    for text in (tiny, short):
        for more in ((), ("--pretrain.streaming", "true")):
            message = said(capsys, tmp_path / "run", "--data.text", text, "--policy.path",
                           runs.base(), "--data.validation_fraction", 0, *more)  # fmt: skip
            assert "tokens, fewer than" in message
            assert "pretrain.block_size=64" in message
            assert "Lower block_size" in message
            assert (tmp_path / "run").exists() is (text is short)  # that needs the tokenizer
    assert not (tmp_path / "run" / "final").exists()


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        (("--pretrain.block_size", 1), ["pretrain.block_size=1", "Allowed: ≥ 2"]),
        (("--pretrain.streaming", "true", "--train.max_steps", -1), ["needs train.max_steps"]),
        (("--pretrain.arch", "bert", "--pretrain.z_loss", 0.1), ["pretrain.z_loss=0.1", "Use 0"]),
        (("--pretrain.sample_prompts", "[a]", "--data.validation_fraction", 0), ["no held-out"]),
        (("--data.text", "{a.txt: -1}"), ["data.text.a.txt=-1", "not a weight above 0"]),
        (("--data.text", "{nowhere.txt: 1}"), ["data.text='nowhere.txt' does not exist"]),
        (("--data.text", "[]"), ["data.text=[]", "neither a path nor paths with weights"]),
        (("--train.fp16", "true", "--train.use_cpu", "true"), ["train.fp16", "Use train.bf16"]),
    ],
)  # fmt: skip
def test_wrong_settings(tmp_path, capsys, extra, parts):
    message = said(capsys, tmp_path / "run", *extra)
    assert all(part in message for part in parts), message
    assert not (tmp_path / "run").exists()


def test_another_tokenizer_than_the_models(tmp_path, capsys):
    from align.data.tokenizer import train_tokenizer

    train_tokenizer([ENGLISH], 280, min_frequency=1).save_pretrained(tmp_path / "other")
    message = said(capsys, tmp_path / "run", "--policy.path", runs.base(),
                   "--pretrain.tokenizer", tmp_path / "other")  # fmt: skip
    assert "is not the tokenizer of policy.path" in message


def test_a_masked_model_is_not_taken_for_a_causal_one(tmp_path, capsys):
    base = fresh(tmp_path / "base", "--pretrain.arch", "bert", "--train.max_steps", 1)
    message = said(capsys, tmp_path / "run", "--policy.path", base / "final")
    assert "fills in masked ones" in message


def test_rows_that_do_not_fit_the_texts_are_said(tmp_path, capsys):
    runs.train("pretrain", tmp_path / "a", "--pretrain.block_size", 8, "--train.max_steps", 1)
    assert "Raise block_size" in capsys.readouterr().out
    words = tmp_path / "words.txt"
    words.write_text("春\nA\n" * 400, encoding="utf-8")
    more = ("--data.text", words, "--train.max_steps", 1)
    runs.train("pretrain", tmp_path / "b", *more)
    out = capsys.readouterr().out
    assert "the median text has 2 tokens" in out
    assert "holds about 32 texts" in out
    runs.train("pretrain", tmp_path / "c", *more, "--pretrain.document_mask", "true")
    assert "median" not in capsys.readouterr().out


# Token shards given as the corpus


def test_a_folder_of_token_shards_is_the_corpus(tmp_path):
    few = ("--train.max_steps", 3)
    first = runs.train("pretrain", tmp_path / "a", *few)
    [shards] = (tmp_path / ".cache").glob("tokens-*")
    second = runs.train("pretrain", tmp_path / "b", *few, "--data.text", shards)
    losses = [[r["loss"] for r in runs.lines(x) if "loss" in r] for x in (first, second)]
    assert losses[0] == losses[1]


def test_z_loss_is_logged_and_left_out_of_the_perplexity(tmp_path):
    folder = runs.train("pretrain", tmp_path / "run", "--pretrain.z_loss", 0.01)
    row = runs.lines(folder)[0]
    assert row["loss/z"] == pytest.approx(0.01 * math.log(560) ** 2, rel=0.05)  # near-uniform
    assert row["perplexity"] == pytest.approx(math.exp(row["loss"] - row["loss/z"]), rel=1e-6)
    plain = runs.lines(runs.train("pretrain", tmp_path / "plain"))[0]
    assert row["loss"] - row["loss/z"] == pytest.approx(plain["loss"], rel=1e-6)
    held = [
        next(r["eval_loss"] for r in runs.lines(tmp_path / x) if "eval_loss" in r)
        for x in ("run", "plain")
    ]
    assert held[0] == pytest.approx(held[1], abs=0.01)


def test_over_fitting_is_said_once(tmp_path, capsys):
    from align.train.overfit import overfitting

    rows = []
    for step, (trained, held) in enumerate([(5, 5.1), (4, 4.5), (3, 4.6), (2.5, 4.9)], start=1):
        rows += [{"step": step, "loss": trained}, {"step": step, "eval_loss": held}]
    assert overfitting(rows[:6]) is None  # once above the best may be noise
    message = overfitting(rows)
    assert "rose from 4.5 at step 2 to 4.9 while the training loss fell from 4 to 2.5" in message
    still = [r if "eval_loss" in r else {**r, "loss": 4.0} for r in rows]
    assert overfitting(still) is None
    data = tmp_path / "few.txt"
    data.write_text(ENGLISH * 4 + CHINESE, encoding="utf-8")
    held = tmp_path / "held.txt"
    held.write_text("请介绍一下长城。今天天气很好，我们去公园。\n" * 3, encoding="utf-8")
    runs.train(
        "pretrain",
        tmp_path / "run",
        "--data.text",
        data,
        "--data.validation",
        held,
        "--train.max_steps",
        60,
        "--train.learning_rate",
        1e-2,
        "--train.eval_steps",
        6,
        "--train.early_stopping_patience",
        4,
        "--train.per_device_train_batch_size",
        4,
    )
    out = capsys.readouterr().out
    assert out.count("over-fitting: the held-out loss rose") == 1
    assert runs.manifest(tmp_path / "run")["finished"]
    assert max(r["step"] for r in runs.lines(tmp_path / "run")) < 60  # early stopping


def test_what_a_row_sees_is_its_own_text(tmp_path):
    """With the mask a text's log-probs are those that it gets alone, whatever stands beside it."""
    from align.config import load_config
    from align.data.token_rows import Row, row_groups
    from align.policy import Policy

    words = ("--policy.path", runs.base(), "--pretrain.document_mask", "true")
    argv = [*runs.SMOKE, "--train.output_dir", str(tmp_path / "run"), *map(str, words)]
    policy = Policy.load(load_config("pretrain", argv))
    eos = policy.tokenizer.eos_token_id
    policy.module.eval()

    def logps(first: str, second: str) -> tuple[torch.Tensor, int]:
        texts = [
            policy.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (first, second)
        ]
        ids = [eos, *texts[0], eos, *texts[1], eos]
        row = Row(ids, [0, len(texts[0]) + 1, len(ids) - 1])
        groups = row_groups(row, eos, True)
        assert [g.completions[0] for g in groups] == [[*texts[0], eos], [*texts[1], eos]]
        with torch.no_grad():
            batch = policy.collate(groups, packed=True)
            assert len(batch.input_ids) == 1
            return policy.module(batch)["logps"], len(texts[1]) + 1

    found, n = logps("春天有樱花", "A spider has eight legs.")
    other, _ = logps("请介绍一下长城", "A spider has eight legs.")
    assert torch.allclose(found[-n:], other[-n:], atol=1e-5)
    alone = row_groups(Row([eos, *policy.tokenizer("A spider has eight legs.")["input_ids"], eos],
                           [0]), eos, False)  # fmt: skip
    with torch.no_grad():
        plain = policy.module(policy.collate(alone))["logps"]
        assert torch.allclose(found[-n:], plain, atol=1e-5)
