"""Figures before and after: hand-worked perplexities, the limit, where rows are from."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest

from align.config_errors import Failed, UserError
from align.export import measure, measure_rows, quantised_options
from align.export.measure import Figures, Task, check_limit, figures, growth, table


def options(*words: str, model: str = "none") -> argparse.Namespace:
    p = argparse.ArgumentParser()
    p.add_argument("--model")
    p.add_argument("--checkpoint")
    quantised_options.add(p)
    return p.parse_args(["--model", model, *words])


def task(**more) -> Task:
    values = {"pairs": [], "prompts": [], "prompt_ids": [], "answer_tokens": 4, "stops": (9,),
              "tokenizer": None}  # fmt: skip
    return Task(**{**values, **more})


def one(perplexity: float | None, why: str = "") -> Figures:
    return Figures(perplexity, 10, None, 1_500_000, 20.0, None, "engine", no_perplexity=why)


def test_perplexity_is_over_all_tokens_not_over_rows(tmp_path):
    # Three tokens of probability 1/2 and one of 1/4: geometric mean of 2, 2, 2, 4.
    found = figures(task(), tmp_path, logps=[[-math.log(2)] * 3, [-math.log(4)]], engine="e")
    assert found.perplexity == pytest.approx(2 ** (5 / 4))
    assert found.tokens == 4


def test_reward_is_the_mean_over_answers_and_knows_which_ended(tmp_path):
    seen = []

    def reward(messages, texts, ended):
        seen.extend(ended)
        return [float(len(text)) for text in texts]

    asked = task(reward=reward, prompts=[], prompt_ids=[[1], [1]])
    found = figures(asked, tmp_path, logps=None, answers=[[3, 9], [3, 4]], texts=["好", "abc"],
                    engine="e")  # fmt: skip
    assert found.reward == 2.0
    assert seen == [True, False]
    assert found.perplexity is None


def test_growth_and_its_limit():
    assert growth(one(10.0), one(10.4)) == pytest.approx(0.04)
    check_limit("int8", one(10.0), one(10.4), 0.05)
    check_limit("int8", one(10.0), one(99.0), None)
    said = r"int8: perplexity grew from 10 to 10.6 \(\+6.0%\).*allows 5.0%; nothing was written"
    with pytest.raises(Failed, match=said):
        check_limit("int8", one(10.0), one(10.6), 0.05)
    with pytest.raises(Failed, match="nothing was written"):
        check_limit("int8", one(10.0), one(float("nan")), 0.05)


def test_a_limit_on_what_was_not_measured_fails():
    with pytest.raises(Failed, match=r"cannot be checked \(no reader\)"):
        check_limit("gguf", one(10.0), one(None, "no reader"), 0.05)
    assert growth(one(10.0), one(None)) is None


def test_the_table_shows_both_and_null():
    lines = table([("int8", one(10.0), one(11.0)), ("gguf", one(10.0), one(None))]).splitlines()
    assert lines[1].split()[:5] == ["int8", "10", "→", "11", "+10.00%"]
    assert "null → null" in lines[1]  # no reward
    assert "10 → null" in lines[2]


def test_bytes_of_weights_only(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"x" * 7)
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 100)
    assert measure.disk_bytes(tmp_path) == 7
    assert measure.disk_bytes(tmp_path / "a.safetensors") == 7


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def test_every_kind_of_file_gives_rows(tmp_path):
    sft = write(tmp_path / "sft.jsonl", [{"instruction": "问", "input": "", "output": "答"}])
    pairs = write(tmp_path / "p.jsonl", [{"prompt": "q", "chosen": "good", "rejected": "bad"}])
    texts = write(tmp_path / "t.jsonl", [{"text": "一段文字"}])
    (tmp_path / "t.txt").write_text("one\n\ntwo\n")
    assert [row[1] for row in measure_rows.read(sft, "f")] == ["答"]
    assert [row[1] for row in measure_rows.read(pairs, "f")] == ["good"]
    assert measure_rows.read(texts, "f") == ["一段文字"]
    assert measure_rows.read(str(tmp_path / "t.txt"), "f") == ["one", "two"]
    for name, content in (("e.txt", "\n"), ("e.jsonl", '{"prompt": "only asked"}\n')):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match="--eval_data"):
            measure_rows.eval_data(options("--eval_data", str(tmp_path / name)))
    with pytest.raises(UserError, match="is not a file"):
        measure_rows.eval_data(options("--eval_data", str(tmp_path / "none.jsonl")))


def run_with(tmp_path: Path, **data) -> str:
    run = tmp_path / "run"
    (run / "final").mkdir(parents=True)
    (run / "config.yaml").write_text(json.dumps({"data": data, "train": {"seed": 3}}))
    return str(run / "final")


def test_the_runs_own_rows_are_split_as_the_run_split_them(tmp_path):
    rows = [{"instruction": f"问题{i}", "input": "", "output": f"答案{i}"} for i in range(40)]
    path = write(tmp_path / "sft.jsonl", rows)
    model = run_with(tmp_path, sft=path, validation_fraction=0.25)
    held = measure_rows.eval_data(options(model=model))
    trained = measure_rows.calibration_data(options(model=model), "awq")
    assert (held.held_out, trained.held_out, held.source) == (True, False, path)
    answers = [{row[1] for row in data.rows} for data in (held, trained)]
    assert not answers[0] & answers[1]
    assert len(answers[0] | answers[1]) == 40
    assert 3 <= len(answers[0]) <= 18


def test_validation_comes_first_and_prompts_without_answers_do_not_count(tmp_path):
    sft = write(tmp_path / "sft.jsonl", [{"prompt": "q", "completion": "trained"}])
    held = write(tmp_path / "v.jsonl", [{"prompt": "q", "completion": "held"}])
    model = run_with(tmp_path, sft=sft, validation=held)
    assert measure_rows.eval_data(options(model=model)).rows[0][1] == "held"
    write(Path(held), [{"prompt": "only a prompt"}])
    found = measure_rows.eval_data(options(model=model))
    assert (found.rows[0][1], found.held_out) == ("trained", False)
    asked, file = measure_rows.prompts(options(model=model), found)
    assert (file, asked[0].messages[0].content) == (held, "only a prompt")


def test_without_a_run_there_is_a_sample_but_no_limit_and_no_calibration(tmp_path):
    found = measure_rows.eval_data(options(model=str(tmp_path)))
    assert found.source == measure_rows.BUILT_IN
    assert found.held_out is None
    with pytest.raises(UserError, match="--eval_data is needed by --max_ppl_increase"):
        measure_rows.eval_data(options("--max_ppl_increase", "0.05", model=str(tmp_path)))
    with pytest.raises(UserError, match="--calibration is needed by awq"):
        measure_rows.calibration_data(options(model=str(tmp_path)), "awq")


@pytest.mark.parametrize(
    "words",
    [["--max_ppl_increase", "-1"], ["--max_ppl_increase", "much"], ["--group_size", "0"],
     ["--group_size", "some"], ["--gguf_type", "q9"], ["--num_eval", "0"]],
)  # fmt: skip
def test_values_out_of_range(words, capsys):
    with pytest.raises(SystemExit):
        options(*words)
    assert words[0] in capsys.readouterr().err


def test_group_size_auto():
    assert options("--group_size", "auto").group_size is None
    assert options("--group_size", "64").group_size == 64
