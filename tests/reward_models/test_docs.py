"""The pages name every reason, option, figure and field that the code has, and no other option."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from align.records import Candidate, Judgement, Message, PreferenceGroup
from reward_models.__main__ import parser as commands
from reward_models.annotations import FORMATS
from reward_models.contract import Contract
from reward_models.evaluation import evaluate_scores
from reward_models.evaluation_compare import compare_scores
from reward_models.import_annotations import parser
from reward_models.preferences import AGGREGATES, TIES, targets
from reward_models.rewardbench import COUNTS, PRIOR, SUBSETS
from reward_models.score_file import ADDED

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("annotations", "annotation_tools", "public_preference_sets")
IMPORT = "".join((ROOT / f"docs/{page}.md").read_text("utf-8") for page in PAGES)
REASONS = (ROOT / "docs/annotations.md").read_text("utf-8").split("## Reasons")[1]
MODELS = (ROOT / "docs/reward_models.md").read_text("utf-8")
EVALUATION = (ROOT / "docs/reward_evaluation.md").read_text("utf-8")
WORD = r'"([a-z][a-z_]+)"'
# The ways in which the importers write a reason.
REASON = re.compile(
    rf'code={WORD}|return \[\], {WORD}|return "([a-z]+_[a-z_]+)"|drop_vote\({WORD}'
    rf'|\({WORD}, (?:f"|str\(error|detail\)|problem\))|(?:problem|why) ?= ?{WORD}'
    rf'|code = {WORD}|else "([a-z]+_[a-z_]+)"'
    rf'|"(?:reject|ignore|predictions|drafts)": {WORD}'
)
SUSPECT = re.compile(rf'suspect=(?:suspect or )?{WORD}|suspect = (?:suspect or )?{WORD}'
                     r'|"(overall_10_\w+)"|"(accepted_prediction)"')  # fmt: skip


def found_in_importers(pattern):
    folder = ROOT / "reward_models/annotations"
    text = "".join(p.read_text("utf-8") for p in folder.glob("*.py"))
    return {next(filter(None, groups)) for groups in pattern.findall(text) if any(groups)}


def test_every_reason_is_explained():
    found = found_in_importers(REASON)
    some = "bad_json cancelled no_prompt no_such_candidate second_rating suggestion bad_columns \
        rejected prediction draft no_usable_vote repeated_answer bad_csv no_parent"
    assert set(some.split()) <= found
    suspects = {"accepted_prediction"}
    assert sorted(name for name in found - suspects if f"`{name}`" not in REASONS) == []
    assert "`no_pair`" in REASONS


def test_every_mark_of_a_suspect_is_explained():
    found = found_in_importers(SUSPECT)
    assert {"display_order", "models_visible", "overall_10_rated_4_or_less"} <= found
    assert [name for name in found if f"`{name}`" not in IMPORT] == []


def options_of(made):
    return {name for action in made._actions for name in action.option_strings if len(name) > 2}


def test_every_format_and_option_is_named():
    assert all(f"`{f.name}`" in IMPORT for f in FORMATS)
    missing = options_of(parser()) - {"--help", "--input", "--output"}
    assert [name for name in missing if name not in IMPORT] == []


def test_commands_on_the_pages_have_options_that_exist():
    made: Any = commands()
    (choices,) = [a.choices for a in made._actions if isinstance(a.choices, dict)]
    known = options_of(parser()).union(*map(options_of, choices.values()))
    for page in (IMPORT, MODELS, EVALUATION):
        lines = page.replace("\\\n", " ").splitlines()
        run = [s for s in lines if "import_annotations.py" in s or "-m reward_models" in s]
        assert len(run) > 2
        assert set(re.findall(r"(?<!-)--[a-z_]+", " ".join(run))) <= known


VOTES = (Judgement(None, "pair", {"winner": "a", "loser": "b"}),)


def pair(judgements):
    candidates = (Candidate("a", "x"), Candidate("b", "yy"))
    return PreferenceGroup("g", (Message("user", "q"),), candidates, tuple(judgements))


def test_every_contract_field_and_setting_is_named():
    names = [f.name for f in dataclasses.fields(Contract) if f.name != "version"]
    wanted = [*names, *AGGREGATES, *TIES, *ADDED]
    assert [n for n in wanted if f"`{n}`" not in MODELS] == []


def test_every_figure_is_named():
    result = evaluate_scores([pair(VOTES)], [[1.0, 0.0]], resamples=2)
    figures = [n for n in result if n not in ("eval_groups", "eval_pairs")]
    figures = [n for n in figures if not n.endswith(("_low", "_high"))]
    bias = [n for n in result["length_bias"] if n not in ("unit", "points")]
    compared = compare_scores([pair(VOTES)], [[1.0, 0.0]], [[1.0, 0.0]], resamples=2)
    both = [n for n in compared if n not in ("groups", "pairs")]
    wanted = [*figures, *result["by"], *bias, *both, *compared["votes"]]
    wanted = [n for n in wanted if n != "pairs"]
    assert {"slope_given_votes", "kappa", "error_consistency", "mistakes"} <= set(wanted)
    assert [n for n in wanted if f"`{n}`" not in EVALUATION] == []


def test_every_section_of_rewardbench_is_named():
    for name in (*COUNTS, *PRIOR, *SUBSETS):
        assert name in EVALUATION


@pytest.mark.parametrize(("votes", "target"), [(1, "2/3"), (5, "6/7")])
def test_the_numbers_about_alpha_are_right(votes, target):
    made = targets(pair(VOTES * votes), alpha=1.0)[0].target
    above, below = map(int, target.split("/"))
    assert abs(made - above / below) < 1e-12
    assert target in MODELS
