"""``python -m reward_models`` on tiny models: exit codes, files, messages."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_rewards as tiny

from reward_models.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("rm") / "final", scores=[0.0, 4.0])


def write(path, rows):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


PAIRS = [
    {"prompt": "写一条酒店评论", "chosen": "房间很干净。", "rejected": "太差了。"},
    {"prompt": "Write a review", "chosen": "The room was clean.", "rejected": "No."},
    {"prompt": "q", "chosen": "same", "rejected": "same"},
]


def test_help_is_quick_and_needs_no_torch():
    code = (
        "import sys\nfrom reward_models.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n    code = stop.code\n"
        "print(code, [m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(
        [sys.executable, "-c", code, "score", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.stdout.splitlines()[-1] == "0 []"
    assert "--calibrated" in run.stdout
    # Time on the processor, so that a busy machine does not matter.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_score_and_score_again(checkpoint, tmp_path, capsys):
    source, output = write(tmp_path / "in.jsonl", PAIRS), tmp_path / "out.jsonl"
    command = ["score", "--model", str(checkpoint), "--input", str(source), "--output", str(output)]
    assert main(command) == 0
    assert capsys.readouterr().out == f"rows 3, resumed 0, errors 0, truncated 0 -> {output}\n"
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [len(line["scores"]) for line in lines] == [2, 2, 2]
    assert lines[2]["scores"][0] == pytest.approx(lines[2]["scores"][1], abs=1e-6)

    assert main(command) == 0
    assert "resumed 3" in capsys.readouterr().out
    assert main([*command, "--calibrated"]) == 2
    assert "was begun with another model or option" in capsys.readouterr().err
    assert main([*command, "--max_length", "20"]) == 2

    calibrated = tmp_path / "calibrated.jsonl"
    assert main([*command[:-1], str(calibrated), "--calibrated"]) == 0
    first = json.loads(calibrated.read_text().splitlines()[0])["scores"]
    assert [2 * s + 2 for s in first] == pytest.approx(lines[0]["scores"])  # mean 2, deviation 2


def test_evaluate_prints_and_writes_figures(checkpoint, tmp_path, capsys):
    source, output = write(tmp_path / "test.jsonl", PAIRS), tmp_path / "deep" / "figures.json"
    command = ["evaluate", "--model", str(checkpoint), "--input", str(source)]
    assert main([*command, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "rows                    2 used, dropped: 1 identical_candidates" in printed
    assert "eval_accuracy" in printed
    result = json.loads(output.read_text())
    assert result["eval_pairs"] == 2
    assert result["eval_accuracy"] in (0.0, 0.5, 1.0)
    assert result["rows"]["dropped"] == {"identical_candidates": 1}
    assert result["groups"] == {"scored": 2, "dropped": {}}
    # The other way round every decided pair turns.
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in PAIRS]
    command[-1] = str(write(tmp_path / "turned.jsonl", turned))
    assert main([*command, "--output", str(output)]) == 0
    assert json.loads(output.read_text())["eval_accuracy"] == 1 - result["eval_accuracy"]


def test_evaluate_writes_a_page_beside_the_figures(checkpoint, tmp_path, capsys):
    source = write(tmp_path / "test.jsonl", PAIRS)
    command = ["evaluate", "--model", str(checkpoint), "--input", str(source), "--output"]
    assert main([*command, str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "report.html").read_text("utf-8")
    result = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [m["prompt"] for m in result["mistakes"]] == ["Write a review"]
    assert '<td class="t">Write a review</td>' in page
    assert str(checkpoint) in page
    assert result["model"] == str(checkpoint)
    assert set(result["by"]) == {"length", "answer_length", "agreement", "language", "source"}
    assert result["by"]["source"].keys() == {"pairs"}
    assert main([*command, str(tmp_path / "figures.json")]) == 0
    assert (tmp_path / "figures.html").read_text("utf-8").startswith("<!doctype html>")
    capsys.readouterr()


def test_shortened_answers_are_told(checkpoint, tmp_path, capsys):
    rows = [{**PAIRS[0], "chosen": "long " * 400}, PAIRS[1]]
    source, output = write(tmp_path / "test.jsonl", rows), tmp_path / "r.json"
    command = ["evaluate", "--model", str(checkpoint), "--input", str(source)]
    assert main([*command, "--max_length", "60", "--output", str(output)]) == 0
    assert "truncated               1 of 4 answers" in capsys.readouterr().out
    told = "1 of 4 answers were too long: the model read them shortened."
    assert told in output.with_suffix(".html").read_text("utf-8")


def test_what_the_reader_assumed_is_told(checkpoint, tmp_path, capsys):
    # A Label Studio export without its labelling config: which field was on the left is a guess.
    vote = {"type": "pairwise", "from_name": "c", "to_name": "c", "value": {"selected": "left"}}
    data = {"prompt": "写一条评论", "answer1": "很好。", "answer2": "很差。"}
    task = {"id": 1, "data": data, "annotations": [{"id": 7, "result": [vote]}]}
    (tmp_path / "export.json").write_text(json.dumps([task]), "utf-8")
    command = ["--input", str(tmp_path / "export.json"), "--output", str(tmp_path / "out")]
    assert main(["evaluate", "--model", str(checkpoint), *command]) == 0
    told = r"warning: .*answer1.*\(1 times\)"
    assert re.search(told, capsys.readouterr().out)
    twice = ["--model", str(checkpoint), "--model", str(checkpoint)]
    assert main(["compare", *twice, *command]) == 0
    assert re.search(told, capsys.readouterr().out)
    (warning,) = json.loads((tmp_path / "out" / "report.json").read_text())["warnings"]
    assert warning.replace("'", "&#39;") in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_equal_texts_get_equal_scores_in_any_batch(checkpoint, tmp_path, capsys):
    # The same answers under longer and longer company, in batches of three.
    rows = [{"prompt": "q", "completions": ["same", "long " * n, "same"], "gold": [1, 0, 1]}
            for n in range(1, 9)]  # fmt: skip
    source, output = write(tmp_path / "s.jsonl", rows), tmp_path / "r.json"
    command = ["evaluate", "--model", str(checkpoint), "--input", str(source)]
    assert main([*command, "--output", str(output), "--batch_size", "3"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"best of 3 +\d\.\d{4}, random 0\.6667, best 1\.0000 \(gold\)", printed)
    result = json.loads(output.read_text())
    (curve,) = result["best_of_n"]
    assert curve["groups"] == 8
    # Either answer "same" is picked or none: with equal scores of the two, 1 or 0 in each group.
    picked = curve["curve"][2]["gold"] * 8
    assert picked == pytest.approx(round(picked))


def test_an_ensembles_uncertainty_is_a_breakdown(tmp_path, capsys):
    folder = tiny.save(tmp_path / "three", heads=3)
    source, output = write(tmp_path / "test.jsonl", PAIRS), tmp_path / "r.json"
    command = ["evaluate", "--model", str(folder), "--input", str(source), "--output", str(output)]
    assert main(command) == 0
    parts = json.loads(output.read_text())["by"]["uncertainty"]
    assert sum(part["pairs"] for part in parts.values()) == 2
    capsys.readouterr()


BENCH = {
    "rewardbench": [
        {"prompt": "Q", "chosen": "The room was clean.", "rejected": "No.", "subset": "hep-go"},
        {"prompt": "问", "chosen": "同样", "rejected": "同样", "subset": "math-prm"},
        {"prompt": "Q", "chosen": "A", "subset": "hep-go"},
    ],
    "rewardbench2": [
        {"prompt": "问", "chosen": ["好"], "rejected": ["a", "b"], "subset": "Focus", "id": "1"},
        {"prompt": "Q", "chosen": ["A"], "rejected": ["b", "c"], "subset": "Ties", "id": "ref:1"},
        {"prompt": "Q", "chosen": ["A", "D"], "rejected": ["b"], "subset": "Ties", "id": "tied:1"},
        {"prompt": "Q", "chosen": ["A", "D"], "rejected": ["b"], "subset": "Ties", "id": "1"},
    ],
}  # fmt: skip


@pytest.mark.parametrize("protocol", sorted(BENCH))
def test_benchmark_protocols(checkpoint, tmp_path, capsys, protocol):
    source, output = write(tmp_path / "b.jsonl", BENCH[protocol]), tmp_path / "r.json"
    command = ["evaluate", "--model", str(checkpoint), "--input", str(source)]
    assert main([*command, "--protocol", protocol, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    result = json.loads(output.read_text())
    assert result["protocol"] == protocol
    assert result["overall"]["score"] is None
    assert re.search("overall +-, without", printed)
    assert (result["rows"]["used"], sum(result["rows"]["dropped"].values())) == (
        len(BENCH[protocol]) - 1, 1,
    )  # fmt: skip
    if protocol == "rewardbench":
        assert result["subsets"]["math-prm"]["score"] == 0.0  # equal is wrong, to the last bit
        assert result["length_baseline"]["subsets"]["hep-go"] == 1.0
    else:
        assert result["subsets"]["Focus"]["score"] in (0.0, 1.0)
        assert result["ties"]["score"] is not None
    assert (tmp_path / "r.html").exists()


def test_compare_two_models(checkpoint, tmp_path, capsys):
    other = tiny.save(tmp_path / "other", seed=5)
    rows = [*PAIRS, {"prompt": "Q", "chosen": "Terrible food", "rejected": "早餐不错"}]
    source, output = write(tmp_path / "test.jsonl", rows), tmp_path / "out"
    command = ["compare", "--model", str(checkpoint), "--input", str(source)]
    assert main([*command, "--model", str(checkpoint), "--output", str(output)]) == 0
    result = json.loads((output / "report.json").read_text())
    assert result["pair_agreement"]["value"] == 1.0
    assert (result["pairs"], result["groups"]) == (3, {"scored": 3, "dropped": {}})
    assert result["votes"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert "pair_agreement          1.0000" in capsys.readouterr().out
    assert main([*command, "--model", str(other), "--output", str(output)]) == 0
    found = json.loads((output / "report.json").read_text())
    assert found["A"] == str(checkpoint)
    assert found["votes"]["accuracy_a"] == result["votes"]["accuracy_a"]
    n = round(3 * found["pair_agreement"]["value"])
    assert len(found["disagreements"]) == 3 - n
    assert "Two reward models" in (output / "report.html").read_text("utf-8")
    capsys.readouterr()


def test_compare_needs_two_models(checkpoint, tmp_path, capsys):
    source = write(tmp_path / "test.jsonl", PAIRS)
    command = ["compare", "--input", str(source), "--model", str(checkpoint)]
    assert main(command) == 2
    assert "Give --model A --model B" in capsys.readouterr().err


def test_answers_that_a_model_cannot_read_are_counted(checkpoint, tmp_path, capsys):
    # Three tokens leave no room for an answer.
    source = write(tmp_path / "test.jsonl", PAIRS)
    narrow = tiny.save(tmp_path / "narrow", max_length=3)
    command = ["compare", "--input", str(source), "--model", str(checkpoint)]
    assert main([*command, "--model", str(narrow)]) == 2
    assert "{'too_long': 2}" in capsys.readouterr().err


def test_evaluate_merges_rows_about_the_same_answers(checkpoint, tmp_path, capsys):
    row = PAIRS[0]
    turned = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
    source = write(tmp_path / "test.jsonl", [row, turned])
    assert main(["evaluate", "--model", str(checkpoint), "--input", str(source)]) == 0
    printed = capsys.readouterr().out
    assert "eval_ties               1" in printed
    assert "eval_accuracy           None" in printed


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["score", "--model", "MODEL", "--input", "nowhere.jsonl", "--output", "o"],
            "is not a file",
        ),
        (["score", "--model", "nowhere", "--input", "GOOD", "--output", "o"], "is not a folder"),
        (["score", "--model", "MODEL", "--input", "EMPTY", "--output", "o"], "is empty"),
        (["score", "--model", "MODEL", "--input", "GOOD", "--output", "GOOD"], "is the input"),
        (["evaluate", "--model", "MODEL", "--input", "ODD"], "fits no known format"),
        (["evaluate", "--model", "MODEL", "--input", "SAME"], "no usable row.*identical"),
        (["evaluate", "--model", "MODEL", "--input", "GOOD", "--output", "GOOD"], "is a file"),
        (["evaluate", "--model", "MODEL", "--input", "GOOD", "--output", "f.json"], "is a folder"),
        (
            ["evaluate", "--model", "MODEL", "--input", "GOOD", "--output", "page.json"],
            r"output='page.json' cannot be written",  # page.html is a folder
        ),
        (
            ["evaluate", "--model", "nowhere", "--input", "GOOD", "--output", "good.jsonl/f.json"],
            r"output='good.jsonl/f.json' cannot be written: .*good\.jsonl is no folder",
        ),
        (["evaluate", "--model", "nowhere", "--input", "GOOD", "--seed", "-1"], "seed=-1 is below"),
        (["evaluate", "--model", "MODEL", "--input", "UNJUDGED"], "neither votes nor gold"),
        (
            ["evaluate", "--model", "nowhere", "--input", "GOOD", "--aggregate", "dawid_skene"],
            "aggregate='dawid_skene' is not in the meta",
        ),
        (
            ["evaluate", "--model", "nowhere", "--input", "ODD", "--protocol", "rewardbench"],
            "has no rewardbench row: 1 missing_field",
        ),
        (["evaluate", "--model", "MODEL", "--input", "GOOD", "--batch_size", "0"], "batch_size=0"),
        (["evaluate", "--model", "MODEL", "--input", "GOOD", "--device", "tpu9"], "device='tpu9'"),
    ],
)
def test_wrong_input_is_exit_code_2(checkpoint, tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text(" \n")
    (tmp_path / "f.json").mkdir()
    (tmp_path / "page.html").mkdir()
    files = {
        "MODEL": str(checkpoint),
        "GOOD": str(write(tmp_path / "good.jsonl", PAIRS)),
        "EMPTY": str(tmp_path / "empty.jsonl"),
        "ODD": str(write(tmp_path / "odd.jsonl", [{"a": 1}])),
        "SAME": str(write(tmp_path / "same.jsonl", PAIRS[2:])),
        "UNJUDGED": str(
            write(tmp_path / "unjudged.jsonl", [{"prompt": "q", "completions": ["a", "b"]}])
        ),
    }
    assert main([files.get(word, word) for word in command]) == 2
    error = capsys.readouterr().err
    assert "error: " in re.split(r"[\r\n]", error.strip())[-1]
    assert re.search(message, error)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("words", [[], ["score"], ["evaluate", "--aggregate", "mean"]])
def test_argparse_errors_are_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
