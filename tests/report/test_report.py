"""Report pages: escaping, offline, curves and verdicts."""

from __future__ import annotations

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import comparison_data

from align.report import (
    charts,
    charts_compare,
    glossary,
    page,
    verdict,
    write_comparison,
    write_run_report,
)
from align.report.run import curves_of, method_of

EVIL = "</script><script>alert('注入')</script><img src=x onerror=alert(1)> & \u2028 \"'"


def write_run(folder: Path, rows: list[dict], **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


class Tags(HTMLParser):
    """Counts elements and checks that they nest."""

    VOID = frozenset({"meta", "link", "input", "img", "br", "line", "circle", "rect", "path"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}
        self.attributes: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen[tag] = self.seen.get(tag, 0) + 1
        self.attributes += [k for k, _ in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def parse(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    return tags


def test_markup_in_any_text_does_nothing(tmp_path):
    run = write_run(
        tmp_path / "ppo",
        [{"step": 1, "score/mean": 0.1, EVIL: 1.0}, {"step": 2, "score/mean": 0.3, EVIL: 2.0}],
        samples__jsonl=json.dumps({"step": 2, "prompt": EVIL, "completion": EVIL, "score": 1.0}),
        config__yaml="policy: {path: " + json.dumps(EVIL) + "}\n",
        manifest__json=json.dumps({"method": EVIL}),
        data_counts__json=json.dumps([{"file": EVIL, "used": 1, "dropped": {EVIL: 2}}]),
    )
    html = write_run_report(run).read_text(encoding="utf-8")
    tags = parse(html)
    # Ours: the sample store and the page's script. Nothing of the text became an element.
    assert tags.seen["script"] == 2
    assert "img" not in tags.seen
    assert not [a for a in tags.attributes if a.startswith("on")]
    store = re.search(r'id="samples">(.*?)</script>', html, re.S)
    assert store is not None
    row = json.loads(store.group(1))["rows"][0]
    assert row["prompt"] == row["answers"][0]["text"] == EVIL


def test_page_asks_the_network_for_nothing(tmp_path):
    html = write_run_report(write_run(tmp_path / "sft", [{"step": 1, "loss": 1.0}])).read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert not re.search(r"\bsrc=|@import|url\(", html)
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert "width=device-width" in html


def test_missing_and_half_written_files_still_give_a_page(tmp_path):
    assert write_run_report(tmp_path).is_file()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    html = write_run_report(tmp_path).read_text()
    assert "Training loss 2.5" in html


def test_nan_is_told_and_drawn_as_a_gap(tmp_path):
    rows = [{"step": i, "loss": math.nan if i == 3 else 1.0 / i} for i in range(1, 7)]
    html = write_run_report(write_run(tmp_path, rows)).read_text()
    assert "1 logged values are NaN" in html
    path = re.search(r' d="([^"]+)"', html)
    assert path is not None
    assert path.group(1).count("M") == 2


def test_training_and_held_out_share_one_chart(tmp_path):
    rows = [{"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 2.1}, {"step": 2, "loss": 1.5},
            {"step": 2, "eval_loss": 1.8}]  # fmt: skip
    html = write_run_report(write_run(tmp_path / "sft", rows)).read_text()
    assert parse(html).seen["svg"] == 1
    assert "held out" in html


def test_data_counts_are_shown_with_reasons(tmp_path):
    counts = [{"file": "偏好.jsonl", "used": 90, "dropped": {"tie": 7, "duplicate": 3}}]
    run = write_run(tmp_path, [], data_counts__json=json.dumps(counts))
    html = write_run_report(run).read_text(encoding="utf-8")
    assert "<td>偏好.jsonl</td><td>90</td><td>10</td><td>tie 7, duplicate 3</td>" in html


def test_curves_are_sorted_and_a_resumed_step_counts_once():
    rows = [{"step": 2, "loss": 5.0}, {"step": 1, "loss": 9.0}, {"step": 2, "loss": 4.0},
            {"loss": 7.0}, {"step": 3, "note": "x", "flag": True}]  # fmt: skip
    assert curves_of(rows) == {"loss": [(1.0, 9.0), (2.0, 4.0)]}


@pytest.mark.parametrize(
    ("curve", "method"),
    [("score/mean", "ppo"), ("rewards/margins", "dpo"), ("log_odds", "orpo"), ("x", "run")],
)
def test_method_is_guessed_from_the_curves(tmp_path, curve, method):
    assert method_of(tmp_path, {}, {}, {curve: [(1.0, 1.0)]}) == method


def test_method_of_the_manifest_wins(tmp_path):
    assert method_of(tmp_path, {}, {"method": "dpo"}, {"score/mean": [(1.0, 1.0)]}) == "dpo"


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [(0, 10, [0, 5, 10]), (0, 1, [0, 0.5, 1]), (-0.3, 0.3, [-0.2, 0, 0.2]), (3, 3, [3])],
)
def test_ticks_are_round(low, high, want):
    assert charts.ticks(low, high, 3) == pytest.approx(want)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (12345.6, "12.35k"), (2.5e6, "2.5M"), (1e-5, "1.00e-05"),
     (-1.5, "-1.5"), (None, "–"), (math.inf, "inf")],
)  # fmt: skip
def test_numbers_for_people(value, text):
    assert charts.number(value) == text


def test_smoothing_has_no_lag_and_keeps_a_constant():
    line = [(float(i), 2.0 * i) for i in range(101)]
    assert dict(charts.smooth(line, 0.9))[50.0] == pytest.approx(100.0)
    flat = [(0.0, 3.0), (1.0, math.nan), (2.0, 3.0)]
    assert charts.smooth(flat, 0.9) == [(0.0, pytest.approx(3.0)), (2.0, pytest.approx(3.0))]


def test_thinning_keeps_extremes_and_gaps():
    points = [(float(i), math.sin(i)) for i in range(10_000)]
    points[4321] = (4321.0, 50.0)
    points[77] = (77.0, math.nan)
    kept = charts.thin(points)
    assert len(kept) <= 402
    assert (4321.0, 50.0) in kept
    assert any(math.isnan(y) for _, y in kept)
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_chart_coordinates_worked_by_hand():
    svg = str(charts.lines([charts.Series("a", [(0, 0), (10, 1)])], label="a"))
    # x from 48 to 350; y: 8 % of room on both sides of 0 to 1, between 176 and 10.
    assert 'd="M48.0 164.6L350.0 21.4"' in svg


def test_empty_charts_say_so():
    assert "no finite values" in charts.lines([charts.Series("a", [(0, math.nan)])], label="a")
    assert "not measured" in charts.bars([], label="a")
    assert "not measured" in charts.picture([], label="a", x_label="x", y_label="y")


def ramp(low: float, high: float, n: int = 20) -> list[tuple[float, float]]:
    return [(float(i), low + (high - low) * i / (n - 1)) for i in range(n)]


def test_ppo_verdict_good_and_warned():
    flat = [(float(i), 4.0 * (1 - math.exp(-i / 2))) for i in range(20)]
    good = verdict.judge("ppo", {"score/mean": ramp(0, 1), "kl/sum": flat})
    assert good.level == "good"
    assert "rose" in good.headline
    bad = verdict.judge(
        "ppo",
        {"score/mean": ramp(1, 0), "kl/sum": ramp(0, 40), "eos_rate": ramp(0.9, 0.1),
         "entropy": ramp(3, 0.1), "length/mean": ramp(20, 90), "sampler_gap": ramp(0, 0.5),
         "explained_variance": ramp(0, -1)},
    )  # fmt: skip
    assert bad.level == "bad"
    text = " ".join(t for _, t in bad.findings)
    for sign in ("KL still grows", "eos_rate", "Length moved", "Entropy", "sampler_gap", "critic"):
        assert sign in text


def test_language_verdict_warns_of_overfitting_and_spikes():
    v = verdict.judge("sft", {"eval_loss": [(1, 2.0), (2, 1.5), (3, 1.9)]})
    assert "lowest at step 2" in v.findings[0][1]
    loss = [*ramp(2, 1), (21.0, 30.0), (22.0, 1.0)]
    v = verdict.judge("sft", {"loss": loss})
    assert any("spike at step 21" in t for _, t in v.findings)


def test_preference_and_reward_verdicts():
    v = verdict.judge("dpo", {"eval_rewards/accuracies": ramp(0.5, 0.8), "logps/chosen":
                              ramp(-40, -70)})  # fmt: skip
    assert "held-out pairs" in v.headline
    assert any("less likely" in t for _, t in v.findings)
    v = verdict.judge("reward", {"eval_accuracy": ramp(0.5, 0.5)})
    assert v.level == "bad"
    assert verdict.judge("ppo", {}).headline == "Nothing was logged yet."


def test_script_json_cannot_close_its_block():
    text = str(page.script_json({"a": EVIL, "b": math.nan}))
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text) == {"a": EVIL, "b": "nan"}


def test_comparison_page(tmp_path):
    run = {
        "path": "p", "samples": 2, "reward": {"mean": 1.0, "std": 0.5, "low": 0.9, "high": 1.1},
        "gain": {"value": 0.5, "low": 0.2, "high": 0.8, "in_baseline_std": 1.25},
        "win_rate": {"value": 0.75, "low": 0.5, "high": 0.9},
        "kl": {"value": 3, "low": 2, "high": 4},
        "nll_baseline": {"per_token": 2.0}, "judge": None, "length": 9.0, "distinct_2": 0.5,
        "length_controlled": {"gain": 0.4}, "repetition_4": 0.1, "eos_rate": 0.9,
        "time_s": None, "tokens": None, "trajectory": [{"step": 1, "kl": 1, "reward": 0.4}],
    }  # fmt: skip
    zero = {"gain": {"value": 0, "low": 0, "high": 0, "in_baseline_std": 0.0}}
    summary = {
        "baseline": "sft", "num_prompts": 2, "seeds": [0], "decoding": {"temperature": 1.0},
        "reward": "r", "judge": None, "runs": [{**run, **zero, "name": "sft"},
                                               {**run, "name": EVIL}],
    }  # fmt: skip
    samples = [{"prompt_id": "1", "prompt": EVIL, "seed": 0, "run": n, "completion": EVIL,
                "score": 1.0, "kl": None, "judge": None, "length": 3, "finished": True}
               for n in ("sft", EVIL)]  # fmt: skip
    path = write_comparison(summary, tmp_path / "report.html", samples)
    html = path.read_text(encoding="utf-8")
    tags = parse(html)
    assert tags.seen["script"] == 2
    assert "img" not in tags.seen
    assert "+1.25" in html
    assert "75%" in html


def verdict_of(tmp_path, change=None, **over: object) -> str:
    """Text of a comparison page whose ppo has this over_optimisation."""
    summary, _ = comparison_data.comparison(n=6)
    found = {
        "peak_step": 50, "last_step": 100, "gold_at_peak": 0.8, "gold_at_end": 0.6, "level": 0.995,
        "drop": {"value": 0.2, "low": 0.1, "high": 0.3}, "reward_rise_after_peak": 0.7,
        "found": True,
    }  # fmt: skip
    summary["runs"][2]["frontier"]["over_optimisation"] = found | over
    if change:
        change(summary["runs"][2])
    html = write_comparison(summary, tmp_path / "r.html").read_text(encoding="utf-8")
    section = re.search(r'<section class="verdict.*?</section>', html, re.DOTALL)
    assert section is not None
    return re.sub(r"<[^>]+>", " ", section[0])


def test_over_optimisation_is_said_with_its_step_and_interval(tmp_path):
    text = " ".join(verdict_of(tmp_path).split())
    assert ("bad ppo is over-optimised: gold was highest at step 50 (0.8) and lost 0.2 [0.1, 0.3] "
            "by step 100, while the reward moved by +0.7.") in text  # fmt: skip


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"found": False, "drop": {"value": 0.1, "low": -0.1, "high": 0.3}}, "may be chance"),
        ({"found": False}, "came with the reward"),
        ({"found": False, "peak_step": 100}, "gold is highest at the end of the run"),
    ],
)
def test_other_ends_of_a_run_are_no_over_optimisation(tmp_path, over, said):
    text = verdict_of(tmp_path, **over)
    assert said in text
    assert "over-optimised" not in text
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert ("highest at the end (0.8)." in page) == (over.get("peak_step") == 100)


def test_a_win_by_length_is_said(tmp_path):
    def change(run: dict) -> None:
        run["win_rate"]["value"] = 0.7
        run["length_controlled_win_rate"] = {"value": 0.4, "low": 0.3, "high": 0.5}

    text = " ".join(verdict_of(tmp_path, change).split())
    assert "ppo wins by length: 70% of the pairs, and 40% at equal length." in text


def test_a_doubtful_judge_is_said(tmp_path):
    summary, _ = comparison_data.comparison(n=6)
    report = {"pairs": 100, "agreed": 40, "flipped": 40, "failed": 20, "flip_rate": 0.5}
    summary["pairwise"]["gold"]["report"] = report
    html = write_comparison(summary, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "gold changed its mind with the order of the answers in 50% of the pairs." in html
    assert "gold gave no verdict on 20% of the pairs, which count as ties." in html
    assert "pairs 100 · agreed 40 · flipped 40 · failed 20 · flip rate 0.5" in html


def test_a_radar_worked_by_hand():
    svg = str(charts_compare.radar(
        ["甲", "b", "c", EVIL], [("x", [1.0, 0.5, 0.0, 1.0], 0)], label="r", reference=0.5
    ))  # fmt: skip
    # Centre (210, 160), radius 128: up, right, down, left.
    assert 'points="210.0,32.0 274.0,160.0 210.0,160.0 82.0,160.0"' in svg
    assert 'class="ring reference" points="210.0,96.0 274.0,160.0 210.0,224.0 146.0,160.0"' in svg
    assert "<script" not in svg
    assert "three categories" in charts_compare.radar(["a"], [], label="r")


def test_a_forest_draws_the_interval_and_the_reference():
    svg = str(charts_compare.forest([charts.Bar("a", 2.0, 1.0, 3.0)], label="f", reference=0.0))
    # x from 10 to 350 over 0 to 3 with 4 % of room: 1 is at 10 + 340·1.12/3.24.
    assert 'class="whisker" x1="127.5" y1="26" x2="337.4" y2="26"' in svg
    assert 'class="base" x1="22.6"' in svg
    assert "not measured" in charts_compare.forest([], label="f")


def test_a_band_follows_its_interval():
    points, band = [(0.0, 1.0), (10.0, 1.0)], [(0.0, 0.0, 2.0), (10.0, 0.0, 2.0)]
    svg = str(charts.lines([charts.Series("a", points, 0, "line", band)], label="a"))
    # y from 176 to 10 over 0 to 2 with 8 % of room.
    assert 'points="48.0,164.6 350.0,164.6 350.0,21.4 48.0,21.4"' in svg


def test_samples_beyond_the_room_of_a_page_are_left_out_and_said():
    row = {"prompt": "p", "group": "g", "value": 0.0,
           "answers": [{"name": "a", "text": "x" * 1_500_000, "facts": {}}]}  # fmt: skip
    options = {"group_label": "step", "value_label": "v", "colours": {}}
    store = page.sample_store([row | {"group": "old"}, row, row], group="old", **options)
    assert store["note"] == "1 earlier samples are left out of this page."
    kept = json.loads(store["json"])
    assert [r["group"] for r in kept["rows"]] == ["g", "g"]
    assert kept["start"] == ""  # the group that would open first is not there
    assert page.sample_store([], group="", **options) is None


def test_every_glossary_name_is_documented_once():
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for names in glossary.GROUPS.values():
        for name in names:
            assert text.count(f"| `{name}` |") == 1, name


def test_ppo_names_of_the_checklist_are_in_the_glossary():
    names = (  # noqa: SIM905 - copied as published
        "score/mean score/std reward/shaped kl/sum kl/token kl_coef entropy length/mean eos_rate "
        "approx_kl clip_frac clip_frac_low clip_frac_high ratio/max value_loss value_clip_frac "
        "explained_variance grad_norm grad_norm_critic sampler_gap time/rollout time/score "
        "time/optimise tokens_per_s"
    ).split()
    assert [n for n in names if not glossary.meaning(n)] == []
