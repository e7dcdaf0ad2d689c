"""The recipes as a user starts them: help, wrong input, dry runs; nothing heavy is imported."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
TRAINING = ("train_tokenizer", "pretrain", "sft", "reward", "ppo", "dpo", "orpo")
SMOKE = str(ROOT / "recipes" / "configs" / "smoke.yaml")
# Runs a recipe's main and then says which heavy modules came in.
PROBE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("recipe", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
code = module.main(sys.argv[2:])
heavy = [m for m in ("torch", "transformers", "datasets", "accelerate") if m in sys.modules]
print("HEAVY", heavy, file=sys.stderr)
sys.exit(code)
"""


def probe(recipe, *words, cwd=ROOT):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(ROOT / "recipes" / f"{recipe}.py"), *words],
        capture_output=True, text=True, cwd=cwd, check=False,
    )  # fmt: skip
    print(f"{recipe} {' '.join(words)}: {time.monotonic() - start:.2f} s")
    return done


def test_all_recipes_of_the_contract_are_there():
    assert set(RECIPES) == {
        *TRAINING, "clean_corpus", "import_annotations", "evaluate_policy", "compare_runs",
        "export_model", "generate", "red_team", "canaries", "arena", "best_of_n", "iterate", "demo",
        "setup_engine",
    }  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_is_light(recipe, tmp_path):
    done = probe(recipe, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
    assert "HEAVY []" in done.stderr


@pytest.mark.parametrize("recipe", [*TRAINING, "demo", "iterate"])
def test_wrong_input_is_refused_before_anything_heavy(recipe, tmp_path):
    done = probe(recipe, "--config", SMOKE, "--train.learing_rate", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert "Did you mean 'train.learning_rate'?" in done.stderr
    assert "HEAVY []" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r not in (*TRAINING, "demo", "iterate")])
def test_tools_refuse_wrong_options(recipe, tmp_path):
    done = probe(recipe, "--no_such_option", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_print_config_reloads(recipe, tmp_path):
    first = probe(recipe, "--config", SMOKE, "--print_config")
    assert first.returncode == 0, first.stderr
    file = tmp_path / "printed.yaml"
    file.write_text(first.stdout, encoding="utf-8")
    again = probe(recipe, "--config", str(file), "--print_config")
    assert again.stdout == first.stdout


def test_dry_run_shows_the_plan_and_writes_nothing(tmp_path):
    """In a process of its own; tests/recipes/test_dry_run.py looks at what is shown."""
    done = probe("ppo", "--config", SMOKE, "--dry_run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout
    assert "⟦" in done.stdout
    assert "Nothing was trained or written" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_main_returns_instead_of_exiting(capsys):
    file = ROOT / "recipes" / "dpo.py"
    spec = importlib.util.spec_from_file_location("recipe_dpo", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(["--help"]) == 0
    assert module.main(["--dpo.bta", "1"]) == 2
