"""The examples of docs/rewards.md do what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from align.records import Message
from align.rewards import make_reward

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
ASKED = [[Message("user", "写一条好评")], [Message("user", "写一条好评")],
         [Message("user", "Write a review")]]  # fmt: skip
ANSWERS = ["很干净，很满意。", "clean", "The staff were kind."]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my_rewards.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_functions_of_the_page(folder):
    sections = re.findall(r"^    rewards:\n(?:      .*\n)+", PAGE, re.MULTILINE)
    section = next(s for s in sections if "same_language" in s)
    reward = make_reward(yaml.safe_load(section)["rewards"])
    scores = reward.score(ASKED, ANSWERS, [True, True, False])
    assert scores.components == {
        "praise": [2, 1, 1],
        "same_language": [1, -1, 1],
        "brevity": [-0.08, -0.05, -1],
    }
    # 2 + 0.5 − 0.016; 1 − 0.5 − 0.01; 1 + 0.5 − 0.2
    assert scores.total == pytest.approx([2.484, 0.49, 1.3])


def test_the_command_of_the_page(folder):
    found = re.search(r'    python -c "\n(.*?)"\n', PAGE, re.DOTALL)
    assert found
    run = subprocess.run(
        [sys.executable, "-c", re.sub(r"^    ", "", found[1], flags=re.MULTILINE)],
        cwd=folder, env={"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}, capture_output=True,
        text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert run.stdout.strip() == "Scores(total=[1.0], components={'praise': [1.0]})"
