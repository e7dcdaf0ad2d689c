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
        (["evaluate", "--model", "MODEL", "--input", "GOOD", "--output", "."], "is a folder"),
        (["evaluate", "--model", "MODEL", "--input", "GOOD", "--batch_size", "0"], "batch_size=0"),
        (["evaluate", "--model", "MODEL", "--input", "GOOD", "--device", "tpu9"], "device='tpu9'"),
    ],
)
def test_wrong_input_is_exit_code_2(checkpoint, tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text(" \n")
    files = {
        "MODEL": str(checkpoint),
        "GOOD": str(write(tmp_path / "good.jsonl", PAIRS)),
        "EMPTY": str(tmp_path / "empty.jsonl"),
        "ODD": str(write(tmp_path / "odd.jsonl", [{"a": 1}])),
        "SAME": str(write(tmp_path / "same.jsonl", PAIRS[2:])),
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
