"""EleutherAI's harness on a policy: a local task gives what our own scoring does."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import eval_models as tiny
from test_suite_files import choices

from align.config_errors import UserError
from align.evaluation import evaluate_policy
from align.evaluation.lm_eval_harness import HarnessTasks, check_harness
from align.evaluation.suites import load_suite

ROWS = [
    {"question": "房间怎么样？", "choices": ["很干净", "太差了，再也不来了"], "answer": 0},
    {"question": "How was it?", "choices": ["The room was clean", "Terrible food"], "answer": 1},
    {"question": "早餐？", "choices": ["不错", "很差", "没有"], "answer": 2},
    {"question": "Rate the food", "choices": ["good", "bad, never again"], "answer": 0},
]
TASK = Path(__file__).parent / "lm_eval_tasks" / "hotel_choice.yaml"
HERE = importlib.util.find_spec("lm_eval") is not None


@pytest.fixture
def tasks(tmp_path):
    """A folder with a local task and its data."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = TASK.read_text(encoding="utf-8").replace("DATA", str(folder / "rows.jsonl"))
    (folder / "hotel_choice.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not HERE, reason="extra 'lm-eval'")
def test_a_local_task_agrees_with_our_own_scoring(tasks, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    run_dir = tiny.save(tmp_path / "run", 0)
    found = evaluate_policy.evaluate(
        run_dir, suites=[load_suite(choices(tmp_path, rows=ROWS))],
        harness=HarnessTasks(("hotel_choice",), str(tasks)),
    )  # fmt: skip
    theirs = found["lm_eval"]["tasks"]["hotel_choice"]
    ours = found["suites"]["s"]["tasks"]["t"]["metrics"]
    assert theirs["acc"] == pytest.approx(ours["acc"]["value"])
    assert theirs["acc_norm"] == pytest.approx(ours["acc_norm"]["value"])
    assert theirs["n"] == 4
    assert 0 < theirs["acc"] < 1 or 0 < theirs["acc_norm"] < 1
    assert found["lm_eval"]["chat_template"] is True
    page = (run_dir / "eval" / "report.html").read_text(encoding="utf-8")
    assert "hotel_choice" in page
    written = json.loads((run_dir / "eval" / "evaluation.json").read_text(encoding="utf-8"))
    assert written["lm_eval"]["tasks"]["hotel_choice"]["acc"] == theirs["acc"]
    with pytest.raises(UserError, match=r"--lm_eval='hotel_choise' is no task.*'hotel_choice'"):
        evaluate_policy.evaluate(run_dir, harness=HarnessTasks(("hotel_choise",), str(tasks)))


@pytest.mark.parametrize(
    ("names", "folder", "limit", "message"),
    [
        ("x", "no_such", None, "--lm_eval_tasks='no_such' is no folder"),
        ("x", None, 0, "--lm_eval_limit=0 is below 1"),
        (" , ", None, None, "--lm_eval=' , ' names no task"),
    ],
)
def test_wrong_options(monkeypatch, names, folder, limit, message):
    monkeypatch.setattr("align.evaluation.lm_eval_harness.find_spec", lambda name: object())
    with pytest.raises(UserError, match=message):
        check_harness(names, folder, limit)


def test_without_the_package_the_install_line_is_said(monkeypatch):
    monkeypatch.setattr("align.evaluation.lm_eval_harness.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'align\[lm-eval\]'"):
        check_harness("hotel_choice", None, None)
    monkeypatch.setattr("align.evaluation.lm_eval_harness.find_spec", lambda name: object())
    assert check_harness("a, b", None, 3) == HarnessTasks(("a", "b"), None, 3)
