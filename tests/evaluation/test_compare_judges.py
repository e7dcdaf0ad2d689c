"""compare_runs with several judges, categories and votes, on tiny random models."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "rewards"))
import eval_models as tiny
import scripted

from align.config_errors import UserError
from align.evaluation import compare as cmp
from align.evaluation.judges import NaiveBayesJudge
from align.records import Candidate, Judgement, Message, PreferenceGroup


class Length:
    name = "length"

    def __call__(self, prompts, completions, finished):
        return [float(len(c)) for c in completions]


def shorter(body: dict) -> tuple:
    """A chat model that wants the shorter answer, in whatever order."""
    if body["messages"][0]["content"] == "Reply with OK.":
        return 200, {"choices": [{"message": {"content": "OK"}}]}, {}
    texts = re.findall(r"<<<(\w{8})\n(.*?)\n\1>>>", body["messages"][0]["content"], re.DOTALL)
    (_, a), (_, b) = texts[1:]
    said = "[[C]]" if len(a) == len(b) else "[[A]]" if len(a) < len(b) else "[[B]]"
    return 200, {"choices": [{"message": {"content": said}}]}, {}


def votes(folder: Path) -> Path:
    """Six people: ppo beats sft four times, one tie; a model that is no run; path as a name."""
    rows = []
    for i, outcome in enumerate(["y", "y", "y", "y", "tie"]):
        value = {"tie": ["x", "y"]} if outcome == "tie" else {"winner": "y", "loser": "x"}
        rows.append(PreferenceGroup(
            f"g{i}", (Message("user", f"问题{i}"),),
            (Candidate("x", "短", "sft"), Candidate("y", "a longer one", str(folder / "ppo"))),
            (Judgement("me", "pair", value),),
        ))  # fmt: skip
    rows.append(PreferenceGroup(
        "other", (Message("user", "?"),), (Candidate("x", "a", "gpt"), Candidate("y", "b", "sft")),
        (Judgement("me", "pair", {"winner": "x", "loser": "y"}),),
    ))  # fmt: skip
    file = folder / "votes.jsonl"
    lines = [json.dumps(r.to_json(), ensure_ascii=False) for r in rows]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("sft", "ppo", "dpo")):
        tiny.save(root / name, seed)
    prompts = [
        {"prompt": p, "category": "评论" if i % 2 else "food", "meta": {"kind": i % 3}}
        for i, p in enumerate(tiny.PROMPTS)
    ]
    (root / "prompts.jsonl").write_text(
        "\n".join(json.dumps(p, ensure_ascii=False) for p in prompts), encoding="utf-8"
    )
    (root / "reward.py").write_text(
        "def f(prompts, completions, **kw):\n    return [len(c) / 10 for c in completions]\n"
    )
    NaiveBayesJudge({"好": 2.0, "差": -2.0}, prior=0.1).save(root / "judge.json")
    with scripted.serving(scripted.Scripted()) as server:
        server.otherwise = shorter
        argv = [
            *(str(root / n) for n in ("sft", "ppo", "dpo")),
            "--judge", f"llm:m@{server.url}/v1", "--judge", str(root / "judge.json"),
            "--judge", str(votes(root)), "--prompts", str(root / "prompts.jsonl"),
            "--reward", f"{root}/reward.py:f", "--seeds", "0,1", "--max_new_tokens", "8",
            "--output", str(root / "cmp"),
        ]  # fmt: skip
        assert cmp.main(argv) == 0
        asked = len(server.posts)
    summary = json.loads((root / "cmp" / "summary.json").read_text(encoding="utf-8"))
    lines = (root / "cmp" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return {"root": root, "summary": summary, "rows": [json.loads(x) for x in lines],
            "asked": asked, "argv": argv}  # fmt: skip


def by_run(world) -> dict[str, dict[tuple, dict]]:
    out: dict[str, dict[tuple, dict]] = {}
    for row in world["rows"]:
        out.setdefault(row["run"], {})[row["prompt_id"], row["seed"]] = row
    return out


def test_every_judge_has_a_matrix_and_the_first_that_scores_is_gold(world):
    s = world["summary"]
    assert s["judges"] == ["llm:m", "naive_bayes", "votes:votes"]
    assert s["judge"] == "naive_bayes"
    assert list(s["pairwise"]) == ["reward", "llm:m", "naive_bayes", "votes:votes"]
    assert s["runs"][1]["judge"] == s["runs"][1]["judges"]["naive_bayes"]
    assert s["runs"][1]["judges"]["llm:m"]["mean"] is None


def test_the_matrix_counts_the_samples(world):
    rows, matrix = by_run(world), world["summary"]["pairwise"]["reward"]["matrix"]
    for a in rows:
        for b in rows:
            if a == b:
                continue
            gaps = [rows[a][k]["score"] - rows[b][k]["score"] for k in rows[a]]
            expected = np.mean([(g > 0) + 0.5 * (g == 0) for g in gaps])
            assert matrix[a][b]["value"] == pytest.approx(expected)
            assert matrix[a][b]["value"] + matrix[b][a]["value"] == pytest.approx(1)
    ppo = world["summary"]["runs"][1]
    assert ppo["win_rate"]["value"] == pytest.approx(matrix["ppo"]["sft"]["value"])


def test_a_judge_of_shortness_mirrors_a_reward_of_length(world):
    """Every pair is asked in both orders, and what longer wins, shorter loses."""
    s = world["summary"]["pairwise"]
    for a, others in s["reward"]["matrix"].items():
        for b, cell in others.items():
            assert s["llm:m"]["matrix"][a][b]["value"] == pytest.approx(1 - cell["value"])
    report = s["llm:m"]["report"]
    assert report["pairs"] == 3 * 12
    assert (report["flipped"], report["failed"]) == (0, 0)
    # Both orders of each differing pair; equal questions (prompt, both texts) are asked once.
    assert 1 < world["asked"] <= 1 + 2 * (report["pairs"] - report["equal"])
    ranks = [r["name"] for r in s["reward"]["ranking"]]
    assert [r["name"] for r in s["llm:m"]["ranking"]] == ranks[::-1]
    ppo = world["summary"]["runs"][1]
    assert ppo["judges"]["llm:m"]["agrees"] is (ppo["gain"]["value"] == 0)


def test_votes_of_people_are_about_the_named_runs(world):
    found = world["summary"]["pairwise"]["votes:votes"]
    cell = found["matrix"]["ppo"]["sft"]
    assert (cell["value"], cell["wins"], cell["ties"], cell["losses"]) == (0.9, 4, 1, 0)
    assert {r["name"] for r in found["ranking"]} == {"sft", "ppo"}
    assert found["report"]["votes"] == 6
    dpo = world["summary"]["runs"][2]["judges"]["votes:votes"]
    assert (dpo["win_rate"], dpo["length_controlled_win_rate"]) == (None, None)


def test_categories_split_the_prompts(world):
    ppo = world["summary"]["runs"][1]
    assert {c: v["prompts"] for c, v in ppo["categories"].items()} == {"food": 3, "评论": 3}
    means = [v["reward"]["value"] for v in ppo["categories"].values()]
    assert np.mean(means) == pytest.approx(ppo["reward"]["mean"])
    assert {r["category"] for r in world["rows"]} == {"food", "评论"}


def test_regressions_are_the_losses_worst_first(world):
    run = next(r for r in world["summary"]["runs"] if r["regressions"])
    own, base = by_run(world)[run["name"]], by_run(world)["sft"]
    losses = {k: own[k]["score"] - base[k]["score"] for k in own}
    means = {p: (losses[p, 0] + losses[p, 1]) / 2 for p, _ in own}
    listed = run["regressions"]
    assert [r["gain"] for r in listed] == pytest.approx(sorted(m for m in means.values() if m < 0))
    for row in listed:
        key = (row["prompt_id"], row["seed"])
        assert row["gain"] == pytest.approx(means[row["prompt_id"]])
        assert losses[key] == min(losses[row["prompt_id"], s] for s in (0, 1))
        assert row["completion"] == own[key]["completion"]
        assert row["baseline"] == base[key]["completion"]


def test_means_have_intervals_and_shifts_are_differences(world):
    sft, ppo, _ = world["summary"]["runs"]
    for name in ("length", "length_chars", "repetition_4", "eos_rate"):
        e = ppo["intervals"][name]
        assert e["low"] <= e["value"] <= e["high"]
        assert e["value"] == pytest.approx(ppo[name])
        assert ppo["shifts"][name]["value"] == pytest.approx(ppo[name] - sft[name])
    e = ppo["nll_baseline"]
    assert e["low"] <= e["per_token"] <= e["high"]
    e = ppo["length_controlled"]
    assert e["low"] <= e["gain"] <= e["high"]


def test_the_page_shows_all_of_it(world):
    page = (world["root"] / "cmp" / "report.html").read_text(encoding="utf-8")
    for text in ("Who beats whom", "votes:votes", "Bradley–Terry", "Where runs lost most",
                 "Categories", "Shifts in length"):  # fmt: skip
        assert text in page


def test_one_run_alone_and_two_judges_of_one_name(world, tmp_path):
    judges = [NaiveBayesJudge({"好": 1.0}, 0.0), NaiveBayesJudge({"差": 1.0}, 0.0),
              NaiveBayesJudge({}, 0.0, name="reward")]  # fmt: skip
    prompts = [cmp.Prompt((Message("user", "早餐"),))]
    s = cmp.compare([world["root"] / "sft"], world["root"] / "sft", prompts, Length(), judges, [0],
                    cmp.Decoding(max_new_tokens=4), tmp_path, progress=lambda _: None)  # fmt: skip
    assert s["judges"] == ["naive_bayes", "naive_bayes (2)", "reward (2)"]
    assert [r["name"] for r in s["runs"]] == ["sft"]
    assert s["pairwise"]["reward"]["matrix"] == {}
    assert "Only the baseline" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_runs_of_one_name_are_told_apart(world, tmp_path):
    for folder in ("a", "b"):
        tiny.save(tmp_path / folder / "sft", 0)
    prompts = [cmp.Prompt((Message("user", "早餐"),))]
    s = cmp.compare([tmp_path / "b" / "sft"], tmp_path / "a" / "sft", prompts, Length(), None, [0],
                    cmp.Decoding(max_new_tokens=4), tmp_path / "o",
                    progress=lambda _: None)  # fmt: skip
    assert [r["name"] for r in s["runs"]] == ["a/sft", "b/sft"]
    assert s["runs"][1]["gain"]["value"] == 0


def test_a_prompt_must_fit_every_run(world, tmp_path):
    """A run with a shorter window and another template decides too."""
    small = tmp_path / "small" / "final"
    tiny.gpt2(4, positions=50).save_pretrained(small)
    tiny.tokenizer("zh_instruction").save_pretrained(small)
    prompts = [
        cmp.Prompt((Message("user", t),)) for t in ("好", "写一条很长的酒店评论，越长越好" * 2)
    ]
    s = cmp.compare([small], world["root"] / "sft", prompts, Length(), None, [0],
                    cmp.Decoding(max_new_tokens=4), tmp_path / "o",
                    progress=lambda _: None)  # fmt: skip
    assert (s["num_prompts"], s["dropped"]) == (1, {"prompt_too_long": 1})
    assert s["runs"][1]["kl"] is None


def test_a_grade_that_is_missing_is_left_out(world, tmp_path):
    class Picky:
        name = "picky"

        def score(self, prompts, completions):
            return [float("nan") if p[0].content == "早餐" else 1.0 for p in prompts]

    prompts = [cmp.Prompt((Message("user", t),)) for t in ("早餐", "room", "午餐")]
    s = cmp.compare([world["root"] / "ppo"], world["root"] / "sft", prompts, Length(), Picky(), [0],
                    cmp.Decoding(max_new_tokens=4), tmp_path, progress=lambda _: None)  # fmt: skip
    judged = s["runs"][1]["judge"]
    assert (judged["mean"], judged["unscored"], judged["win_rate"]["ties"]) == (1.0, 1, 2)
    assert s["pairwise"]["picky"]["matrix"]["ppo"]["sft"]["ties"] == 2
    rows = [json.loads(x) for x in (tmp_path / "samples.jsonl").read_text("utf-8").splitlines()]
    assert [r["judge"] for r in rows if r["run"] == "ppo"] == [None, 1.0, 1.0]


def test_a_wrong_judge_is_said_before_anything_is_read(world):
    with pytest.raises(UserError, match="no such file or folder"):
        cmp.main([*world["argv"], "--judge", "nowhere.yaml"])


def test_a_server_that_is_gone_is_said_before_anything_is_sampled(world, monkeypatch):
    """The world's server has been stopped."""
    monkeypatch.setattr("align.evaluation.endpoint.FIRST_WAIT_S", 0.0)
    with pytest.raises(UserError, match="does not answer: no answer in 5 attempts"):
        cmp.main(world["argv"])
