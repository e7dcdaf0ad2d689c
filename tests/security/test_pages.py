"""Every page that is written, with hostile text wherever text comes from a model or a file.

Read by a parser, and by Chromium with the page's content security policy taken out, so that the
escaping alone has to hold.
"""

from __future__ import annotations

import html
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from align.cleaning.main import main as clean
from align.records import Candidate, Judgement, Message, PreferenceGroup
from align.report import write_comparison, write_run_report
from align.report.evaluation import write_evaluation
from reward_models.annotations.intake import Options
from reward_models.evaluation import evaluate_scores
from reward_models.evaluation_compare import compare_scores
from reward_models.evaluation_report import render
from reward_models.importing import ImportSettings, run_import
from reward_models.rewardbench import Item, evaluate_items

EVIL = (
    '<script>document.title="pwned"</script>"><img src=x onerror="document.title=\'pwned\'">'
    '</script><script>document.title="pwned"</script></style></title>{{7*7}}${7*7}\u2028 房间'
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Page: scripts of its own (data and code), and whether it says that {{7*7}} stands in it.
OWN = {
    "run": 2, "tokenizer": 1, "comparison": 2, "evaluation": 2, "cleaning": 2, "import": 0,
    "reward_evaluation": 0, "reward_comparison": 0, "benchmark": 0,
}  # fmt: skip


def run_page(folder: Path) -> Path:
    folder.mkdir()
    sample = {"step": 2, "prompt": EVIL, "completion": EVIL, "score": 1.0, EVIL: EVIL}
    files = {
        "metrics.jsonl": "\n".join(
            json.dumps({"step": i, "score/mean": 0.1 * i, EVIL: i}) for i in (1, 2)
        ),
        "samples.jsonl": json.dumps(sample),
        "config.yaml": json.dumps({"policy": {"path": EVIL}}),
        "manifest.json": json.dumps({"method": EVIL, "error": EVIL}),
        "data_counts.json": json.dumps([{"file": EVIL, "used": 1, "dropped": {EVIL: 2}}]),
    }
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    return write_run_report(folder)


def tokenizer_page(folder: Path) -> Path:
    folder.mkdir()
    rates = {"chars_per_token": 2.0, "fertility": 0.5, "bytes_per_token": 4.0, "tokens": 100.0,
             "byte_fallback_share": 0.2, "unknown_rate": 0, "vocabulary_coverage": 0.4}  # fmt: skip
    report = {
        "measured_on": EVIL, "held_out": True, "texts": {"all": 3, EVIL: 2},
        "vocabulary": {EVIL: 9, "this": 9}, "changed": {EVIL: 0, "this": 0},
        "rates": {EVIL: {"all": rates, EVIL: rates}, "this": {"all": rates, EVIL: rates}},
        "samples": [{"language": EVIL, "tokens": {"this": [[EVIL, EVIL]], EVIL: [[EVIL, EVIL]]}}],
    }  # fmt: skip
    (folder / "manifest.json").write_text('{"method": "tokenizer"}', "utf-8")
    (folder / "metrics.jsonl").write_text('{"step": 1, "fertility": 0.5}\n', "utf-8")
    (folder / "tokenizer_report.json").write_text(json.dumps(report), "utf-8")
    return write_run_report(folder)


def comparison_page(folder: Path) -> Path:
    run = {
        "name": EVIL, "path": EVIL, "samples": 2, "kl": None, "nll_baseline": {"per_token": 2.0},
        "reward": {"mean": 1.0, "std": 0.5, "low": 0.9, "high": 1.1}, "judge": None, "length": 9.0,
        "gain": {"value": 0.5, "low": 0.2, "high": 0.8, "in_baseline_std": 1.25},
        "win_rate": {"value": 0.75, "low": 0.5, "high": 0.9}, "distinct_2": 0.5, "eos_rate": 0.9,
        "length_controlled": {"gain": 0.4}, "repetition_4": 0.1, "time_s": None, "tokens": None,
        "trajectory": [{"step": 1, "kl": 1, "reward": 0.4}],
    }  # fmt: skip
    rate = {"value": 0.75, "low": 0.5, "high": 0.9}
    figures = {"prompts": 2, "reward": rate, "gain": rate, "win_rate": rate}
    points = [{"step": i, "reward": rate, "kl": rate, "gold": rate} for i in (0, 1)]
    over = {"peak_step": 0, "last_step": 1, "gold_at_peak": 1.0, "gold_at_end": 0.5, "drop": rate,
            "level": 0.95, "reward_rise_after_peak": 1.0, "found": True}  # fmt: skip
    worst = {"prompt_id": EVIL, "seed": 0, "gain": -1.0, "judges": {EVIL: -1.0}, "prompt": EVIL,
             "baseline": EVIL, "completion": EVIL}  # fmt: skip
    own = {
        "frontier": {"source": EVIL, "points": points, "over_optimisation": over},
        "judges": {EVIL: {"mean": None, "win_rate": rate, "gain": None, "agrees": False}},
        "categories": {EVIL + c: figures for c in "abc"}, "regressions": [worst],
        "shifts": {"length": rate}, "length_controlled_win_rate": rate,
    }  # fmt: skip
    elo = [{"name": name, "elo": 1000, "low": 900, "high": 1100} for name in ("sft", EVIL)]
    matrix = {"sft": {EVIL: rate}, EVIL: {"sft": rate}}
    summary = {
        "baseline": "sft", "num_prompts": 2, "seeds": [0], "decoding": {EVIL: 1.0},
        "reward": EVIL, "judge": EVIL, "judges": [EVIL],
        "runs": [run | {"name": "sft"}, run | own], "notes": [EVIL],
        "pairwise": {
            EVIL: {"matrix": matrix, "ranking": elo, "note": EVIL, "report": {EVIL: EVIL}},
            "b": {"matrix": matrix, "ranking": [], "note": EVIL, "report": {}},
        },
    }  # fmt: skip
    samples = [
        {"prompt_id": EVIL, "prompt": EVIL, "seed": 0, "run": name, "completion": EVIL,
         "score": 1.0, "kl": None, "judge": None, "length": 3, "finished": True,
         "category": EVIL, "judges": {EVIL: 1.0}}
        for name in ("sft", EVIL)
    ]  # fmt: skip
    return write_comparison(summary, folder / "report.html", samples)


def evaluation_page(folder: Path) -> Path:
    result = {"model": EVIL, "seeds": [0], "decoding": {EVIL: EVIL}, "generation": {
        EVIL: 1.0, "eos_rate": 0.9, "score": {"mean": 1.0, "low": 0.5, "high": 1.5}}}  # fmt: skip
    row = {"prompt": [{"role": EVIL, "content": EVIL}], "completion": EVIL, "score": 1.0}
    return write_evaluation(result, folder / "report.html", [row])


def cleaning_page(folder: Path) -> Path:
    folder.mkdir()
    texts = [f"第{i}家酒店在江边，房间很大，早餐不错。{EVIL}" for i in range(9)]
    rows = [json.dumps({"text": t}) for t in [*texts, texts[0], "短"]]
    (folder / f"{EVIL.replace('/', '∕')[:80]}.jsonl").write_text("\n".join(rows), "utf-8")
    words = ["--input", str(folder), "--output", str(folder / "out"), "--rules", "none"]
    assert clean([*words, "--workers", "1"]) == 0
    return folder / "out" / "report.html"


def group(number: int) -> PreferenceGroup:
    """A ranking of three answers by a hostile annotator."""
    candidates = tuple(Candidate(c, f"{EVIL}{c}", model=EVIL) for c in "abc")
    rank = Judgement(EVIL, "rank", {"a": 1, "b": 2, "c": 3}, source=EVIL)
    pair = Judgement("z", "pair", {"winner": "b", "loser": "a"})
    prompt = (Message("user", f"{EVIL}{number}"),)
    return PreferenceGroup(f"{EVIL}{number}", prompt, candidates, (rank, pair), {})


def import_page(folder: Path) -> Path:
    folder.mkdir()
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(group(i).to_json()) + "\n" for i in range(6)), "utf-8")
    settings = ImportSettings((str(source),), folder / "out", options=Options())
    run_import(settings, say=lambda _: None)
    return folder / "out" / "report.html"


def written(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "report.html").write_text(text, "utf-8")
    return folder / "report.html"


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    groups = [group(i) for i in range(4)]
    scores = [[0.1 * i, 0.5, 0.2] for i in range(4)]
    about = {"model": EVIL, EVIL: EVIL}
    items = [Item(EVIL, EVIL, (EVIL,), (EVIL,)), Item("donotanswer", EVIL, (EVIL,), (EVIL,))]
    drawn = [[1.0, 0.0]] * 2
    bench = evaluate_items("rewardbench", items, drawn, drawn, resamples=5)
    evaluated = evaluate_scores(groups, scores, resamples=20)
    compared = compare_scores(groups, scores, scores[::-1], resamples=20)
    return {
        "run": run_page(root / "run"),
        "tokenizer": tokenizer_page(root / "tokenizer"),
        "comparison": comparison_page(root / "comparison"),
        "evaluation": evaluation_page(root / "evaluation"),
        "cleaning": cleaning_page(root / "cleaning"),
        "import": import_page(root / "import"),
        "reward_evaluation": written(root / "reward_evaluation", render(evaluated, about)),
        "reward_comparison": written(root / "reward_comparison", render(compared, about)),
        "benchmark": written(root / "benchmark", render(bench, about)),
    }


class Read(HTMLParser):
    """Elements, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text, self.scripts, self._in = "", [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(k, v or "") for k, v in attrs]
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in == "script":
            self.scripts[-1] += data
        else:
            self.text += data


def assert_harmless(page: Read, own: int) -> None:
    """Nothing of a foreign text has become an element, a handler or code."""
    assert page.tags.count("script") == own
    assert not {"img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert [name for name, _ in page.attributes if name.startswith("on")] == []
    links = [v for k, v in page.attributes if k in ("href", "src") and v != "data:,"]
    assert [v for v in links if not v.startswith("#")] == []  # only within the page
    code = [s for s in page.scripts if not s.lstrip().startswith("{")]
    assert not any("pwned" in text for text in code)


@pytest.mark.parametrize("name", OWN)
def test_a_parser_finds_no_foreign_element(pages, name, fault):
    fault("markup and scripts in a text on a report page", "shown as text; nothing runs")
    text = pages[name].read_text("utf-8")
    page = Read(text)
    assert_harmless(page, OWN[name])
    assert POLICY in html.unescape(text)
    # The text is there, and no template has computed it: in a data block or before the reader.
    assert "{{7*7}}" in page.text + "".join(page.scripts)
    assert "{{49}}" not in text


@pytest.mark.skipif(CHROMIUM is None, reason="apt-get install --no-install-recommends chromium")
@pytest.mark.parametrize("name", OWN)
def test_a_browser_runs_no_foreign_script(pages, name, tmp_path, fault):
    fault("markup and scripts in a text on a report page", "shown as text; nothing runs")
    text = pages[name].read_text("utf-8")
    bare = tmp_path / "page.html"
    bare.write_text(text.replace("Content-Security-Policy", "x-none"), "utf-8")
    dumped = dump(bare, tmp_path)
    page = Read(dumped)
    assert_harmless(page, OWN[name])
    assert "<title>pwned</title>" not in dumped
    assert "{{7*7}}" in page.text  # drawn for the reader, also where the page's script draws it
    if name in ("run", "comparison", "evaluation", "cleaning"):
        assert 'class="sample"' in dumped  # so our script has run


@pytest.mark.skipif(CHROMIUM is None, reason="apt-get install --no-install-recommends chromium")
def test_the_browser_would_have_shown_a_script(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><title>x</title><p>{EVIL}</p>", "utf-8")
    assert "<title>pwned</title>" in dump(page, tmp_path)


def dump(page: Path, folder: Path) -> str:
    """The document as it stands when the page's scripts have run."""
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=2000", "--dump-dom",
         page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
