"""The pages name every reason, option, figure and field that the code has."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from align.records import Candidate, Judgement, Message, PreferenceGroup
from reward_models.annotations import FORMATS
from reward_models.contract import Contract
from reward_models.evaluation import evaluate_scores
from reward_models.import_annotations import parser
from reward_models.preferences import AGGREGATES, TIES, targets
from reward_models.score_file import ADDED

ROOT = Path(__file__).resolve().parents[2]
IMPORT = (ROOT / "docs/annotations.md").read_text("utf-8")
MODELS = (ROOT / "docs/reward_models.md").read_text("utf-8")
REASON = re.compile(
    r'code="(\w+)"|return \[\], "(\w+)"|return "([a-z]+_[a-z_]+)"'
    r'|\("(\w+)", (?:f"|str\(error|detail\))'
)


def test_every_reason_is_explained():
    folder = ROOT / "reward_models/annotations"
    text = "".join(p.read_text("utf-8") for p in folder.glob("*.py"))
    found = {next(filter(None, groups)) for groups in REASON.findall(text)}
    assert {"bad_json", "cancelled", "no_prompt", "no_such_candidate"} <= found
    assert sorted(name for name in found if f"`{name}`" not in IMPORT) == []
    assert "`no_pair`" in IMPORT


def test_every_format_and_file_is_named():
    assert all(f"`{f.name}`" in IMPORT for f in FORMATS)
    for name in ("--label_config", "--bucket_order", "--suspects", "--fractions", "--dry_run"):
        assert name in IMPORT
        assert name in parser().format_help()


def test_every_contract_field_figure_and_setting_is_named():
    names = [f.name for f in dataclasses.fields(Contract) if f.name != "version"]
    votes = (Judgement(None, "pair", {"winner": "a", "loser": "b"}),)
    group = PreferenceGroup(
        "g", (Message("user", "q"),), (Candidate("a", "x"), Candidate("b", "y")), votes
    )
    figures = [n for n in evaluate_scores([group], [[1.0, 0.0]]) if n.startswith("eval_")]
    figures = [n for n in figures if n not in ("eval_groups", "eval_pairs")]
    figures = [n for n in figures if not n.endswith(("_low", "_high"))]
    wanted = [*names, *figures, *AGGREGATES, *TIES, *ADDED]
    assert [n for n in wanted if f"`{n}`" not in MODELS] == []


def test_the_numbers_about_alpha_are_right():
    def votes(n):
        judgements = [Judgement(None, "pair", {"winner": "a", "loser": "b"})] * n
        candidates = (Candidate("a", "x"), Candidate("b", "y"))
        group = PreferenceGroup("g", (Message("user", "q"),), candidates, tuple(judgements))
        return targets(group, alpha=1.0)[0].target

    assert abs(votes(1) - 2 / 3) < 1e-12
    assert abs(votes(5) - 6 / 7) < 1e-12
