"""The import end to end: files, splits, rejects, counts that add up, errors that leave nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from align.data.pairs import load_preferences
from align.records import Message, PairTarget, prompt_key
from reward_models import import_passes
from reward_models.annotations.base import Options
from reward_models.annotations.label_config import load_label_config
from reward_models.import_annotations import main
from reward_models.importing import ImportSettings, run_import, split_of

ROOT = Path(__file__).resolve().parents[2]
DEMO, CONFIG = ROOT / "recipes/data/label_studio.json", ROOT / "recipes/data/label_studio.xml"
FILES = {
    "preferences.jsonl", "pairs.jsonl", "train.jsonl", "validation.jsonl", "test.jsonl",
    "rejects.jsonl", "report.json", "report.html",
}  # fmt: skip


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(i, winner="good", **more):
    return {"prompt": f"question {i}", "chosen": winner, "rejected": "bad", **more}


def run(output, *inputs, **options):
    said = []
    made = ImportSettings(tuple(map(str, inputs)), output, **options)
    return run_import(made, say=said.append)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_the_recipe_writes_all_files(tmp_path):
    output = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "recipes/import_annotations.py", "--input", str(DEMO),
         "--label_config", str(CONFIG), "--output", str(output)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert names(output) == FILES
    report = json.loads((output / "report.json").read_text("utf-8"))
    assert (report["rows"]["used"], report["groups"]["used"], report["pairs"]) == (8, 8, 8)
    assert (report["votes"]["used"], report["votes"]["dropped"]) == (15, {"cancelled": 1})
    assert "votes         16 in        15 used   1 cancelled" in done.stdout
    groups = lines(output / "preferences.jsonl")
    assert [g["group_id"] for g in groups] == [
        g["group_id"] for g in lines(output / "train.jsonl")
        + lines(output / "validation.jsonl") + lines(output / "test.jsonl")
    ]  # fmt: skip
    first = groups[0]
    assert first["prompt"] == [{"role": "user", "content": "春天有哪些花？"}]
    assert [j["value"]["winner"] for j in first["judgements"]] == ["answer1", "answer1"]
    pairs = lines(output / "pairs.jsonl")
    assert pairs[1]["chosen"][0]["content"].startswith("水烧到八十度左右")
    assert pairs[1]["target"] == 1.0
    assert sum(p["target"] == 0.5 for p in pairs) == 1
    # What was written is what training reads.
    read, counts = load_preferences(output / "train.jsonl")
    assert (len(read), counts.dropped) == (len(lines(output / "train.jsonl")), Counter())


def test_importing_what_was_written_changes_nothing(tmp_path):
    run(tmp_path / "a", DEMO, options=Options(load_label_config(str(CONFIG))))
    report = run(tmp_path / "b", tmp_path / "a" / "preferences.jsonl")
    assert report["rows"]["used"] == 8
    first, second = (lines(tmp_path / n / "preferences.jsonl") for n in "ab")
    assert first == second
    assert (tmp_path / "a/pairs.jsonl").read_text() == (tmp_path / "b/pairs.jsonl").read_text()
    # The three splits together are the whole; given twice they count once.
    parts = [tmp_path / "a" / f"{n}.jsonl" for n in ("preferences", "train")]
    report = run(tmp_path / "c", *parts)
    assert report["rows"]["dropped"] == {"duplicate_row": 8}
    assert lines(tmp_path / "c" / "preferences.jsonl") == first


def test_splits_are_by_prompt_and_about_as_large_as_asked(tmp_path):
    rows = [pair(i, winner=f"good {k}") for i in range(400) for k in range(2)]
    rows += [{**pair(i, winner="third"), "prompt": f"  QUESTION   {i} "} for i in range(400)]
    report = run(tmp_path / "out", write(tmp_path / "in.jsonl", rows), fractions=(8, 1, 1))
    split = {n: lines(tmp_path / "out" / f"{n}.jsonl") for n in ("train", "validation", "test")}
    keys = {
        n: {prompt_key([Message(**m) for m in g["prompt"]]) for g in groups}
        for n, groups in split.items()
    }
    assert sum(map(len, keys.values())) == report["quality"]["prompts"] == 400
    assert report["quality"]["prompts_in_two_splits"] == 0
    assert {n: len(groups) for n, groups in split.items()} == report["splits"]
    # Binomial: 320 ± 8 and 40 ± 6 prompts; three times that.
    assert abs(len(keys["train"]) - 320) < 24
    assert abs(len(keys["test"]) - 40) < 18


def test_a_prompt_stays_in_its_split_when_rows_are_added():
    keys = [prompt_key([Message("user", f"问题 {i}")]) for i in range(200)]
    before = [split_of(k, (0.8, 0.1, 0.1), 0) for k in keys]
    assert [split_of(k, (8, 1, 1), 0) for k in reversed(keys)] == before[::-1]
    assert [split_of(k, (0.8, 0.1, 0.1), 1) for k in keys] != before
    # A smaller test part takes nothing out of train.
    assert all(
        split_of(k, (0.8, 0.2, 0.0), 0) == "train" for k, s in zip(keys, before, strict=True)
        if s == "train"
    )  # fmt: skip


def test_rows_about_the_same_answers_become_one_group(tmp_path):
    rows = [
        pair(1, annotator="x"),
        {"prompt": "question 1", "chosen": "bad", "rejected": "good", "annotator": "y"},
        pair(1, annotator="z"),
        pair(2),
    ]
    report = run(tmp_path / "out", write(tmp_path / "in.jsonl", rows))
    assert (report["rows"]["used"], report["groups"]["used"], report["merged_rows"]) == (4, 2, 2)
    merged = next(g for g in lines(tmp_path / "out/preferences.jsonl") if g["meta"].get("merged"))
    assert merged["meta"]["merged"] == 3
    assert [j["value"]["winner"] for j in merged["judgements"]] == ["chosen", "rejected", "chosen"]
    (made,) = [
        p for p in lines(tmp_path / "out/pairs.jsonl") if p["group_id"] == merged["group_id"]
    ]
    assert made["target"] == pytest.approx(2 / 3)
    assert made["chosen"][0]["content"] == "good"


def test_rejects_say_where_and_why(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(
        json.dumps(pair(1)) + "\n\n{broken\n" + json.dumps({"prompt": "q", "chosen": "a"}) + "\n"
        + json.dumps({**pair(2), "target": 0.5}) + "\n"
    )  # fmt: skip
    report = run(tmp_path / "out", source, ties="drop")
    assert [(r["line"], r["row"], r["reason"]) for r in lines(tmp_path / "out/rejects.jsonl")] == [
        (3, 2, "bad_json"),
        (4, 3, "missing_field"),
        (5, 4, "no_pair"),
    ]
    assert {r["file"] for r in lines(tmp_path / "out/rejects.jsonl")} == {str(source)}
    assert report["rows"]["dropped"] == {"bad_json": 1, "missing_field": 1}
    # The line, and the row's number where it is another one.
    assert report["rows"]["examples"]["missing_field"] == f"{source}:4 (row 3)"
    assert report["groups"]["examples"]["no_pair"] == f"{source}:5 (row 4)"
    assert report["groups"]["dropped"] == {"no_pair": 1}


def test_the_elements_of_an_array_on_one_line_are_told_apart(tmp_path):
    source = tmp_path / "in.json"
    rows = [pair(1, target=0.5), pair(2, "bad"), {"chosen": "x"}, pair(4, "&lt;b&gt;")]
    source.write_text(json.dumps(rows))
    report = run(tmp_path / "out", source, ties="drop")
    assert [(r["line"], r["row"]) for r in lines(tmp_path / "out/rejects.jsonl")] == [
        (1, 2), (1, 3), (1, 1),
    ]  # fmt: skip
    assert report["rows"]["examples"] == {
        "identical_candidates": f"{source}:1 (row 2)",
        "missing_field": f"{source}:1 (row 3)",
    }
    assert report["groups"]["examples"] == {"no_pair": f"{source}:1"}
    assert report["quality"]["findings"]["html_escaped"]["rows"] == [f"{source}:1 (row 4)"]


def test_a_row_that_makes_several_groups_has_none_that_joined(tmp_path):
    def reply(name, parent, role, rank, *replies):
        return {"message_id": name, "parent_id": parent, "role": role, "text": f"text {name}",
                "rank": rank, "replies": list(replies)}  # fmt: skip

    prompter = [
        reply("p", "a", "prompter", None, *(reply(f"b{k}", "p", "assistant", k) for k in (0, 1)))
    ]
    answers = [reply("a", "q", "assistant", 0, *prompter), reply("c", "q", "assistant", 1)]
    tree = {"message_tree_id": "q", "prompt": reply("q", None, "prompter", None, *answers)}
    report = run(tmp_path / "out", write(tmp_path / "in.jsonl", [tree]))
    assert (report["rows"]["used"], report["comparisons"], report["groups"]["used"]) == (1, 2, 2)
    assert report["merged_rows"] == 0


def test_figures_of_an_earlier_import_do_not_stay(tmp_path):
    rows = [pair(k, annotator=who) for k in range(3) for who in "xyz"]
    rows.append({**pair(0), "chosen": "bad", "rejected": "good", "annotator": "w"})
    source = write(tmp_path / "in.jsonl", rows)
    run(tmp_path / "a", source, aggregate="dawid_skene")
    assert all("dawid_skene" in g["meta"]["aggregated"]
               for g in lines(tmp_path / "a/preferences.jsonl"))  # fmt: skip
    run(tmp_path / "b", tmp_path / "a/preferences.jsonl")
    assert not any("aggregated" in g["meta"] for g in lines(tmp_path / "b/preferences.jsonl"))
    run(tmp_path / "c", tmp_path / "a/preferences.jsonl", aggregate="noisy_bt")
    assert all(list(g["meta"]["aggregated"]) == ["noisy_bt"]
               for g in lines(tmp_path / "c/preferences.jsonl"))  # fmt: skip


def test_a_file_that_breaks_off_is_a_warning(tmp_path):
    source = tmp_path / "in.json"
    source.write_text(json.dumps([pair(1), pair(2)])[:-20])
    report = run(tmp_path / "out", source)
    assert report["rows"]["dropped"] == {"truncated_file": 1}
    assert any("could be read up to line 1, row 2, only" in w for w in report["warnings"])


def test_several_files_and_formats_are_counted_apart(tmp_path):
    report = run(tmp_path / "out", DEMO, write(tmp_path / "in.jsonl", [pair(1), {"chosen": "x"}]))
    assert [(i["format"], i["used"], i["dropped"]) for i in report["inputs"]] == [
        ("label_studio", 8, {}),
        ("pairs", 1, {"missing_field": 1}),
    ]
    assert report["rows"]["used"] == 9


def test_text_of_any_kind_survives(tmp_path):
    odd = "<script>alert(1)</script> \ud800 \u2028 \x00 🏮"
    rows = [pair(1, winner=odd, annotator=odd)]
    run(tmp_path / "out", write(tmp_path / "in.jsonl", rows))
    (group,) = lines(tmp_path / "out/preferences.jsonl")
    assert group["candidates"][0]["content"] == odd
    assert "<script>alert" not in (tmp_path / "out/report.html").read_text("utf-8")
    json.loads((tmp_path / "out/report.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "nowhere.json"], "does not exist"),
        (["--input", "odd.jsonl"], "fits no known format"),
        (["--input", "bad.jsonl"], "no usable row: 2 identical_candidates .first at bad.jsonl:1"),
        (["--input", "gb.json"], "not UTF-8; it reads as GB18030.* Add --encoding gb18030"),
        (["--input", "good.jsonl", "--min_annotators", "2"], "no pair to train on"),
        (["--input", "good.jsonl", "--min_annotators", "0"], "min_annotators=0 is below 1"),
        (["--input", "good.jsonl", "--alpha", "nan"], "alpha=nan"),
        (["--input", "good.jsonl", "--fractions", "1,2"], "fractions='1,2' is not three numbers"),
        (["--input", "good.jsonl", "--fractions", "0,0,0"], "fractions"),
        (["--input", "good.jsonl", "--format", "canonical"], "no usable row: 2 missing_field"),
        (["--input", "good.jsonl", "--label_config", "none.xml"], "label_config"),
        (
            ["--input", "good.jsonl", "--output", "good.jsonl"],
            "output='good.jsonl' cannot be written",
        ),
        (["--input", "good.jsonl", "--output", "good.jsonl/deep"], "cannot be written"),
    ],
)
def test_wrong_input_is_exit_2_and_leaves_nothing(tmp_path, monkeypatch, capsys, words, message):
    import re

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "good.jsonl", [pair(1), pair(2)])
    write(tmp_path / "odd.jsonl", [{"a": 1}])
    write(tmp_path / "bad.jsonl", [pair(1, winner="bad"), pair(2, winner="bad")])
    (tmp_path / "gb.json").write_bytes('[{"prompt": "问"}]'.encode("gb18030"))
    before = names(tmp_path)
    output = [] if "--output" in words else ["--output", "new/out"]
    assert main([*words, *output]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error)
    assert not (tmp_path / "new" / "out").exists()
    assert names(tmp_path) - {"new"} == before


def test_an_unknown_option_is_exit_2(capsys):
    for words in ([], ["--input", "x", "--output", "y", "--alpah", "1"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2


def test_a_failed_import_leaves_the_earlier_one_alone(tmp_path, capsys):
    good = write(tmp_path / "good.jsonl", [pair(1), pair(2)])
    bad = write(tmp_path / "bad.jsonl", [pair(1, winner="bad")])
    command = ["--output", str(tmp_path / "out"), "--input"]
    assert main([*command, str(good)]) == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert main([*command, str(bad)]) == 2
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    # And a good one replaces all of it, also over the rest of a crash.
    (tmp_path / "out" / ".import.tmp").mkdir()
    (tmp_path / "out" / ".import.tmp" / "train.jsonl").write_text("rest")
    assert main([*command, str(good), str(write(tmp_path / "more.jsonl", [pair(3)]))]) == 0
    assert names(tmp_path / "out") == FILES
    assert len(lines(tmp_path / "out" / "preferences.jsonl")) == 3


def test_files_that_could_not_all_be_moved_have_no_report(tmp_path):
    good = write(tmp_path / "good.jsonl", [pair(1)])
    run(tmp_path / "out", good)
    (tmp_path / "out" / "train.jsonl").unlink()
    (tmp_path / "out" / "train.jsonl").mkdir()
    with pytest.raises(OSError, match="train"):
        run(tmp_path / "out", good)
    assert not (tmp_path / "out" / "report.json").exists()
    assert not (tmp_path / "out" / ".import.tmp").exists()


def test_dry_run_reports_and_writes_nothing(tmp_path, capsys):
    good = write(tmp_path / "good.jsonl", [pair(1), pair(2)])
    assert main(["--input", str(good), "--output", str(tmp_path / "o/u/t"), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "rows           2 in         2 used" in printed
    assert "dry run: nothing was written" in printed
    assert names(tmp_path) == {"good.jsonl"}


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom reward_models.import_annotations import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


# --- targets that need every vote


class MostTrusted:
    """Only the annotator with the most votes in the whole import counts."""

    def __init__(self, given):
        self.given, self.votes, self.asked = given, Counter(), []

    def observe(self, group):
        assert not self.asked
        self.votes.update(j.annotator for j in group.judgements)

    def targets(self, group):
        self.asked.append(group.group_id)
        ((trusted, _),) = self.votes.most_common(1)
        return [
            PairTarget(group.index(j.value["winner"]), group.index(j.value["loser"]))
            for j in group.judgements
            if j.annotator == trusted
        ]

    def report(self):
        return {"trusted": self.votes.most_common(1)[0][0]}


def test_an_aggregator_sees_every_vote_before_it_gives_a_target(tmp_path, monkeypatch):
    made = []

    def factory(given):
        made.append(MostTrusted(given))
        return made[0]

    monkeypatch.setitem(import_passes.AGGREGATORS, "trusted", "aggregator_of_a_test:factory")
    monkeypatch.setitem(
        sys.modules, "aggregator_of_a_test", SimpleNamespace(factory=staticmethod(factory))
    )
    rows = [
        {"prompt": "q1", "chosen": "a", "rejected": "b", "annotator": "x"},
        {"prompt": "q2", "chosen": "a", "rejected": "b", "annotator": "x"},
        {"prompt": "q3", "chosen": "a", "rejected": "b", "annotator": "y"},
        {"prompt": "q1", "chosen": "b", "rejected": "a", "annotator": "y"},
        {"prompt": "q4", "chosen": "a", "rejected": "b", "annotator": "y"},
    ]
    source = write(tmp_path / "in.jsonl", rows)
    report = run(tmp_path / "out", source, aggregate="trusted", ties="drop")
    assert made[0].given.ties == "drop"
    assert dict(made[0].votes) == {"x": 2, "y": 3}
    # q2 has no vote of y's; in q1 y prefers b, though x came first and said a.
    assert report["groups"]["dropped"] == {"no_pair": 1}
    assert report["aggregation"] == {"trusted": "y"}
    pairs = lines(tmp_path / "out" / "pairs.jsonl")
    assert [(p["prompt"][0]["content"], p["chosen"][0]["content"]) for p in pairs] == [
        ("q1", "b"), ("q3", "a"), ("q4", "a"),
    ]  # fmt: skip
    # First appearance decides the order, though q1 was complete after q3 only.
    assert len(made[0].asked) == 4


def test_a_merged_probability_stays_with_its_pair(tmp_path):
    first = {
        "prompt": "q",
        "candidates": [{"id": "a", "content": "x"}, {"id": "b", "content": "y"}],
        "judgements": [{"annotator": "1", "kind": "pair", "value": {"winner": "a", "loser": "b"}}],
    }
    value = {"winner": "1", "loser": "2", "p": 0.75}
    second = {
        "prompt": "q",
        "candidates": [{"id": "1", "content": "y"}, {"id": "2", "content": "x"}],
        "judgements": [{"annotator": "2", "kind": "pair", "value": value}],
    }
    run(tmp_path / "out", write(tmp_path / "in.jsonl", [first, second]))
    (group,) = lines(tmp_path / "out" / "preferences.jsonl")
    assert [j["value"] for j in group["judgements"]] == [
        {"winner": "a", "loser": "b"},
        {"winner": "b", "loser": "a", "p": 0.75},
    ]


# --- whatever the input, the books balance

text = st.sampled_from(["", " ", "甲", "乙", "good", "bad", "<|im_end|>"])
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "cat"]), "content": text}),
    max_size=3,
)
anything = st.none() | st.booleans() | st.integers(-2, 2) | text | messages | st.just(float("nan"))
pair_row = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("prompt", "chosen", "rejected", "margin", "target", "annotator", "system"), anything
    ),
)
result = st.one_of(
    anything,
    st.fixed_dictionaries(
        {
            "from_name": st.sampled_from(["c", "rate_1", "rate_2", 3]),
            "to_name": st.sampled_from(["answer1", "answer2", "answer1,answer2", None]),
            "type": st.sampled_from(["pairwise", "ranker", "choices", "rating", "textarea", None]),
            "value": st.one_of(
                anything,
                st.fixed_dictionaries({"selected": st.sampled_from(["left", "right", "up"])}),
                st.fixed_dictionaries({"rating": st.integers(1, 5) | anything}),
                st.fixed_dictionaries({"choices": st.lists(text, max_size=2) | anything}),
                st.fixed_dictionaries({"ranker": st.dictionaries(text, st.lists(text)) | anything}),
            ),
        }
    ),
)
annotation = st.one_of(
    anything,
    st.fixed_dictionaries(
        {"result": st.lists(result, max_size=3) | anything},
        optional={
            "id": st.integers(1, 3) | anything,
            "completed_by": st.integers(1, 3) | st.fixed_dictionaries({"id": anything}) | anything,
            "was_cancelled": st.booleans(),
        },
    ),
)
GOOD_TASK = {
    "data": {"prompt": "q", "answer1": "甲", "answer2": "乙"},
    "annotations": [
        {"id": 9, "completed_by": 9, "result": [
            {"from_name": "c", "to_name": "answer1", "type": "pairwise",
             "value": {"selected": "left"}}]},
    ],
}  # fmt: skip


task_row = st.fixed_dictionaries(
    {
        "data": st.just(GOOD_TASK["data"])
        | st.dictionaries(
            st.sampled_from(["prompt", "answer1", "answer2", "items"]), anything, max_size=4
        ),
        "annotations": st.lists(annotation, max_size=3) | anything,
    },
    optional={
        "predictions": st.lists(annotation, max_size=2) | anything,
        "drafts": st.lists(annotation, max_size=2) | anything,
        "id": anything,
    },
)


def both_places(data):
    answers = [data.get(name) for name in ("answer1", "answer2")]
    return isinstance(data.get("items"), list) and all(isinstance(a, str) for a in answers)


def votes_by_hand(rows):
    total = 0
    for row in rows:
        for name in ("annotations", "predictions", "drafts"):
            value = row.get(name)
            total += len(value) if isinstance(value, list) else 0
    return total


def balanced(folder, rows, good, format):
    source = folder / "in.jsonl"
    rows = [good, *rows]
    broken = b"{broken\n"
    source.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows) + broken)
    report = run(folder / "out", source, format=format)
    rejects = lines(folder / "out" / "rejects.jsonl")
    used, dropped = report["rows"]["used"], report["rows"]["dropped"]
    assert used + sum(dropped.values()) == len(rows) + 1
    groups = report["groups"]
    assert Counter(r["reason"] for r in rejects) == Counter(dropped) + Counter(groups["dropped"])
    assert {r["line"] for r in rejects} <= set(range(1, len(rows) + 2))
    assert used == groups["used"] + sum(groups["dropped"].values()) + report["merged_rows"]
    written = lines(folder / "out" / "preferences.jsonl")
    assert len(written) == groups["used"] == sum(report["splits"].values())
    assert len(lines(folder / "out" / "pairs.jsonl")) == report["pairs"]
    assert all(g["judgements"] and len(g["candidates"]) > 1 for g in written)
    return report


many = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@many
@given(st.lists(pair_row | anything, max_size=6))
def test_pair_rows_used_and_dropped_are_all_rows(tmp_path_factory, rows):
    good = {"prompt": "q", "chosen": "x", "rejected": "y"}
    report = balanced(tmp_path_factory.mktemp("pairs"), rows, good, "pairs")
    votes = report["votes"]
    objects = 1 + sum(isinstance(row, dict) for row in rows)
    assert votes["used"] + sum(votes["dropped"].values()) == objects
    assert votes["used"] == report["rows"]["used"]


@many
@given(st.lists(task_row, max_size=5))
def test_label_studio_rows_and_votes_used_and_dropped_are_all(tmp_path_factory, rows):
    # With answers in two places the import asks which are meant and does nothing else.
    assume(not any(both_places(row["data"]) for row in rows))
    report = balanced(tmp_path_factory.mktemp("tasks"), rows, GOOD_TASK, "label_studio")
    votes = report["votes"]
    assert votes["used"] + sum(votes["dropped"].values()) == votes_by_hand([GOOD_TASK, *rows])
