"""Rules that the whole tree keeps: sizes, paths, parseable configurations, true documentation."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("align", "reward_models", "recipes")
PAGES = ("README.md", "README.zh.md", "CONTRIBUTING.md")
MAX_MODULE, MAX_FUNCTION = 350, 60
HEAVY = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets")


def tracked() -> list[Path]:
    """The files that git knows; outside a git checkout those below the source folders."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = [n for n in listed.stdout.split("\0") if n] if listed.returncode == 0 else []
    if names:
        return [ROOT / name for name in names if (ROOT / name).is_file()]
    folders = (*PACKAGES, "tests", "docs", "ds_configs")
    return [p for f in folders for p in (ROOT / f).rglob("*") if p.is_file()]


FILES = tracked()
MODULES = sorted(
    p for p in FILES if p.suffix == ".py" and p.relative_to(ROOT).parts[0] in PACKAGES
)


def long_functions(source: str, limit: int) -> list[str]:
    """Names of the functions of a module that have more lines than `limit`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > limit:
                found.append(f"{node.name}: {lines} lines")
    return found


def test_the_check_on_functions_sees_a_long_one():
    source = "def short():\n    pass\n\ndef long():\n" + "    pass\n" * 4
    assert long_functions(source, 4) == ["long: 5 lines"]


def test_modules_were_found():
    assert {"config.py", "losses.py"} <= {p.name for p in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_module_is_small(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= MAX_MODULE
    assert long_functions(source, MAX_FUNCTION) == []


def test_no_machine_paths():
    # Written in two halves so that this file does not match itself.
    pattern = re.compile("/" + r"(work|root|home/\w+|Users/\w+|opt/wheels)/")
    text = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".jsonl", ".txt", ".html", ".js", ""}
    found = []
    for path in FILES:
        if path.suffix in text and path.stat().st_size < 5_000_000:
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except UnicodeDecodeError:
                continue
            found += [
                f"{path.relative_to(ROOT)}:{i}" for i, s in enumerate(lines, 1) if pattern.search(s)
            ]
    assert found == []


def configs(*suffixes: str) -> list[Path]:
    wanted = ("ds_configs", "recipes")
    return [p for p in FILES if p.suffix in suffixes and p.relative_to(ROOT).parts[0] in wanted]


@pytest.mark.parametrize("path", configs(".yaml", ".yml"), ids=lambda p: p.name)
def test_yaml_parses_to_a_mapping(path):
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


@pytest.mark.parametrize("path", configs(".json"), ids=lambda p: p.name)
def test_json_parses(path):
    assert json.loads(path.read_text(encoding="utf-8"))


def test_every_promised_launch_configuration_is_there():
    names = {p.name for p in (ROOT / "ds_configs").iterdir()}
    kinds = ("single", "cpu2", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2")
    zeros = ("zero1", "zero2", "zero3", "zero3_offload")
    assert {f"accelerate_{k}.yaml" for k in kinds} | {f"{z}.json" for z in zeros} <= names


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3", "zero3_offload"])
def test_accelerate_file_points_to_its_deepspeed_file(stage):
    launch = yaml.safe_load((ROOT / f"ds_configs/accelerate_{stage}.yaml").read_text())
    target = ROOT / launch["deepspeed_config"]["deepspeed_config_file"]
    zero = json.loads(target.read_text())["zero_optimization"]
    assert zero["stage"] == int(stage[4])
    assert launch["deepspeed_config"]["zero3_init_flag"] is (zero["stage"] == 3)
    assert ("offload_param" in zero) is stage.endswith("offload")


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_readme_commands_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    used = set(re.findall(r"^ +make ([a-z-]+)", text, re.MULTILINE))
    assert used, "the page names no make target"
    assert used <= make_targets()
    mentioned = re.findall(r"(?:recipes|ds_configs|\.ci)/[\w./-]*\w", text)
    assert [m for m in mentioned if not (ROOT / m).exists()] == []


@pytest.mark.parametrize(
    "page", [p for p in FILES if p.suffix == ".md"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_links_in_docs_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required(group: str | None = None) -> set[str]:
    """Names in pyproject's dependencies, or in one of its extras, read without a TOML parser."""
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(rf"^{group or 'dependencies'} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    assert block, group
    names = re.findall(r'"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?(?:[<>=!~ ][^"]*)?"', block[1])
    return {normal(n) for n in names} - {"align"}


def test_everything_installed_by_make_venv_has_a_pin():
    pins = set()
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.match(r"[\w.-]+==[\w.]+( ; python_version [<>=]+ \"3\.11\")?$", line), line
            pins.add(normal(line.split("==")[0]))
    needed = set().union(*map(required, (None, "demo", "data", "dev", "deepspeed")))
    assert {"torch", "snownlp", "pytest", "ninja"} <= needed
    assert needed - pins == set()


def test_makefile_installs_the_pinned_torch():
    pin = re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pin
    assert f"TORCH := {pin[0]}\n" in (ROOT / "Makefile").read_text()


LIGHT = "align align.config align.records reward_models.annotations reward_models.preferences"


@pytest.mark.parametrize("module", LIGHT.split())
def test_light_modules_import_no_torch(module):
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
