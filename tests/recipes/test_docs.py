"""The pages are true: their YAML runs, every key is described, and every key they name exists."""

from __future__ import annotations

import dataclasses
import re
import shutil

import pytest
import recipe_runs as rr
import yaml

from align import config_schema as schema
from align.config import METHODS, TOOLS
from align.config_key import name_of
from align.config_parse import names_of

DOCS = rr.ROOT / "docs"
# Which page describes the keys of a section.
PAGES = {
    "sft": "sft.md", "reward": "reward_training.md", "dpo": "dpo.md", "orpo": "orpo.md",
    "ppo": "ppo.md", "rollout": "ppo.md", "iterate": "iteration.md",
}  # fmt: skip
OURS = ["configuration.md", "recipes.md", "sft.md", "dpo.md", "orpo.md", "reward_training.md"]


def text_of(page):
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page):
    return re.findall(r"^```yaml\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)


def keys():
    for section, cls in schema.SECTIONS.items():
        for field in dataclasses.fields(cls):
            if not (cls is schema.Train and field.name == "args"):
                yield section, name_of(field)


@pytest.mark.parametrize(("section", "name"), keys())
def test_every_key_is_described(section, name):
    text = text_of(PAGES.get(section, "configuration.md"))
    start = text.find(f"\n### {section}\n") if section not in PAGES else 0
    assert start >= 0 or section == "demo"
    assert re.search(rf"`(?:{section}\.)?{name}(?:\.\w+)?`", text[max(start, 0) :])


@pytest.mark.parametrize("page", OURS)
def test_every_key_that_a_page_names_exists(page):
    named = set(re.findall(r"`(?:--)?([a-z_]+)\.([a-z_]+)[^`]*`", text_of(page)))
    wrong = [
        f"{section}.{name}"
        for section, name in named
        if section in schema.SECTIONS
        and name not in ("py", "md")
        and name not in names_of(schema.SECTIONS[section])
    ]
    assert wrong == []


@pytest.mark.parametrize("page", ["configuration.md", "recipes.md", "index.md"])
def test_the_pages_name_every_recipe_and_page(page):
    text = text_of(page)
    if page == "recipes.md":
        found = set(re.findall(r"`([a-z_]+)\.py`|recipes/([a-z_]+)\.py", text))
        names = {a or b for a, b in found}
        assert {path.stem for path in (rr.ROOT / "recipes").glob("*.py")} <= names
    if page == "configuration.md":
        assert all(f"`{m}`" in text for m in METHODS)
        assert "tools.<recipe>" in text
        assert "export_model" in TOOLS
    if page == "index.md":
        linked = set(re.findall(r"\]\(([a-z_]+\.md)\)", text))
        assert {path.name for path in DOCS.glob("*.md")} - {"index.md"} <= linked


def test_exit_codes_are_those_of_the_code():
    from align import run

    codes = re.findall(r"^\| (\d+) \|", text_of("configuration.md"), re.MULTILINE)
    assert [int(c) for c in codes] == [run.DONE, run.FAILED, run.WRONG_INPUT, run.STOPPED]


def test_messages_that_the_page_quotes(capsys):
    quoted = re.findall(r"^    (error: .*)$", text_of("configuration.md"), re.MULTILINE)
    assert len(quoted) == 2
    for line, words in zip(
        quoted, (["--ppo.lamb", "0.9"], ["--policy.reference", "cached"]), strict=True
    ):
        assert rr.main_of("ppo")(["--config", rr.SMOKE, *words]) == 2
        assert capsys.readouterr().err == f"{line}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with everything that the pages' files name."""
    folder = tmp_path_factory.mktemp("pages")
    rr.tiny_model(folder / "base-model", chat_template=None)
    rr.tiny_model(folder / "model")
    rr.write_rows(folder / "preferences.jsonl", rr.pair_rows() * 2)
    rows = [{"instruction": p, "output": c} for p, c, _ in rr.PAIRS]
    rr.write_rows(folder / "sft.jsonl", rows * 2)
    return folder


@pytest.mark.parametrize(
    ("page", "recipes"),
    [
        ("sft.md", ["sft"]),
        ("dpo.md", ["dpo"]),
        ("orpo.md", ["orpo"]),
        ("reward_training.md", ["reward"]),
        ("configuration.md", ["sft", "reward", "dpo", "orpo", "ppo"]),
    ],
)
def test_the_yaml_of_a_page_runs(place, tmp_path, page, recipes):
    found = blocks(page)
    assert len(found) == 1
    for name in ("base-model", "preferences.jsonl", "sft.jsonl"):
        source = place / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    shutil.copytree(place / "model", tmp_path / "runs" / "start" / "final")
    # The page's file, with its start renamed: runs/sft is also where its SFT stage would write.
    text = found[0].replace("runs/sft/final", "runs/start/final")
    assert yaml.safe_load(text)
    (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
    few = ["--train.max_steps", "1", "--rollout.prompts_per_update", "4", "--demo.root", "stages"]
    few += ["--rollout.max_new_tokens", "8", "--train.per_device_train_batch_size", "2"]
    few += ["--train.gradient_accumulation_steps", "1", "--train.eval_strategy", "no"]
    with rr.inside(tmp_path):
        for recipe in recipes:
            assert rr.main_of(recipe)(["--config", "my.yaml", *few]) == 0
