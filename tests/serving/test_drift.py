"""Two days of a log: figures by hand, changes that are seen, chance that is not, the command."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "feedback"))

from feedback_rows import thumb, vote, write

from align.serving.drift import compare, estimate, gap, newcombe
from align.serving.drift_rows import make_day

ROOT = Path(__file__).resolve().parents[2]
ZH, EN = "早餐很好，房间也干净。", "The room was clean."


def row(day="2026-01-01", *, latency=1.0, tokens=10, text=None, failure=None, number=0, **figures):
    """A line of a request log; text: kept in it."""
    request = {
        "failure": failure, "first_token_s": latency / 4, "prompt_tokens": 20, "chars": 11,
        "language": "zh", "refuses": False, "finish_reason": "stop", **figures,
    }  # fmt: skip
    prompt = None if text is None else [{"role": "user", "content": f"问 {number}"}]
    return {
        "id": f"{day}-{number}", "time": f"{day}T08:00:00.000+00:00", "source": "serving",
        "prompt": prompt, "completions": [{"model": "m", "text": text}], "vote": None,
        "consent": text is not None, "latency_s": latency, "tokens": tokens, "request": request,
    }  # fmt: skip


def rows(n, day="2026-01-01", seed=0, **options):
    rng = np.random.default_rng(seed)
    return [
        row(day, number=i, latency=float(rng.lognormal()), tokens=int(rng.integers(5, 60)),
            chars=int(rng.integers(20, 90)), language=("zh", "en")[i % 2],
            failure="http_500" if rng.random() < 0.1 else None, refuses=bool(rng.random() < 0.2),
            **options)
        for i in range(n)
    ]  # fmt: skip


def verdicts(before, after, rewards="no reward model", **options):
    lines = compare(make_day("a", before), make_day("b", after), rewards, **options)
    return {line.name: line for line in lines}


def command(*words):
    spec = importlib.util.spec_from_file_location("drift", ROOT / "recipes" / "drift_report.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(w) for w in words])


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    # Newcombe 1998, table II, method 10.
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090),
     ((10, 10), (0, 20), 0.6791, 1.0), ((5, 56), (0, 29), -0.0381, 0.1926)],
)  # fmt: skip
def test_the_interval_of_two_shares_is_the_published_one(first, second, low, high):
    one, other = (np.array([1.0] * k + [0.0] * (n - k)) for k, n in (first, second))
    found = newcombe(other, one, 0.95)
    assert found == pytest.approx((low, high), abs=6e-5)
    swapped = newcombe(one, other, 0.95)
    assert swapped == pytest.approx((-high, -low), abs=6e-5)
    wider = newcombe(other, one, 0.99)
    assert wider[0] < found[0]
    assert wider[1] >= found[1]


def test_quantiles_are_nearest_rank_and_means_are_means():
    values = np.array([50.0, 15.0, 40.0, 20.0, 35.0])
    assert estimate(values, "p50")["value"] == 35
    assert estimate(values, "p95")["value"] == 50
    assert estimate(values, "mean")["value"] == 32
    assert estimate(np.array([]), "mean") is None
    assert gap(values, values + 7, "p50", 0.99)["value"] == 7


def test_a_bootstrap_interval_is_that_of_the_normal_where_it_holds():
    """Means of 400 draws of N(0, 1) and N(0.5, 1): standard error √(2/400) = 0.0707."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=400), rng.normal(size=400) + 0.5
    found = gap(a, b, "mean", 0.998)
    assert found["value"] == pytest.approx(b.mean() - a.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 0.0707, rel=0.1)
    assert found["wide_high"] - found["wide_low"] == pytest.approx(2 * 3.09 * 0.0707, rel=0.15)


def test_a_day_by_hand():
    day = [row(latency=k, tokens=k, number=k, language="zh" if k < 4 else "en", chars=10 * k,
               refuses=k == 1, finish_reason="length" if k > 3 else "stop")
           for k in (1, 2, 3, 4)]  # fmt: skip
    day += [row(failure="http_503", latency=99, number=5), row(failure="disconnected", number=6)]
    found = verdicts(day, day, min_n=4)
    values = {name: line.before and line.before["value"] for name, line in found.items()}
    assert values == {
        "requests": 6, "failures": 0.2, "latency p50": 2, "latency p95": 4, "first token p50": 0.5,
        "prompt tokens": 20, "answer tokens": 2.5, "answer length, Chinese": 20,
        "answer length, English": 40, "answers in Chinese": 0.75, "cut at the limit": 0.25,
        "refusals": 0.25, "reward": None, "votes up": None,
    }  # fmt: skip
    assert found["failures"].before["n"] == 5  # who left is no failure
    assert found["answer length, English"].verdict == "too few"
    assert (found["votes up"].verdict, found["votes up"].reason) == ("not measured", "no votes")
    assert found["latency p50"].verdict == "not drifted"
    assert found["requests"].verdict == "count"


def test_what_changed_drifts_and_nothing_else():
    before = rows(300)
    after = [{**r, "latency_s": r["latency_s"] * 2,
              "request": {**r["request"], "refuses": i % 2 == 0}}
             for i, r in enumerate(rows(300, "2026-01-02", seed=7))]  # fmt: skip
    found = verdicts(before, after)
    assert {name for name, line in found.items() if line.verdict == "drifted"} == {
        "latency p50", "latency p95", "refusals",
    }  # fmt: skip
    assert found["refusals"].difference["low"] > 0.2
    # A tolerance of 140 % lets a doubled latency pass; refusals rose from 20 % to 50 %.
    calm = verdicts(before, after, min_change=1.4)
    assert {name for name, line in calm.items() if line.verdict == "drifted"} == {"refusals"}


@pytest.mark.slow
def test_chance_alone_is_rarely_called_drift():
    """Nominal: one report in twenty. Forty pairs of days of one distribution."""
    alarms = 0
    for seed in range(40):
        found = verdicts(rows(100, seed=2 * seed), rows(100, seed=2 * seed + 1))
        alarms += any(line.verdict == "drifted" for line in found.values())
    assert alarms <= 6  # P(more than 6 of 40 at 5 %) = 0.3 %


def test_rewards_and_votes_are_lines_too():
    votes = [{**thumb("A", said="up"), "answer": str(i), "annotator": "ann"} for i in range(40)]
    again = [{**thumb("A", said="down"), "answer": str(i), "annotator": "ann"} for i in range(40)]
    before, after = rows(40) + votes, rows(40, seed=1) + votes + again
    up = [0.1 * (k % 7) for k in range(40)]
    found = verdicts(before, after, (up, [v + 1 for v in up]))
    assert found["reward"].difference["value"] == pytest.approx(1.0)
    assert found["reward"].verdict == "drifted"
    assert (found["votes up"].before["value"], found["votes up"].after["value"]) == (1.0, 0.0)
    assert found["votes up"].after["n"] == 40  # the last vote of each person counts


def test_rows_of_a_chat_page_are_answers_and_votes_and_pairs_are_neither():
    refusing = thumb("抱歉，我不能帮助你。", said="down")
    day = make_day("d", [refusing, thumb(EN, said=None), vote(), {"completions": 5}])
    assert (len(day.answers), len(day.votes), day.skipped) == (2, 1, 2)
    found = verdicts([refusing, thumb(EN)], [refusing, thumb(EN)], min_n=2)
    assert found["refusals"].before["value"] == 0.5  # from the text: the log has no figures
    assert found["answers in Chinese"].before["value"] == 0.5


def test_the_command_over_a_folder(tmp_path, capsys):
    log, out = tmp_path / "log", tmp_path / "out"
    log.mkdir()
    write(log / "requests-2026-01-01.jsonl", rows(60, text=ZH))
    late = [{**r, "latency_s": 9.0} for r in rows(60, "2026-01-02", seed=3, text=ZH)]
    write(log / "requests-2026-01-02.jsonl", late)
    with (log / "requests-2026-01-02.jsonl").open("a") as file:
        file.write('{"torn')
    (tmp_path / "longer.py").write_text(
        "def reward(prompts, completions, **_):\n    return [float(len(c)) for c in completions]\n"
    )
    words = ["--log", log, "--days", "2026-01-01", "2026-01-02", "--output", out]
    assert command(*words) == 0
    result = json.loads((out / "drift.json").read_text(encoding="utf-8"))
    assert result["drifted"] == ["latency p50"]
    lines = {line["name"]: line for line in result["lines"]}
    assert lines["latency p95"]["verdict"] == "too few"  # of 95 % quantiles of sixty values
    assert lines["reward"]["reason"] == "no reward model was given"
    assert result["after"]["torn_lines"] == 1
    shown = capsys.readouterr().out
    assert "2026-01-02" in shown
    assert "drifted" in shown
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "latency p95" in page
    assert "Newcombe" in page
    scored = [*words, "--reward", f"{tmp_path / 'longer.py'}:reward", "--max_scored", 40]
    assert command(*scored, "--fail_on_drift") == 1
    assert "failed: drifted: latency p50" in capsys.readouterr().err
    result = json.loads((out / "drift.json").read_text(encoding="utf-8"))
    reward = next(line for line in result["lines"] if line["name"] == "reward")
    assert (reward["before"]["value"], reward["before"]["n"], reward["verdict"]) == (
        11,
        40,
        "not drifted",
    )


def test_two_files_without_texts_and_no_drift(tmp_path):
    one, two = (write(tmp_path / f"{n}.jsonl", rows(50, seed=4)) for n in "ab")
    (tmp_path / "r.py").write_text("def reward(prompts, completions, **_):\n    raise OSError\n")
    code = command("--before", one, "--after", two, "--output", tmp_path / "out", "--fail_on_drift",
                   "--reward", f"{tmp_path / 'r.py'}:reward")  # fmt: skip
    assert code == 0
    result = json.loads((tmp_path / "out" / "drift.json").read_text())
    reward = next(line for line in result["lines"] if line["name"] == "reward")
    assert (reward["verdict"], reward["reason"]) == ("not measured", "no texts logged")
    assert result["drifted"] == []
    assert "No drift was seen" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--log or --before and --after is needed"),
        (["--before", "{log}"], "--log or --before and --after is needed"),
        (["--before", "{log}", "--after", "{log}", "--log", "{dir}"], "is needed"),
        (["--log", "{dir}"], "--days is missing"),
        (["--days", "2026-01-01", "2026-01-02"], "--log is missing"),
        (["--log", "{dir}", "--days", "2026-01-01", "2026-13-01"], "'2026-13-01' is no day"),
        (["--log", "{dir}", "--days", "2026-01-01", "yesterday"], "'yesterday' is no day"),
        (["--log", "{dir}", "--days", "2026-01-01", "2026-01-01"], "is given twice"),
        (["--log", "{dir}", "--days", "2026-01-01", "2026-01-03"], "There are days: 2026-01-01"),
        (["--log", "{log}", "--days", "2026-01-01", "2026-01-03"], "has no request in"),
        (["--log", "nowhere", "--days", "2026-01-01", "2026-01-03"], "does not exist"),
        (["--before", "{dir}", "--after", "{log}"], "is a folder"),
        (["--before", "{log}", "--after", "{log}", "--reward", "nowhere"], "does not exist"),
        (["--before", "{log}", "--after", "{log}", "--output", "{log}"], "is a file"),
        (["--before", "{log}", "--after", "{log}", "--min_n", "1"], "1 is below 2"),
    ],
)
def test_wrong_input(tmp_path, capsys, words, said):
    (tmp_path / "log").mkdir()
    log = write(tmp_path / "log" / "requests-2026-01-01.jsonl", [row()])
    names = {"{log}": str(log), "{dir}": str(log.parent)}
    argv = [names.get(w, w) for w in words] or ["--seed", "1"]
    assert command(*argv) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_reward_is_that_of_the_checkpoint(tmp_path):
    """Each day holds one text forty times: the difference is that of their two scores."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "reward_models"))
    import tiny_rewards

    from align.records import Message
    from align.rewards.model import ModelReward

    checkpoint = tiny_rewards.save(tmp_path / "rm" / "final", scores=[0.0, 4.0])
    days = [
        write(tmp_path / f"{i}.jsonl", [row(text=text, number=0) for _ in range(40)])
        for i, text in enumerate((ZH, EN))
    ]
    code = command("--before", days[0], "--after", days[1], "--reward", tmp_path / "rm",
                   "--output", tmp_path / "out", "--fail_on_drift")  # fmt: skip
    assert code == 1
    result = json.loads((tmp_path / "out" / "drift.json").read_text())
    line = next(line for line in result["lines"] if line["name"] == "reward")
    asked = [Message("user", "问 0")]
    zh, en = ModelReward(checkpoint)([asked, asked], [ZH, EN], [True, True])
    assert zh != en
    assert line["before"]["value"] == pytest.approx(zh, abs=1e-5)
    assert line["difference"]["value"] == pytest.approx(en - zh, abs=1e-5)
    assert line["verdict"] == "drifted"
