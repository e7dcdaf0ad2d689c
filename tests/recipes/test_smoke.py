"""Every recipe on recipes/configs/smoke.yaml to its end, and what each leaves behind."""

from __future__ import annotations

import json
import math
import re
import time

import pytest
import recipe_runs as rr
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from align.config import load_config
from reward_models.scorer import Scorer

TOOLS = ("clean_corpus", "import_annotations", "evaluate_policy", "compare_runs", "export_model",
         "generate", "red_team", "canaries")  # fmt: skip
LANGUAGE_MODELS = ("pretrain", "sft", "dpo", "orpo", "ppo")
# What a log line of the first step must hold besides loss, grad_norm and learning_rate.
FIGURES = {
    "pretrain": {"perplexity", "tokens_per_s"},
    "sft": {"perplexity", "tokens_per_s"},
    "reward": {"accuracy", "rewards/margins", "score/mean"},
    "dpo": {"rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"},
    "orpo": {"loss/sft", "loss/odds", "log_odds"},
    "ppo": {"score/mean", "kl/sum", "kl_coef", "entropy", "approx_kl", "value_loss"},
}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Exit code and seconds of every recipe, all run in one folder in the order of the pipeline."""
    folder = tmp_path_factory.mktemp("smoke")
    done = {}
    with rr.inside(folder):
        for recipe in (*rr.TRAINING, *TOOLS):
            start = time.monotonic()
            code = rr.main_of(recipe)(["--config", rr.SMOKE])
            done[recipe] = (code, time.monotonic() - start)
    return folder / "runs" / "smoke", done


@pytest.fixture
def runs(smoke):
    return smoke[0]


@pytest.mark.parametrize("recipe", [*rr.TRAINING, *TOOLS])
def test_the_recipe_ends_well_in_under_a_minute(smoke, recipe):
    code, seconds = smoke[1][recipe]
    assert code == 0
    assert seconds < 60


@pytest.mark.parametrize("recipe", rr.TRAINING)
def test_the_run_directory_is_complete(runs, recipe):
    method = rr.METHOD.get(recipe, recipe)
    run_dir = runs / method
    names = {path.name for path in run_dir.iterdir()}
    expected = {"config.yaml", "manifest.json", "metrics.jsonl", "report.html", "final"}
    assert expected <= names
    assert ("samples.jsonl" in names) == (method == "ppo")
    assert {"torch", "transformers", "align", "python"} <= set(rr.manifest(run_dir)["versions"])


@pytest.mark.parametrize("recipe", rr.TRAINING)
def test_the_manifest_says_what_the_run_was_made_of(runs, recipe):
    method = rr.METHOD.get(recipe, recipe)
    found = rr.manifest(runs / method)
    assert found["method"] == method
    assert found["finished"] is True
    assert found["world_size"] == 1
    assert found["metrics"]
    read = {"tokenizer": "text", "pretrain": "text", "sft": "sft", "ppo": "prompts"}
    data = found["inputs"][f"data.{read.get(method, 'preferences')}"]
    assert re.fullmatch("[0-9a-f]{16}", data["sha256"])


@pytest.mark.parametrize("recipe", rr.TRAINING)
def test_the_written_config_loads_to_itself(runs, recipe):
    method = rr.METHOD.get(recipe, recipe)
    file = runs / method / "config.yaml"
    with rr.inside(runs.parent.parent):
        again = load_config(method, ["--config", str(file)])
        first = load_config(method, ["--config", rr.SMOKE])
    assert again.train.output_dir == f"runs/smoke/{method}"
    assert again.train.args["max_steps"] == 4
    assert again.to_yaml() == file.read_text(encoding="utf-8")
    assert again.pretrain == first.pretrain


@pytest.mark.parametrize("method", sorted(FIGURES))
def test_metrics_of_every_step(runs, method):
    lines = rr.rows(runs / method / "metrics.jsonl")
    steps = [row["step"] for row in lines if "loss" in row]
    assert steps == [1, 2, 3, 4]
    first = next(row for row in lines if "loss" in row)
    assert {"grad_norm", "learning_rate"} | FIGURES[method] <= set(first)
    assert all(math.isfinite(row["loss"]) for row in lines if "loss" in row)
    # Before the first step too, so that a rise can be seen: PPO only.
    evaluated = [row["step"] for row in lines if "eval_runtime" in row]
    assert evaluated == ([0, 2, 4] if method == "ppo" else [2, 4])


def test_figures_that_are_known_before_the_first_step(runs):
    def first(method):
        return next(row for row in rr.rows(runs / method / "metrics.jsonl") if "loss" in row)

    # Policy and reference are one model, so every margin is 0 and the loss is −log σ(0).
    assert first("dpo")["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first("dpo")["rewards/margins"] == 0.0
    assert first("ppo")["kl/sum"] == 0.0
    assert first("ppo")["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    # A random model of 549 entries knows nothing: the loss is near log(vocabulary).
    vocabulary = len(AutoTokenizer.from_pretrained(runs / "sft" / "final"))
    assert first("sft")["loss"] == pytest.approx(math.log(vocabulary), rel=0.05)


@pytest.mark.parametrize("method", LANGUAGE_MODELS)
def test_final_is_a_language_model_that_has_moved(runs, method):
    final = AutoModelForCausalLM.from_pretrained(runs / method / "final")
    tokenizer = AutoTokenizer.from_pretrained(runs / method / "final")
    start = AutoModelForCausalLM.from_pretrained(runs / method / "init")
    text = "春天有哪些花？ Name three fruits."
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    assert tokenizer.decode(ids["input_ids"][0]) == text
    with torch.no_grad():
        out = final(input_ids=ids["input_ids"]).logits
        before = start(input_ids=ids["input_ids"]).logits
    assert torch.isfinite(out).all()
    assert (out - before).abs().max() > 1e-4
    assert tokenizer.chat_template


def test_the_tokenizer_reads_both_languages(runs):
    tokenizer = AutoTokenizer.from_pretrained(runs / "tokenizer" / "final")
    assert len(tokenizer) == 560
    for text in ("春天有樱花、桃花。", "Write one line about the sea.", "龘 – not in the corpus"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_reward_model_scores_text(runs):
    final = runs / "reward" / "final"
    assert AutoModelForSequenceClassification.from_pretrained(final).num_labels == 1
    assert (final / "contract.json").is_file()
    prompts = [
        [{"role": "user", "content": "写一条酒店的好评。"}],
        [{"role": "user", "content": "Name three fruits."}],
    ]
    scores = Scorer(final).score(prompts, ["房间干净，前台热情。", "Apples, pears and plums."])
    assert len(scores) == 2
    assert all(math.isfinite(score) for score in scores)


def test_ppo_samples(runs):
    samples = rr.rows(runs / "ppo" / "samples.jsonl")
    assert [row["step"] for row in samples] == [0] * 4 + [2] * 4 + [4] * 4
    assert {"prompt", "completion", "score", "kl"} <= set(samples[0])
    assert [row["kl"] for row in samples[:4]] == [0.0] * 4
    assert samples[0]["prompt"] == [{"role": "user", "content": "夏天吃什么水果？"}]
    assert (runs / "ppo" / "final" / "critic" / "model.safetensors").is_file()


@pytest.mark.parametrize("page", [*(rr.METHOD.get(r, r) for r in rr.TRAINING), "compare"])
def test_the_report_opens_offline(runs, page):
    html = (runs / page / "report.html").read_text(encoding="utf-8")
    title = "Comparison: sft, dpo" if page == "compare" else page
    assert f"<title>{title}</title>" in html
    fetched = re.findall(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=\"([^\"]+)\"", html)
    assert [address for address in fetched if not address.startswith("data:")] == []


def test_what_the_tools_write(runs):
    assert (runs / "clean" / "train-00000.jsonl").read_text(encoding="utf-8").strip()
    groups = rr.rows(runs / "annotations" / "preferences.jsonl")
    assert all({"prompt", "candidates", "judgements"} <= set(group) for group in groups)
    figures = json.loads((runs / "sft" / "eval" / "evaluation.json").read_text(encoding="utf-8"))
    assert figures["num_prompts"] == 8
    summary = json.loads((runs / "compare" / "summary.json").read_text(encoding="utf-8"))
    assert [run["name"] for run in summary["runs"]] == ["sft", "dpo"]
    exported = AutoModelForCausalLM.from_pretrained(runs / "export").state_dict()
    final = AutoModelForCausalLM.from_pretrained(runs / "sft" / "final").state_dict()
    assert all(torch.equal(exported[name], final[name]) for name in final)


def test_imported_annotations_train_the_next_stage(runs, tmp_path):
    preferences = str(runs / "annotations" / "preferences.jsonl")
    words = [
        "--data.preferences",
        preferences,
        "--demo.root",
        str(tmp_path),
        "--train.max_steps",
        "1",
    ]
    for recipe in ("reward", "dpo"):
        assert rr.main_of(recipe)(["--config", rr.SMOKE, *words]) == 0
        assert rr.counts(tmp_path / recipe)[0]["used"] > 0


def test_a_second_run_goes_on_or_is_set_aside(runs, capsys):
    with rr.inside(runs.parent.parent):
        words = ["--config", rr.SMOKE, "--demo.root", str(runs), "--train.max_steps", "5"]
        assert rr.main_of("sft")([*words, "--train.resume", "auto"]) == 0
        assert [r["step"] for r in rr.rows(runs / "sft/metrics.jsonl") if "loss" in r] == [
            1,
            2,
            3,
            4,
            5,
        ]
        assert rr.main_of("sft")(words) == 0  # the file says never
    assert (runs / "sft.old-1" / "final").is_dir()
    assert "is now in" in capsys.readouterr().out
    assert rr.manifest(runs / "sft")["finished"] is True


# All ranks of evaluate_policy work: tests/evaluation/test_suite_runs.py.
@pytest.mark.parametrize("recipe", [t for t in (*TOOLS, "demo") if t != "evaluate_policy"])
def test_what_trains_nothing_runs_on_the_first_rank_alone(tmp_path, monkeypatch, recipe):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with rr.inside(tmp_path):
        assert rr.main_of(recipe)(["--config", rr.SMOKE]) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_tool_takes_overrides_and_follows_demo_root(tmp_path, capsys):
    words = ["--config", rr.SMOKE, "--demo.root", str(tmp_path / "there"), "--print_config"]
    assert rr.main_of("compare_runs")([*words, "--tools.compare_runs.max_new_tokens=7"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)["tools"]["compare_runs"]
    assert shown["runs"] == [str(tmp_path / "there" / name) for name in ("sft", "dpo")]
    assert shown["output"] == str(tmp_path / "there" / "compare")
    assert shown["prompts"].endswith("recipes/data/heldout_prompts.jsonl")
    assert shown["max_new_tokens"] == 7
    assert rr.main_of("compare_runs")(["--config", rr.SMOKE, "--demo.rot", "x"]) == 2
    assert "'demo.root'" in capsys.readouterr().err
