"""Label Studio itself: votes cast through its API come out of its exports, and no others.

Results have the form that its editor writes. Every project is exported as JSON and JSON-MIN, with
the tasks that nobody annotated.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import count

import label_studio_tool
import pytest

from reward_models.annotations.base import Options
from reward_models.annotations.label_config import load_label_config
from reward_models.importing import ImportSettings, run_import

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1500)]

PAIRWISE = """<View><Text name="q" value="$prompt"/>
  <Text name="two" value="$answer2"/><Text name="one" value="$answer1"/>
  <Pairwise name="comparison" toName="two,one"/>
  <TextArea name="why" toName="q"/></View>"""
RANKER = """<View><Text name="q" value="$prompt"/>
  <List name="answers" value="$items" title="All"/><Ranker name="rank" toName="answers"/></View>"""
BUCKETS = RANKER.replace(
    'toName="answers"/>',
    'toName="answers"><Bucket name="bad" title="Bad"/><Bucket name="good" title="Good"/></Ranker>',
)
RATING = """<View><Text name="q" value="$prompt"/>
  <Text name="x" value="$answer1"/><Text name="y" value="$answer2"/>
  <Rating name="helpful_x" toName="x"/><Rating name="helpful_y" toName="y"/>
  <Number name="safe_x" toName="x"/><Number name="safe_y" toName="y"/></View>"""
CHOICES = """<View><Text name="q" value="$prompt"/>
  <Text name="x" value="$answer1"/><Text name="y" value="$answer2"/>
  <Choices name="best" toName="q"><Choice value="A"/><Choice value="B"/><Choice value="平局"/>
  </Choices></View>"""
FLOWERS = {"prompt": "春天有哪些花？", "answer1": "桃花和杏花。", "answer2": "不知道。"}
SUM = {"prompt": "What is 2 + 2?", "answer1": "4", "answer2": "5 & <more>"}
TEA = {"prompt": "怎样泡绿茶？", "answer1": "水温八十度。", "answer2": "用开水。\n等十分钟。"}
NOBODY = {"prompt": "Is anybody there?", "answer1": "yes", "answer2": "no"}
ITEMS = {
    "prompt": "写一句欢迎词",
    "items": [
        {"id": "b", "title": "", "body": "欢迎光临"},
        {"id": 3, "title": "", "body": "你好"},
        {"id": 1, "title": "", "body": "Welcome"},
    ],
}

ids = count()


def result(control, target, kind, value, origin="manual"):
    return {
        "id": f"r{next(ids)}", "from_name": control, "to_name": target, "type": kind,
        "value": {"selected" if kind == "pairwise" else kind: value}, "origin": origin,
    }  # fmt: skip


def prefers(side, **more):
    # The editor writes the control's own name as to_name.
    return result("comparison", "comparison", "pairwise", side, **more)


def ranks(*best_first):
    return result("rank", "answers", "ranker", {"rank": [*best_first]})


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    with label_studio_tool.running(tmp_path_factory.mktemp("label_studio")) as two:
        yield two


def imported(tmp_path, config, *files, **options):
    """(report, prompt → group, prompt → [(chosen, rejected, target, weight)])."""
    options = Options(load_label_config(config), **options)
    settings = ImportSettings(tuple(map(str, files)), tmp_path / "out", options=options)
    report = run_import(settings, say=lambda _: None)
    groups, pairs = {}, {}
    for line in (tmp_path / "out" / "preferences.jsonl").read_text("utf-8").splitlines():
        group = json.loads(line)
        groups[group["prompt"][0]["content"]] = group
    for line in (tmp_path / "out" / "pairs.jsonl").read_text("utf-8").splitlines():
        pair = json.loads(line)
        texts = [pair[side][0]["content"] for side in ("chosen", "rejected")]
        row = (*texts, pair["target"], pair["weight"])
        pairs.setdefault(pair["prompt"][0]["content"], []).append(row)
    return report, groups, pairs


def both(tmp_path, user, project, config, **options):
    """The imports of the JSON and of the JSON-MIN export, which must hold the same votes."""
    made = []
    for kind in ("JSON", "JSON_MIN"):
        folder = tmp_path / kind
        folder.mkdir()
        path = user.export(project, kind, folder / "export.json", everything=True)
        made.append(imported(folder, config, path, **options))
    assert [r["inputs"][0]["format"] for r, _, _ in made] == ["label_studio", "label_studio_min"]
    (first, groups, pairs), (second, groups_min, pairs_min) = made
    assert groups.keys() == groups_min.keys()
    for prompt, group in groups.items():
        assert group["candidates"] == groups_min[prompt]["candidates"]
        assert group["group_id"] == groups_min[prompt]["group_id"]
        # JSON-MIN does not say where a result comes from.
        cast = [sorted_votes(g, suspects=False) for g in (group, groups_min[prompt])]
        assert cast[0] == cast[1]
    assert {p: sorted(rows) for p, rows in pairs.items()} == {
        p: sorted(rows) for p, rows in pairs_min.items()
    }
    return first, second, groups, pairs


def sorted_votes(group, suspects=True):
    votes = [
        (j["annotator"], j["source"], j["value"], *([j["suspect"]] if suspects else []))
        for j in group["judgements"]
    ]
    return sorted(votes, key=str)


def test_pairwise(tmp_path, users):
    one, two = users
    assert one.id != two.id
    project = one.project("pairwise", PAIRWISE)
    guess = {"model_version": "m", "score": 0.9, "result": [prefers("left")]}
    tasks = [{"data": d} for d in (FLOWERS, SUM, TEA, NOBODY)]
    for task in (tasks[0], tasks[3]):
        task["predictions"] = [guess]
    flowers, addition, tea, nobody = one.upload(project, tasks)
    # Left is answer2, as the config's toName says.
    one.annotate(flowers, prefers("right"), result("why", "q", "text", ["left is better"]))
    two.annotate(flowers, prefers("right"))
    changed = one.annotate(addition, prefers("left"))
    one.change(changed, prefers("right"))
    two.annotate(addition, prefers("left", origin="prediction"))
    one.annotate(tea, prefers("left"))
    two.annotate(tea, prefers("right"), was_cancelled=True)
    two.annotate(nobody, was_cancelled=True)
    one.draft(nobody, prefers("left"))

    first, second, groups, pairs = both(tmp_path, one, project, PAIRWISE)
    control = "label_studio:pairwise:comparison"
    better1 = {"winner": "answer1", "loser": "answer2"}
    better2 = {"winner": "answer2", "loser": "answer1"}
    assert {prompt: sorted_votes(g) for prompt, g in groups.items()} == {
        FLOWERS["prompt"]: [(one.id, control, better1, None), (two.id, control, better1, None)],
        SUM["prompt"]: [
            (one.id, control, better1, None), (two.id, control, better2, "accepted_prediction"),
        ],
        TEA["prompt"]: [(one.id, control, better2, None)],
    }  # fmt: skip
    assert groups[SUM["prompt"]]["candidates"] == [
        {"id": "answer2", "content": "5 & <more>", "model": None},
        {"id": "answer1", "content": "4", "model": None},
    ]
    assert pairs.pop(SUM["prompt"])[0][2:] == (0.5, 1.0)
    assert pairs == {
        FLOWERS["prompt"]: [("桃花和杏花。", "不知道。", 1.0, 1.0)],
        TEA["prompt"]: [("用开水。\n等十分钟。", "水温八十度。", 1.0, 1.0)],
    }
    assert first["votes"]["used"] == 5
    assert first["votes"]["dropped"] == {"cancelled": 2, "prediction": 2, "draft": 1}
    assert first["rows"]["dropped"] == {"cancelled": 1}
    # One row per annotation that was not cancelled; the skipped task is gone.
    assert (second["votes"]["used"], second["votes"]["dropped"]) == (5, {})
    assert (second["rows"]["used"], second["rows"]["dropped"]) == (5, {})
    assert first["warnings"] == second["warnings"]

    # Both exports together hold every vote once.
    files = [tmp_path / kind / "export.json" for kind in ("JSON", "JSON_MIN")]
    report, together, _ = imported(tmp_path / "JSON", PAIRWISE, *files)
    assert report["votes"]["used"] == 5
    assert report["votes"]["dropped"]["duplicate_annotation"] == 5
    assert {p: sorted_votes(g) for p, g in together.items()} == {
        p: sorted_votes(g) for p, g in groups.items()
    }


def test_ranker(tmp_path, users):
    one, two = users
    project = one.project("ranker", RANKER)
    other = {**ITEMS, "prompt": "Write a greeting"}
    task, second_task, unseen = one.upload(
        project, [{"data": ITEMS}, {"data": other}, {"data": {**ITEMS, "prompt": "无人"}}]
    )
    one.annotate(task, ranks("b", "1", "3"))
    # Submitted without a touch: the editor stores its own order, whole numbers first.
    two.annotate(task, ranks("1", "3", "b"))
    two.annotate(second_task, ranks("3", "b", "1"))
    one.annotate(unseen, was_cancelled=True)

    first, second, groups, pairs = both(tmp_path, one, project, RANKER)
    control = "label_studio:ranker:rank"
    assert [c["id"] for c in groups[ITEMS["prompt"]]["candidates"]] == ["1", "3", "b"]
    assert {prompt: sorted_votes(g) for prompt, g in groups.items()} == {
        ITEMS["prompt"]: [
            (one.id, control, {"b": 1, "1": 2, "3": 3}, None),
            (two.id, control, {"1": 1, "3": 2, "b": 3}, "display_order"),
        ],
        "Write a greeting": [(two.id, control, {"3": 1, "b": 2, "1": 3}, None)],
    }
    third = pytest.approx(1 / 3)
    # Both put 1 before 3; they disagree on b.
    assert [row for row in pairs[ITEMS["prompt"]] if row[2] == 1.0] == [
        ("Welcome", "你好", 1.0, third)
    ]
    assert Counter(row[2] for row in pairs[ITEMS["prompt"]]) == {1.0: 1, 0.5: 2}
    assert sorted(pairs["Write a greeting"]) == [
        ("你好", "Welcome", 1.0, third), ("你好", "欢迎光临", 1.0, third),
        ("欢迎光临", "Welcome", 1.0, third),
    ]  # fmt: skip
    assert first["votes"]["used"] == second["votes"]["used"] == 3
    assert first["quality"]["suspects"] == {"display_order": 1}


def test_ranker_with_buckets(tmp_path, users):
    one, two = users
    project = one.project("buckets", BUCKETS)
    (task,) = one.upload(project, [{"data": ITEMS}])
    sorted_in = {"_": ["3"], "bad": ["b"], "good": ["1"]}
    one.annotate(task, result("rank", "answers", "ranker", sorted_in))
    two.annotate(task, result("rank", "answers", "ranker", {"_": ["1", "3", "b"]}))
    order = {"bucket_order": ("good", "bad")}
    first, second, groups, pairs = both(tmp_path, one, project, BUCKETS, **order)
    assert sorted_votes(groups[ITEMS["prompt"]]) == [
        (one.id, "label_studio:ranker:rank", {"1": 1, "b": 2, "3": None}, None)
    ]
    assert pairs == {ITEMS["prompt"]: [("Welcome", "欢迎光临", 1.0, 1.0)]}
    assert first["votes"]["dropped"] == second["votes"]["dropped"] == {"nothing_ranked": 1}


def test_rating(tmp_path, users):
    one, two = users
    project = one.project("rating", RATING)
    flowers, addition = one.upload(project, [{"data": FLOWERS}, {"data": SUM}])

    def rates(x, y, *safe):
        made = [result("helpful_x", "x", "rating", x), result("helpful_y", "y", "rating", y)]
        numbers = zip(("safe_x", "safe_y"), ("x", "y"), safe, strict=False)
        return made + [result(c, t, "number", n) for c, t, n in numbers]

    one.annotate(flowers, *rates(5, 2))
    two.annotate(flowers, *rates(4, 4))
    one.annotate(addition, *rates(1, 3, 0.5, 0.25))
    two.annotate(addition, result("helpful_x", "x", "rating", 3))
    first, second, groups, pairs = both(tmp_path, one, project, RATING)
    helpful, safe = "label_studio:rating:helpful", "label_studio:rating:safe"
    assert {prompt: sorted_votes(g) for prompt, g in groups.items()} == {
        FLOWERS["prompt"]: [
            (one.id, helpful, {"answer1": 5.0, "answer2": 2.0}, None),
            (two.id, helpful, {"answer1": 4.0, "answer2": 4.0}, None),
        ],
        SUM["prompt"]: [
            (one.id, helpful, {"answer1": 1.0, "answer2": 3.0}, None),
            (one.id, safe, {"answer1": 0.5, "answer2": 0.25}, None),
            (two.id, helpful, {"answer1": 3.0}, None),
        ],
    }
    # 5 > 2 is one vote, 4 = 4 half of one each: 1.5 of 2.
    assert pairs[FLOWERS["prompt"]] == [("桃花和杏花。", "不知道。", 0.75, 1.0)]
    assert pairs[SUM["prompt"]][0][2] == 0.5
    assert first["votes"]["used"] == second["votes"]["used"] == 4


def test_choices(tmp_path, users):
    one, two = users
    project = one.project("choices", CHOICES)
    flowers, addition = one.upload(project, [{"data": FLOWERS}, {"data": SUM}])
    one.annotate(flowers, result("best", "q", "choices", ["A"]))
    two.annotate(flowers, result("best", "q", "choices", ["平局"]))
    one.annotate(addition, result("best", "q", "choices", ["B"]))
    two.annotate(addition, result("best", "q", "choices", ["A", "B"]))
    first, second, groups, pairs = both(tmp_path, one, project, CHOICES)
    best = "label_studio:choices:best"
    assert {prompt: sorted_votes(g) for prompt, g in groups.items()} == {
        FLOWERS["prompt"]: [
            (one.id, best, {"winner": "answer1", "loser": "answer2"}, None),
            (two.id, best, {"tie": ["answer1", "answer2"]}, None),
        ],
        SUM["prompt"]: [(one.id, best, {"winner": "answer2", "loser": "answer1"}, None)],
    }
    assert pairs[FLOWERS["prompt"]] == [("桃花和杏花。", "不知道。", 0.75, 1.0)]
    assert pairs[SUM["prompt"]] == [("5 & <more>", "4", 1.0, 1.0)]
    for report in (first, second):
        assert (report["votes"]["used"], report["votes"]["dropped"]) == (3, {"ambiguous_choice": 1})
