"""docs/ppo.md names every key with its default, and the tests of every numbered detail.

The keys of a server stand in docs/rollout_engines.md.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import pytest

from align import config_schema as schema
from align.config_key import name_of

TESTS = Path(__file__).resolve().parents[1]


def rows(page: str) -> list[list[str]]:
    """The cells of every row of every table."""
    text = (TESTS.parent / "docs" / page).read_text(encoding="utf-8")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
            if line.startswith("|")]  # fmt: skip


ROWS = rows("ppo.md")
KEYS = [*ROWS, *rows("rollout_engines.md")]


def documented(name: str) -> str:
    """The default in the row of a key; rows may hold several keys and as many defaults."""
    for row in KEYS:
        names = re.findall(r"`([\w.]+)`", row[0])
        if name in names:
            defaults = row[1].split(", ")
            return defaults[names.index(name)] if len(defaults) > 1 else row[1]
    pytest.fail(f"no page has a row for {name}")


def keys(section: type, prefix: str = ""):
    for field in fields(section):
        made = field.default_factory() if field.default_factory is not MISSING else field.default
        if is_dataclass(made):
            yield from keys(type(made), f"{field.name}.")
        else:
            yield prefix + name_of(field), made


@pytest.mark.parametrize("section", [schema.Ppo, schema.Rollout])
def test_every_key_is_documented_with_its_default(section):
    for name, default in keys(section):
        found = documented(name)
        if isinstance(default, bool) or default is None:
            assert found == {True: "true", False: "false", None: "null"}[default], name
        elif isinstance(default, (int, float)):
            assert float(found) == default, name
        else:
            assert found == str(default), name


@pytest.mark.parametrize("number", range(1, 27))
def test_every_detail_has_the_tests_that_the_page_names(number):
    (row,) = [row for row in ROWS if row[0] == str(number) and len(row) == 3]
    named = re.findall(r"`([\w/]+)`", row[2])
    assert named
    pattern = re.compile(rf"def test_\w*item_?0?{number}_")
    spans = re.compile(r"def test_item(\d\d)_to_item(\d\d)_")
    for name in named:
        folder = TESTS if name.startswith("test_adv") or "/" in name else TESTS / "train"
        files = sorted((TESTS / name).glob("test_*.py")) if name.endswith("/") else [
            folder / f"{name}.py"]  # fmt: skip
        texts = [path.read_text(encoding="utf-8") for path in files]
        within = any(int(a) <= number <= int(b) for text in texts for a, b in spans.findall(text))
        assert within or any(pattern.search(text) for text in texts), (number, name)
