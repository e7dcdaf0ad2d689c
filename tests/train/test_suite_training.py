"""Suites and judges at the evaluations of training: figures, best checkpoint, early errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
import small_runs as sr
from launching import config_file, launch

from align.checkpoints import load_causal_lm
from align.config import UserError, load_config
from align.evaluation.judges import NaiveBayesJudge, load_judge
from align.evaluation.suite_config import best_direction, check_suite
from align.evaluation.suite_run import Subject, run_suite
from align.evaluation.suites import load_suite
from align.run import run

TASKS = [
    {"name": "choice", "kind": "log_likelihood", "data": "choice.jsonl", "prompt": "{question}"},
    {"name": "write", "kind": "generate", "data": "write.jsonl", "prompt": "{question}",
     "metrics": ["length", "chrf", "judge", "reward"], "references": "ref",
     "decoding": {"max_new_tokens": 8, "temperature": 1.0, "num_samples": 2}},
]  # fmt: skip
CHOICE = [
    {"question": "早餐？", "choices": ["不错", "很差，再也不来了"], "answer": 0},
    {"question": "Was it clean?", "choices": ["Yes", "No, it was not"], "answer": 1},
    {"question": "位置？", "choices": ["很方便", "远"], "answer": 1},
]
WRITE = [{"question": f"写一条酒店评论{i}", "ref": "房间很干净。"} for i in range(5)]


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    for name, rows in (("choice", CHOICE), ("write", WRITE)):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "tasks": TASKS}), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    path = tmp_path_factory.mktemp("judge") / "judge.json"
    numbered = [[f"{text}{i}" for i in range(12)] for text in ("很好", "太差了")]
    NaiveBayesJudge.train(*numbered).save(path)
    return str(path)


def evaluations(folder):
    return [row for row in sr.lines(folder) if "eval_runtime" in row]


def of_suite(row):
    return {k: v for k, v in row.items() if k.startswith("eval_suite/")}


@pytest.mark.parametrize("method", ["sft", "dpo", "orpo", "pretrain"])
def test_the_last_figures_are_those_of_the_finished_model(tmp_path, suite, judge, method):
    """What evaluate_policy would find for final/ is what training logged last."""
    fresh = ("--policy.path", "null") if method == "pretrain" else ()
    done = sr.train(
        method, tmp_path / "run", "--eval.suite", suite, "--eval.judge", judge,
        "--train.eval_steps", 4, *fresh,
    )  # fmt: skip
    logged = of_suite(evaluations(done)[-1])
    model = load_causal_lm(done / "final", need_template=method != "pretrain")
    again = run_suite(load_suite(suite), Subject(*model, judge=NaiveBayesJudge.load(judge)))
    assert logged == {
        f"eval_suite/{name}": pytest.approx(value, abs=1e-6)
        for name, value in again.figures.items()
    }
    assert "eval_suite/write/judge_p5" in logged
    assert "eval_suite/write/reward" not in logged  # only PPO has one
    assert sr.manifest(done)["metrics"]["eval_suite/choice/acc"] == logged["eval_suite/choice/acc"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "ppo"])
def test_adapters_and_a_reward_model_as_judge(tmp_path, suite, method):
    """The suite reads the policy's adapter, not the critic's; the judge is another model."""
    judge = sr.train("reward", tmp_path / "judge") / "final"
    done = sr.train(
        method, tmp_path / "run", "--eval.suite", suite, "--eval.judge", judge,
        "--policy.lora", "{r: 4}", "--train.learning_rate", 0.05,
    )  # fmt: skip
    rows = [of_suite(row) for row in evaluations(done)]
    assert rows[0] != rows[-1]
    model = load_causal_lm(done / "final")
    again = run_suite(load_suite(suite), Subject(*model, judge=load_judge(judge))).figures
    for name, value in again.items():
        assert rows[-1][f"eval_suite/{name}"] == pytest.approx(value, abs=1e-5), name


def test_a_suite_alone_is_evaluated_too(tmp_path, suite):
    done = sr.train("sft", tmp_path / "run", "--data.validation_fraction", 0, "--eval.suite", suite)
    rows = evaluations(done)
    assert [row["step"] for row in rows] == [2, 4]
    assert all("eval_loss" not in row and of_suite(row) for row in rows)


def test_evaluations_do_not_change_training(tmp_path, suite):
    with_suite = sr.train("sft", tmp_path / "a", "--eval.suite", suite, "--train.eval_steps", 1)
    without = sr.train("sft", tmp_path / "b")
    losses = [[r["loss"] for r in sr.lines(f) if "loss" in r] for f in (with_suite, without)]
    assert losses[0] == losses[1]


def test_the_best_checkpoint_by_a_figure_of_the_suite(tmp_path, suite):
    """The finished model is the one of the evaluation with the highest figure."""
    done = sr.train(
        "sft", tmp_path / "run", "--eval.suite", suite, "--train.max_steps", 6,
        "--train.eval_steps", 1, "--train.learning_rate", 0.02, "--train.save_total_limit", 9,
        "--train.metric_for_best_model", "suite/write/chrf", "--train.early_stopping_patience", 6,
    )  # fmt: skip
    rows = {row["step"]: row["eval_suite/write/chrf"] for row in evaluations(done)}
    best = max(rows, key=lambda step: (rows[step], -step))
    assert len(set(rows.values())) > 1
    assert rows[6] < rows[best]  # or the last would do
    model = load_causal_lm(done / "final")
    again = run_suite(load_suite(suite), Subject(*model)).figures["write/chrf"]
    assert again == pytest.approx(rows[best], abs=1e-9)


def test_early_stopping_waits_for_the_suite(tmp_path, suite):
    """Two evaluations without a better accuracy end a run that would take 12 steps."""
    done = sr.train(
        "sft", tmp_path / "run", "--eval.suite", suite, "--train.max_steps", 12,
        "--train.eval_steps", 1, "--train.learning_rate", 0, "--train.early_stopping_patience", 2,
        "--train.metric_for_best_model", "eval_suite/choice/acc",
    )  # fmt: skip
    assert evaluations(done)[-1]["step"] == 3


# PPO


def test_ppo_logs_worst_cases_best_of_n_judge_and_suite(tmp_path, suite, judge):
    done = sr.train(
        "ppo", tmp_path / "run", "--policy.path", sr.sharp(), "--eval.suite", suite,
        "--eval.judge", judge, "--eval.n", 3, "--eval.temperature", 1.0, "--eval.pass_score", 0.95,
    )  # fmt: skip
    last = evaluations(done)[-1]
    text = (done / "samples.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    rows = [row for row in rows if row["step"] == last["step"]]
    assert len(rows) == 4 * 3
    scores = [row["score"] for row in rows]
    tries = [scores[i : i + 3] for i in range(0, 12, 3)]
    assert all(rows[i]["prompt"] == rows[i + 2]["prompt"] for i in range(0, 12, 3))
    assert len(set(scores)) > 3
    assert last["eval_score/mean"] == pytest.approx(sum(scores) / 12)
    assert last["eval_score/min"] == min(scores)
    assert min(scores) <= last["eval_score/p1"] <= last["eval_score/p5"] <= last["eval_score/p10"]
    assert last["eval_score/best"] == pytest.approx(sum(map(max, tries)) / 4)
    passed = [sum(score >= 0.95 for score in row) for row in tries]
    assert 0 < sum(passed) < 12
    assert last["eval_pass@1"] == pytest.approx(sum(passed) / 12)
    assert last["eval_pass@3"] == pytest.approx(sum(count > 0 for count in passed) / 4)
    judged = NaiveBayesJudge.load(judge).score([()] * 12, [row["completion"] for row in rows])
    assert [row["judge"] for row in rows] == pytest.approx(judged)
    assert last["eval_judge/mean"] == pytest.approx(sum(judged) / 12)
    assert last["eval_suite/write/reward"] > 0  # the run's own reward


@pytest.mark.slow
def test_ppo_draws_by_prompt_and_not_by_batch(tmp_path):
    options = ("--policy.path", sr.sharp(), "--eval.temperature", 1.0, "--eval.n", 2)
    drawn = []
    for size in (1, 4):
        done = sr.train(
            "ppo", tmp_path / str(size), *options, "--train.per_device_eval_batch_size", size
        )
        first = (done / "samples.jsonl").read_text(encoding="utf-8").splitlines()[:8]
        drawn.append([json.loads(line)["completion"] for line in first])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 4


# Wrong configurations


BEST = "--train.metric_for_best_model"
BERT = ["--pretrain.arch", "bert", "--pretrain.n_kv_head", "null", "--policy.path", "null"]
WRONG = [
    ("sft", ["--eval.suite", "zh_generl"],
     "eval.suite='zh_generl' is neither a file nor a shipped suite"),
    ("sft", ["--eval.suite", "SUITE", "--train.eval_strategy", "no"],
     "is never run: there are no evaluations. Set train.eval_steps, or null"),
    ("sft", [BEST, "suite/choice/acc"],
     "train.metric_for_best_model='suite/choice/acc' needs a suite. Set eval.suite"),
    ("sft", ["--eval.suite", "SUITE", BEST, "suite/choice/ac"],
     "is no figure of the suite. Did you mean 'suite/choice/acc'? It has: suite/choice/acc, "),
    ("sft", ["--eval.suite", "SUITE", BEST, "suite/write/judge"], "is no figure of the suite"),
    ("sft", ["--eval.suite", "SUITE", BEST, "suite/write/length_chars"],
     "train.greater_is_better is needed: whether more is better is not known of"),
    ("sft", ["--eval.judge", "no.json", "--eval.suite", "SUITE"],
     "eval.judge='no.json' does not exist"),
    ("dpo", ["--eval.judge", "SUITE"], "has nothing to score: dpo samples only for a suite"),
    ("ppo", ["--eval.n", "2"],
     "eval.n=2 draws the same completion every time at eval.temperature=0"),
    ("pretrain", ["--eval.suite", "SUITE", *BERT], "a masked model writes no answers"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "words", "message"), WRONG)
def test_wrong_settings_end_before_anything_is_written(
    tmp_path, suite, capsys, method, words, message
):
    given = [suite if word == "SUITE" else word for word in words]
    assert run(method, sr.arguments(tmp_path / "run", *given)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_wrong_suite_is_found_by_dry_run_too(tmp_path, suite, capsys):
    broken = Path(suite).with_name("broken.yaml")
    broken.write_text(Path(suite).read_text().replace("chrf", "chrff"))
    words = sr.arguments(tmp_path / "run", "--eval.suite", broken, "--dry_run")
    assert run("sft", words) == 2
    assert "metrics.1='chrff' is no metric of kind: generate" in capsys.readouterr().err
    words = sr.arguments(tmp_path / "run", "--eval.suite", suite, "--dry_run")
    assert run("sft", words) == 0
    assert "# suite tiny, at every evaluation" in capsys.readouterr().out


def test_methods_without_text_leave_the_suite_unread(tmp_path):
    config = load_config("reward", sr.arguments(tmp_path / "run", "--eval.suite", "no_such"))
    check_suite(config)


def test_the_direction_follows_the_figure(tmp_path, suite):
    def direction(name):
        words = ["--eval.suite", suite, "--train.metric_for_best_model", name]
        return best_direction(load_config("sft", sr.arguments(tmp_path, *words)))

    assert direction("suite/choice/acc") is True
    assert direction("eval_suite/choice/acc_norm") is True
    assert direction("eval_loss") is None
    with pytest.raises(UserError):
        check_suite(load_config("sft", sr.arguments(
            tmp_path, "--eval.suite", suite, "--train.metric_for_best_model", "suite/x/y"
        )))  # fmt: skip


@pytest.mark.distributed
@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_two_processes_log_the_figures_of_one(tmp_path, suite, judge, method):
    """Before the first step, and of a policy that the steps leave as it is: the same weights."""
    words = [
        "--eval.suite", suite, "--eval.judge", judge, "--train.learning_rate", "0",
        "--train.max_steps", "2", "--policy.path", sr.sharp(),
    ]  # fmt: skip
    if method == "ppo":
        words += ["--eval.n", "2", "--eval.temperature", "1.0", "--ppo.ppo_epochs", "1"]
    alone = sr.train(method, tmp_path / "one", *words)
    given = [*sr.SMOKE, "--train.output_dir", str(tmp_path / "two"), *words]
    two = launch(f"recipes/{method}.py", given, config_file("cpu2"))
    assert two.returncode == 0, two.stderr[-3000:]
    assert sr.manifest(tmp_path / "two")["world_size"] == 2
    found = [evaluations(folder)[-1] for folder in (alone, tmp_path / "two")]
    assert of_suite(found[0]) == of_suite(found[1])
    assert len(of_suite(found[0])) > 6
    if method == "ppo":
        for name in ("score/mean", "score/p1", "score/p10", "score/best", "judge/mean"):
            assert found[1][f"eval_{name}"] == pytest.approx(found[0][f"eval_{name}"], abs=1e-12)
