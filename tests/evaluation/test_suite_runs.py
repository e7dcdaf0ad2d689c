"""Suites on tiny models: figures against the model's own logits, thresholds, files, ranks."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
import eval_models as tiny
from launching import config_file, launch
from test_suite_files import CHOICES, ROWS, choices, write

from align.chat import render_prompt, stop_ids
from align.config_errors import UserError
from align.evaluation import evaluate_policy, metrics
from align.evaluation.log_likelihood import accuracies, choice_ids
from align.evaluation.suite_run import Subject, run_suite
from align.evaluation.suites import load_suite
from align.records import Message
from align.tools import run_tool

TOKENS = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def loaded():
    return tiny.gpt2(0), tiny.tokenizer()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("runs") / "sft", 0)


def run(path, loaded, **options):
    return run_suite(load_suite(path), Subject(*loaded, **options))


def test_greedy_answers_are_the_models_own(tmp_path, loaded):
    model, words = loaded
    path = write(tmp_path, {"decoding": TOKENS, "system": "简短回答"})
    result = run(path, loaded)
    stops = list(stop_ids(words))
    for row, sample in zip(ROWS, result.samples, strict=True):
        ids = render_prompt(
            words, [Message("system", "简短回答"), Message("user", row["question"])]
        )
        out = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=8, eos_token_id=stops,
            pad_token_id=words.pad_token_id,
        )[0, len(ids) :].tolist()  # fmt: skip
        text = words.decode(out, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert sample["completion"].strip() == text.strip()
        assert sample["length"] == len(out)


def test_examples_are_turns_before_the_prompt(tmp_path, loaded):
    shots = [{"question": "位置？", "answer": "很好"}]
    with_shots = run(write(tmp_path, {"decoding": TOKENS, "few_shot": shots}), loaded)
    without = run(write(tmp_path, {"decoding": TOKENS}), loaded)
    answers = [[row["completion"] for row in result.samples] for result in (with_shots, without)]
    assert answers[0] != answers[1]


def test_figures_are_those_of_the_samples(tmp_path, loaded):
    decoding = {**TOKENS, "temperature": 1.0, "num_samples": 3}
    task = {"decoding": decoding, "references": "ref", "category": "kind", "tokenizer": "char",
            "metrics": ["length", "distinct", "repetition", "self_bleu", "eos_rate", "rouge",
                        "bleu", "chrf", "f1", "reward"]}  # fmt: skip

    def reward(prompts, texts, finished):
        return [float(len(t)) for t in texts]

    result = run(write(tmp_path, task), loaded, reward=reward)
    entry, rows = result.report["tasks"]["t"], result.samples
    texts = [row["completion"] for row in rows]
    refs = [
        r for row in ROWS for r in [[row["ref"]] if isinstance(row["ref"], str) else row["ref"]] * 3
    ]
    value = {name: found["value"] for name, found in entry["metrics"].items()}
    assert value["reward"] == pytest.approx(np.mean([len(t) for t in texts]))
    assert value["reward_p5"] == pytest.approx(np.percentile([len(t) for t in texts], 5))
    assert value["length_chars"] == value["reward"]
    assert value["distinct_2"] == metrics.distinct_n(texts, 2)
    assert value["self_bleu"] == metrics.self_bleu(texts)
    assert value["chrf"] == pytest.approx(metrics.chrf(texts, refs)["score"])
    rouge = metrics.rouge(texts, refs, tokenizer="char")
    assert value["rougeL"] == pytest.approx(np.mean(rouge["rougeL"]))
    low, high = entry["metrics"]["reward"]["low"], entry["metrics"]["reward"]["high"]
    assert low <= value["reward"] <= high
    assert "low" not in entry["metrics"]["chrf"]
    assert list(entry["categories"]) == ["zh", "en"]
    zh = entry["categories"]["zh"]
    assert zh["n"] == 1
    assert zh["reward"] == pytest.approx(np.mean([len(t) for t in texts[:3]]))
    assert zh["distinct_1"] == metrics.distinct_n(texts[:3], 1)


def test_samples_depend_on_neither_batch_nor_neighbours(tmp_path, loaded):
    decoding = {**TOKENS, "temperature": 1.0, "num_samples": 2}
    rows = [{"question": p} for p in tiny.PROMPTS]
    path = write(tmp_path, {"decoding": decoding}, rows)
    drawn = {
        size: [row["completion"] for row in run(path, loaded, batch_size=size).samples]
        for size in (1, 4, 32)
    }
    assert drawn[1] == drawn[4] == drawn[32]
    few = run(write(tmp_path, {"decoding": decoding, "num_prompts": 2}, rows), loaded)
    assert [row["completion"] for row in few.samples] == drawn[32][:4]
    assert len(set(drawn[32])) > 6
    other = run(write(tmp_path, {"decoding": {**decoding, "seed": 5}}, rows), loaded)
    assert [row["completion"] for row in other.samples] != drawn[32]


def test_checks_and_pass_at_k(tmp_path, loaded):
    """A check that holds by chance: pass@k from the counts of every prompt."""
    rows = [{"question": p, "checks": [{"check": "characters", "low": 8}]} for p in tiny.PROMPTS]
    decoding = {**TOKENS, "temperature": 1.0, "num_samples": 4}
    result = run(write(tmp_path, {"metrics": ["checks"], "decoding": decoding}, rows), loaded)
    value = result.figures
    passed = np.array([len("".join(r["completion"].split())) >= 8 for r in result.samples])
    counts = passed.reshape(6, 4).sum(axis=1)
    assert 0 < counts.sum() < 24
    assert value["t/pass_rate"] == pytest.approx(passed.mean())
    assert value["t/pass@1"] == pytest.approx(passed.mean())
    assert value["t/pass@4"] == pytest.approx((counts > 0).mean())
    pairs = [1 - math.comb(4 - c, 2) / 6 for c in counts]
    assert value["t/pass@2"] == pytest.approx(np.mean(pairs))


def test_choices_are_scored_by_the_models_own_log_probs(tmp_path, loaded):
    model, words = loaded
    result = run(choices(tmp_path, {"metrics": ["acc", "acc_norm"]}), loaded)
    right = normed = 0
    for row, sample in zip(CHOICES, result.samples, strict=True):
        logps = []
        for choice in row["choices"]:
            # The template's own rendering of the whole turn, scored where the answer stands.
            turns = [{"role": "user", "content": row["question"]}]
            start = words.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            ids = words(start, add_special_tokens=False)["input_ids"]
            both = words(start + choice, add_special_tokens=False)["input_ids"]
            lp = model(torch.tensor([both])).logits[0].detach().double().log_softmax(-1)
            logps.append(sum(float(lp[t - 1, both[t]]) for t in range(len(ids), len(both))))
        assert sample["logps"] == pytest.approx(logps, abs=1e-4)
        answer = {"B": 1, "2": 0}.get(row["answer"], row["answer"])
        right += int(np.argmax(logps)) == answer
        scaled = [x / len(c) for x, c in zip(logps, row["choices"], strict=True)]
        normed += int(np.argmax(scaled)) == answer
    assert result.figures == {
        "t/acc": pytest.approx(right / 3),
        "t/acc_norm": pytest.approx(normed / 3),
    }


def test_accuracies_by_hand():
    found = accuracies([[-4.0, -3.0], [-1.0, -1.0]], [["四个字吗", "二字"], ["a", "b"]], [0, 1])
    # sums: the second, then a tie, of which the first counts; a character: −1 against −1.5
    assert found["acc"].tolist() == [0.0, 0.0]
    assert found["acc_norm"].tolist() == [1.0, 0.0]


def test_choices_as_plain_text_and_as_letters(tmp_path):
    plain = tiny.tokenizer(None)
    prompt = [Message("user", "The room")]
    contexts, targets = choice_ids(plain, prompt, ["was clean", "吗"], chat=False)
    assert [plain.decode(c + t) for c, t in zip(contexts, targets, strict=True)] == [
        "The room was clean", "The room吗",
    ]  # fmt: skip
    path = choices(
        tmp_path, {"answer_as": "letter", "chat": False, "prompt": "{question}\n{choices}"}
    )
    result = run_suite(load_suite(path), Subject(tiny.gpt2(0), tiny.tokenizer()))
    assert [len(row["logps"]) for row in result.samples] == [2, 3, 2]


def test_a_model_without_a_template_continues_plain_text(tmp_path):
    subject = Subject(tiny.gpt2(0), tiny.tokenizer(None))
    suite = load_suite(write(tmp_path, {"decoding": TOKENS}))
    assert len(run_suite(suite, subject).samples) == 2
    with pytest.raises(UserError, match=r"t\.chat=true is asked for, and the model's tokenizer"):
        run_suite(load_suite(write(tmp_path, {"chat": True})), subject)


def test_rows_that_do_not_fit_are_counted(tmp_path, loaded):
    rows = [*ROWS, {"question": "房间很干净，" * 40}]
    result = run(write(tmp_path, {"decoding": TOKENS}, rows), loaded)
    entry = result.report["tasks"]["t"]
    assert (entry["n"], entry["dropped"]) == (2, {"prompt_too_long": 1})
    with pytest.raises(UserError, match="leaves no row of"):
        run(write(tmp_path, {"decoding": TOKENS}, rows[2:]), loaded)


def test_an_answer_has_half_of_the_positions_at_most(tmp_path, loaded):
    entry = run(write(tmp_path, {"decoding": {"max_new_tokens": 300}}), loaded).report["tasks"]["t"]
    # The model of these tests has 96 positions.
    assert (entry["decoding"]["max_new_tokens"], entry["max_new_tokens_asked"]) == (48, 300)
    assert entry["n"] == 2


def test_perplexity_of_a_task(tmp_path, loaded):
    from align.evaluation.perplexity import perplexity

    (tmp_path / "texts.txt").write_text("房间很干净。\n\nThe room was clean.\n", encoding="utf-8")
    task = {"kind": "perplexity", "data": "texts.txt", "prompt": None, "metrics": None}
    found = run(write(tmp_path, task), loaded).figures
    whole = perplexity(*loaded, ["房间很干净。", "The room was clean."]).to_json()
    assert found == {
        f"t/{n}": pytest.approx(whole[n]) for n in ("perplexity", "nll_per_token", "nll_per_char")
    }
    packed = run(write(tmp_path, {**task, "packed": True}), loaded).report["tasks"]["t"]
    # One stream: the ends of both texts are scored too.
    assert packed["tokens"] == whole["tokens"] + 2 + (
        0 if loaded[1].bos_token_id is not None else 1
    )
    with pytest.raises(UserError, match=r"t\.stride=8 stride=8 must lie between"):
        run(write(tmp_path, {**task, "window": 8, "stride": 8}), loaded)


def test_what_was_not_given_is_listed(tmp_path, loaded):
    path = write(tmp_path, {"metrics": ["length", "reward", "judge"], "decoding": TOKENS})
    assert run(path, loaded).report["tasks"]["t"]["not_measured"] == ["reward", "judge"]
    entry = run(path, loaded, reward=lambda p, c, f: [1.0] * len(c)).report["tasks"]["t"]
    assert entry["not_measured"] == ["judge"]


def test_the_model_keeps_its_mode(tmp_path, loaded):
    model, _ = loaded
    model.train()
    run(choices(tmp_path), loaded)
    assert model.training
    model.eval()


# The recipe


def test_exit_codes_files_and_message(tmp_path, run_dir, capsys):
    path = write(tmp_path, {"decoding": TOKENS}, thresholds={"t/length_tokens": {"max": 100}})
    words = ["--model", str(run_dir), "--suite", str(path)]
    assert run_tool("evaluate_policy", words) == 0
    found = json.loads((run_dir / "eval" / "evaluation.json").read_text(encoding="utf-8"))
    assert found["suites"]["s"]["passed"] is found["passed"] is True
    assert len((run_dir / "eval" / "samples.jsonl").read_text().splitlines()) == 2
    page = (run_dir / "eval" / "report.html").read_text(encoding="utf-8")
    assert "s / t: generate, 2 rows" in page
    assert "at most 100" in page
    capsys.readouterr()
    path = write(tmp_path, {"decoding": TOKENS}, thresholds={"t/length_tokens": {"min": 100}})
    assert run_tool("evaluate_policy", [*words, "--output", str(tmp_path / "out")]) == 1
    failed = capsys.readouterr().err.splitlines()[-1]
    assert failed.startswith("failed: s: t/length_tokens is ")
    assert failed.endswith("must be at least 100")
    assert "FAILS" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "zh_genral"], "error: --suite='zh_genral' is neither a file nor a shipped"),
        (["--suite", "demo", "demo"], "error: --suite='demo' has the name demo of another one"),
        (["--suite", "demo", "--judge", "no.json"], "error: judge='no.json' no such file"),
        ([], "and --texts, --suite, --lm_eval are all missing"),
        (["--lm_eval", "x", "--lm_eval_tasks", "no"], "error: --lm_eval"),
    ],
)
def test_wrong_options_end_before_a_model_is_loaded(run_dir, capsys, words, message):
    assert run_tool("evaluate_policy", ["--model", str(run_dir), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_threshold_on_what_is_not_given(tmp_path, run_dir, capsys):
    path = write(tmp_path, {"metrics": ["reward"]}, thresholds={"t/reward": {"min": 0}})
    assert run_tool("evaluate_policy", ["--model", str(run_dir), "--suite", str(path)]) == 2
    assert "is a limit on what is not measured" in capsys.readouterr().err


def test_suites_beside_the_other_options(tmp_path, run_dir):
    from align.data.prompts import load_prompts

    (tmp_path / "p.jsonl").write_text('{"prompt": "早餐"}\n', encoding="utf-8")
    result = evaluate_policy.evaluate(
        run_dir, prompts=load_prompts(tmp_path / "p.jsonl"), texts=["房间很干净。"],
        suites=[load_suite(choices(tmp_path))], output=tmp_path / "out",
    )  # fmt: skip
    assert {"generation", "perplexity", "suites"} <= set(result)
    assert evaluate_policy.failures(result) == []


@pytest.mark.parametrize("name", ["demo", "zh_knowledge"])
def test_shipped_suites_run(tmp_path, run_dir, name):
    words = ["--model", str(run_dir), "--suite", name, "--output", str(tmp_path)]
    assert run_tool("evaluate_policy", words) == 0


@pytest.mark.distributed
def test_two_processes_find_what_one_does(tmp_path, run_dir):
    """Byte for byte: rows that two cannot share evenly, a reward, a judge, prompts and texts."""
    from align.evaluation.judges import NaiveBayesJudge

    judge = tmp_path / "judge.json"
    numbered = [[f"{text}{i}" for i in range(12)] for text in ("很好", "太差了")]
    NaiveBayesJudge.train(*numbered).save(judge)
    (tmp_path / "reward.py").write_text(
        "def score(prompts, completions):\n    return [len(c) / 10 for c in completions]\n"
    )
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({"prompt": p}, ensure_ascii=False) + "\n" for p in tiny.PROMPTS[:5])
    )
    (tmp_path / "t.txt").write_text("\n".join(tiny.TEXTS[:5]), encoding="utf-8")
    decoding = {**TOKENS, "temperature": 1.0, "num_samples": 2}
    rows = [{"question": p} for p in tiny.PROMPTS[:5]]
    metrics_ = ["length", "distinct", "eos_rate", "reward", "judge"]
    generate = write(tmp_path, {"decoding": decoding, "metrics": metrics_}, rows)
    (tmp_path / "mc").mkdir()
    scored = choices(tmp_path / "mc")
    scored.write_text(scored.read_text().replace("name: s\n", "name: mc\n"))
    words = [
        "--model", str(run_dir), "--suite", str(generate), str(scored), "--batch_size", "4",
        "--reward", f"{tmp_path}/reward.py:score", "--judge", str(judge), "--max_new_tokens", "8",
        "--prompts", f"{tmp_path}/p.jsonl", "--texts", f"{tmp_path}/t.txt",
    ]  # fmt: skip
    assert run_tool("evaluate_policy", [*words, "--output", str(tmp_path / "one")]) == 0
    two = launch(
        "recipes/evaluate_policy.py",
        [*words, "--output", str(tmp_path / "two")],
        config_file("cpu2"),
    )
    assert two.returncode == 0, two.stderr[-3000:]
    assert two.stdout.count("report: ") == 1  # rank 0 alone speaks
    for name in ("evaluation.json", "samples.jsonl"):
        texts = [(tmp_path / run / name).read_text(encoding="utf-8") for run in ("one", "two")]
        assert texts[0] == texts[1], name
    failing = write(
        tmp_path, {"decoding": TOKENS}, rows, thresholds={"t/length_tokens": {"min": 99}}
    )
    words = ["--model", str(run_dir), "--suite", str(failing), "--output", str(tmp_path / "three")]
    ended = launch("recipes/evaluate_policy.py", words, config_file("cpu2"))
    assert ended.returncode == 1
    assert ended.stderr.count("failed: s: t/length_tokens is ") == 1
