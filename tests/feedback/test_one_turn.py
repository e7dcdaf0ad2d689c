"""One full turn: answers → votes → reward model → PPO, by the commands of docs/feedback.md.

The voters are simulated: they like Chinese characters, which no file says and no recipe knows.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "iteration"))
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import iterate_runs as it
import small_runs

from align.feedback import main as arena_command
from align.feedback.records import read_log


def likes(text: str) -> float:
    """The hidden preference: the share of Chinese characters."""
    return sum("\u4e00" <= c <= "\u9fff" for c in text) / max(1, len(text))


def vote_of(left: str, right: str, chance: random.Random) -> str:
    """What a voter says: one vote in twenty is a slip, and close calls are ties."""
    gap = likes(left) - likes(right)
    if abs(gap) < 0.05:
        return "tie"
    if chance.random() < 0.05:
        gap = -gap
    return "left" if gap > 0 else "right"


def recipe(name: str, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, str(it.ROOT / "recipes" / f"{name}.py"), *map(str, words)],
        capture_output=True, text=True, check=False, cwd=it.ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cast_votes(tmp_path: Path) -> Path:
    """Three people vote on the answers of two policies until nothing is left."""
    output = tmp_path / "arena"
    args = arena_command.parser().parse_args([
        small_runs.sharp(), small_runs.base(), "--prompts", str(tmp_path / "prompts.jsonl"),
        "--output", str(output), "--max_new_tokens", "16", "--num_prompts", "1000",
        "--no_own_prompts",
    ])  # fmt: skip
    arena, chance = arena_command.make_arena(args), random.Random(0)
    for turn in range(6000):
        name = ("ann", "bob", "陈")[turn % 3]
        if (shown := arena.next(name)) is None:
            continue
        left, right = (str(c.text) for c in shown.completions)
        assert arena.vote(name, shown.item.id, vote_of(left, right, chance), consent=True)
    arena.close()
    return output


@pytest.mark.slow
@pytest.mark.learning
def test_votes_become_a_reward_model_and_that_a_better_policy(tmp_path):
    it.write_prompts(tmp_path / "prompts.jsonl", 1000)
    it.write_prompts(tmp_path / "held.jsonl", 32, "第")
    votes = cast_votes(tmp_path)
    rows, _ = read_log(votes / "votes.jsonl")
    people = {name: sum(r["annotator"] == name for r in rows) for name in ("ann", "bob", "陈")}
    assert min(people.values()) > 150

    # Either file does; the log holds the skips and what nobody agreed to as well.
    recipe(
        "import_annotations", "--input", votes / "votes.jsonl", "--output", tmp_path / "data",
        "--fractions", "0.8,0.05,0.15",
    )  # fmt: skip
    report = json.loads((tmp_path / "data" / "report.json").read_text("utf-8"))
    assert report["votes"]["used"] == len(rows)
    recipe(
        "reward", "--config", it.SMOKE, "--policy.path", small_runs.base(),
        "--data.preferences", tmp_path / "data" / "train.jsonl",
        "--data.validation", tmp_path / "data" / "validation.jsonl",
        "--train.output_dir", tmp_path / "reward", "--train.max_steps", 160,
        "--train.per_device_train_batch_size", 16, "--train.per_device_eval_batch_size", 32,
        "--train.learning_rate", 3e-3, "--train.eval_steps", 160, "--train.save_steps", 1000,
    )  # fmt: skip

    from align.data.prompts import load_prompts
    from align.evaluation.evaluate_policy import evaluate
    from align.evaluation.sampling import Decoding
    from reward_models.scorer import Scorer

    groups = [json.loads(s) for s in (tmp_path / "data" / "test.jsonl").read_text().splitlines()]
    scorer = Scorer(str(tmp_path / "reward" / "final"))
    right = []
    for group in groups:
        a, b = (c["content"] for c in group["candidates"])
        if abs(likes(a) - likes(b)) < 0.05:
            continue
        scores = scorer.score([group["prompt"]] * 2, [a, b])
        right.append((scores[0] > scores[1]) == (likes(a) > likes(b)))
    accuracy = sum(right) / len(right)
    print(f"held-out accuracy on the hidden preference {accuracy:.3f} of {len(right)}")

    recipe(
        "ppo", "--config", it.SMOKE, "--policy.path", small_runs.sharp(),
        "--data.prompts", tmp_path / "prompts.jsonl",
        "--eval.prompts", tmp_path / "held.jsonl",
        "--rewards", json.dumps([{"kind": "model", "path": str(tmp_path / "reward" / "final")}]),
        "--train.output_dir", tmp_path / "ppo", "--train.max_steps", 100,
        "--train.learning_rate", 2e-3, "--train.per_device_train_batch_size", 64,
        "--rollout.prompts_per_update", 16, "--rollout.n", 4, "--rollout.batch_size", 64,
        "--ppo.missing_eos.mode", "none", "--ppo.missing_eos.value", "null", "--ppo.kl_coef", 0.02,
        "--ppo.ppo_epochs", 4, "--ppo.num_minibatches", 1,
        "--train.save_steps", 1000, "--train.eval_steps", 100,
    )  # fmt: skip

    def liked(model: str) -> float:
        result = evaluate(
            model, prompts=load_prompts(tmp_path / "held.jsonl"), seeds=(0, 1, 2, 3),
            decoding=Decoding(max_new_tokens=16), output=tmp_path / "eval",
            reward=lambda _, texts, finished: [likes(t) for t in texts],
        )  # fmt: skip
        return result["generation"]["score"]["mean"]

    before, after = liked(small_runs.sharp()), liked(str(tmp_path / "ppo" / "final"))
    print(f"share of Chinese characters {before:.3f} → {after:.3f}")
    assert accuracy > 0.7
    assert after - before > 0.1
