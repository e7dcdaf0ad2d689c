"""The model card: what the hub's reader finds in it, from a run, a chain of runs, a bare model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "evaluation"))
sys.path.insert(0, str(Path(__file__).parent.parent / "train"))
import eval_models as tiny
import small_runs as runs
from huggingface_hub import ModelCard

from align.export.card_facts import license_of, lineage
from align.export.command import main

STEPS = ("--train.save_steps", 2, "--train.max_steps", 2, *runs.CONSTANT)


def card(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def ppo(tmp_path_factory) -> Path:
    """PPO against a reward model and a function, after SFT."""
    folder = tmp_path_factory.mktemp("card")
    sft = runs.train("sft", folder / "sft", *STEPS)
    reward = runs.train("reward", folder / "rm", *STEPS)
    rewards = f"[{{kind: model, path: {reward}/final, weight: 0.5}}]"
    start = ("--policy.path", sft / "final", "--rewards", rewards)
    return runs.train("ppo", folder / "ppo", *STEPS, *start)


def test_the_card_of_a_run_says_what_it_was_made_of(ppo, tmp_path):
    words = ["--license", "Apache-2.0", "--datasets", "org/prompts", "--parity", "4"]
    assert main(["--model", str(ppo), "--output", str(tmp_path / "out"), *words]) == 0
    found = card(tmp_path / "out")
    head = found.data.to_dict()
    assert head["license"] == "apache-2.0"
    assert head["tags"] == ["align", "ppo", "sft"]
    assert head["pipeline_tag"] == "text-generation"
    assert head["library_name"] == "transformers"
    assert head["datasets"] == ["org/prompts"]
    assert head["language"] == ["zh", "en"]
    assert "base_model" not in head  # a local folder is no id of the hub
    text = found.content
    for line in (
        "Trained by PPO against a reward after supervised fine-tuning.",
        "| ppo.kl_coef | 0.05 |", "| rollout.max_new_tokens | 16 |", "| train.max_steps | 2 |",
        "| sft.loss_on | assistant |", "(model), weight 0.5, fingerprint ",
        "## What was not measured", "An answer ends at one of the ids 3, 0. Padding: `<|pad|>`",
        "(recipes/red_team.py)",
    ):  # fmt: skip
        assert line in text, line
    manifest = json.loads((ppo / "manifest.json").read_text())
    prompts = manifest["inputs"]["data.prompts"]["sha256"]
    assert f"| data.prompts | prompts.jsonl | 26 | 0 | {prompts} |" in text
    reward = Path(manifest["inputs"]["rewards.0.path"]["path"])
    contract = json.loads((reward / "contract.json").read_text())
    assert f"| template_hash | {contract['template_hash']} |" in text
    closing = {k for k in manifest["metrics"] if k.startswith("eval_score")}
    assert closing
    assert all(f"| {name} |" in text for name in closing)


def test_no_path_of_the_machine_is_in_an_export(ppo, tmp_path):
    out = tmp_path / "out"
    main(["--model", str(ppo), "--output", str(out), "--parity", "4"])
    for file in out.iterdir():
        if file.suffix in (".md", ".json", ".jsonl", ".jinja") and file.name != "tokenizer.json":
            text = file.read_text(encoding="utf-8")
            assert str(ppo.parent) not in text, file.name
            assert str(runs.ROOT) not in text, file.name


def test_what_was_measured_is_in_the_card(ppo, tmp_path):
    result = {"perplexity": {"perplexity": 12.5}, "generation": {"eos_rate": 0.25}}
    (ppo / "eval").mkdir()
    (ppo / "eval" / "evaluation.json").write_text(json.dumps(result))
    try:
        main(["--model", str(ppo), "--output", str(tmp_path / "out"), "--parity", "0"])
    finally:
        (ppo / "eval" / "evaluation.json").unlink()
        (ppo / "eval").rmdir()
    text = card(tmp_path / "out").content
    assert "| perplexity | 12.5 |" in text
    assert "| eos_rate | 0.25 |" in text
    assert "benchmarks and suites" not in text
    assert not (tmp_path / "out" / "parity.jsonl").exists()


def test_a_checkpoint_is_said_to_be_one(ppo, tmp_path):
    words = ["--checkpoint", str(ppo / "checkpoint-2"), "--output", str(tmp_path / "out")]
    assert main([*words, "--parity", "0"]) == 0
    assert "Exported from checkpoint-2" in card(tmp_path / "out").content
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_chain_of_runs_ends_where_weights_were_not_ours(ppo):
    assert [manifest["method"] for _, manifest in lineage(ppo)] == ["ppo", "sft"]
    assert lineage(None) == []
    assert lineage(ppo / "final") == []


def bare(folder: Path, head: str | None) -> Path:
    tiny.gpt2(0).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    if head is not None:
        (folder / "README.md").write_text(f"---\n{head}\n---\n# Base\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("head", "words", "license", "name", "says"),
    [
        (None, [], "unknown", None, "The licence is unknown"),
        ("license: apache-2.0\nbase_model: org/m", [], "apache-2.0", None, "taken over from the"),
        ("license: mit", ["--license", "GPL-3.0-only"], "gpl-3.0", None, "as given at export"),
        ("license: other\nlicense_name: qwen", [], "other", "qwen", "Licence: qwen"),
        (None, ["--license", "My own 许可"], "other", "My own 许可", "Licence: My own 许可"),
        ("license: [", [], "unknown", None, "The licence is unknown"),
    ],
)
def test_licences(head, words, license, name, says, tmp_path, capsys):
    model = bare(tmp_path / "model", head)
    assert main(["--model", str(model), "--parity", "0", *words]) == 0
    found = card(tmp_path / "model-export" / "hf")
    assert found.data.license == license
    assert getattr(found.data, "license_name", None) == name
    assert says in found.content
    assert "Nothing is recorded of how it was trained" in found.content
    out = capsys.readouterr().out
    assert ("licence unknown: no --license" in out) is (license == "unknown")
    assert ("the hub has no licence" in out) is (license == "other")
    if head and "org/m" in head:
        assert found.data.base_model == "org/m"


def test_license_ids():
    assert license_of("Apache-2.0") == ("apache-2.0", None)
    assert license_of("AGPL-3.0-or-later") == ("agpl-3.0", None)
    assert license_of("apache2") == ("other", "apache2")
