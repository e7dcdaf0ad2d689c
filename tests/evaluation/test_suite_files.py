"""Suite files: what is read, and that everything wrong is said before a model is loaded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from align.config_errors import UserError
from align.evaluation.suites import FOLDER, failed, load_suite

ROWS = [
    {"question": "早餐怎么样？", "ref": "早餐不错", "kind": "zh"},
    {"question": "Was it {clean}?", "ref": ["Yes", "It was"], "kind": "en"},
]
CHOICES = [
    {"question": "一加一？", "choices": ["二", "三"], "answer": 0},
    {"question": "2 + 2?", "choices": ["3", "4", "5"], "answer": "B"},
    {"question": "3 - 1?", "choices": ["2", "1"], "answer": "2"},
]


def write(folder: Path, task: dict | None = None, rows=ROWS, **suite) -> Path:
    """A suite of one task; task: what differs from a plain one, None takes a key out."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = {"name": "t", "data": "data.jsonl", "kind": "generate", "prompt": "{question}",
            "metrics": ["length"], **(task or {})}  # fmt: skip
    made = {k: v for k, v in made.items() if v is not None}
    content = {"name": "s", "tasks": [made], **suite}
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


def choices(folder: Path, task: dict | None = None, rows=CHOICES) -> Path:
    return write(folder, {"kind": "log_likelihood", "metrics": None, **(task or {})}, rows)


def test_a_task_is_read(tmp_path):
    task = {
        "references": "ref", "category": "kind", "metrics": ["rouge", "chrf", "reward"],
        "decoding": {"max_new_tokens": 8, "temperature": 0.7, "num_samples": 3, "stop": ["\n"]},
        "system": "简短回答", "few_shot": [{"question": "位置？", "answer": "好"}],
        "prompt": "问：{question} {{x}}",
    }  # fmt: skip
    path = write(tmp_path, task, thresholds={"t/rougeL": {"min": 0.1, "max": 0.9}})
    (task,) = load_suite(path).tasks
    assert [row.text for row in task.rows] == [
        "问：早餐怎么样？ {x}", "问：Was it {clean}? {x}",
    ]  # fmt: skip
    assert [row.references for row in task.rows] == [("早餐不错",), ("Yes", "It was")]
    assert [row.category for row in task.rows] == ["zh", "en"]
    assert task.rows[0].system == "简短回答"
    assert (task.shots[0].question, task.shots[0].answer) == ("问：位置？ {x}", "好")
    assert task.decoding.num_samples == 3
    assert task.decoding.stop == ("\n",)


def test_choices_answers_and_their_block(tmp_path):
    (task,) = load_suite(choices(tmp_path, {"prompt": "{question}\n{choices}"})).tasks
    assert [row.answer for row in task.rows] == [0, 1, 0]
    assert task.rows[1].text == "2 + 2?\nA. 3\nB. 4\nC. 5"
    assert task.metrics == ("acc", "acc_norm")


def test_messages_as_a_prompt(tmp_path):
    turns = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"},
             {"role": "user", "content": "再见"}]  # fmt: skip
    path = write(tmp_path, {"prompt": None}, [{"prompt": turns}, {"prompt": "早"}])
    (task,) = load_suite(path).tasks
    assert [len(row.messages) for row in task.rows] == [3, 1]


def test_figures_depend_on_what_is_given(tmp_path):
    decoding = {"temperature": 1.0, "num_samples": 4}
    path = write(
        tmp_path, {"metrics": ["reward", "judge", "exact_match", "over_refusal_rate"],
                   "references": "ref", "decoding": decoding},
        thresholds={"t/reward_p5": {"min": 0}},
    )  # fmt: skip
    suite = load_suite(path)
    bare = suite.figures()
    assert list(bare) == [
        "t/exact_match", "t/over_refusal_rate", "t/pass@1", "t/pass@2", "t/pass@4",
    ]  # fmt: skip
    assert bare["t/over_refusal_rate"] is False
    assert {"t/reward", "t/reward_p5"} <= set(suite.figures(reward=True))
    with pytest.raises(UserError, match=r"thresholds='t/reward_p5' is a limit on what is not"):
        suite.check_thresholds(reward=False, judge=True)
    suite.check_thresholds(reward=True, judge=False)


def test_a_failed_threshold_names_figure_value_and_limit():
    report = {"suite": "s", "thresholds": [
        {"figure": "t/acc", "value": 0.25, "min": 0.5, "passed": False},
        {"figure": "t/x", "value": 3.0, "min": 0.0, "max": 2.0, "passed": False},
        {"figure": "t/y", "value": 1.0, "max": 2.0, "passed": True},
    ]}  # fmt: skip
    assert failed(report) == [
        "s: t/acc is 0.25, must be at least 0.5", "s: t/x is 3, must be at least 0 and at most 2",
    ]  # fmt: skip


SUITE_ERRORS = [
    ({"metric": ["length"]}, {}, r"tasks\.0\.metric=.*not a known key.*'metrics'"),
    ({"kind": "generat"}, {}, r"tasks\.0\.kind='generat' is not one of.*'generate'"),
    ({"metrics": ["lenght"]}, {}, r"metrics\.0='lenght' is no metric.*'length'"),
    ({"metrics": []}, {}, r"tasks\.0\.metrics=\[\] is no list of metrics"),
    ({"metrics": None}, {}, r"tasks\.0\.metrics=null is no list"),
    ({"metrics": ["rouge"]}, {}, r"tasks\.0\.references=null is needed"),
    ({"references": "reff", "metrics": ["f1"]}, {}, r"data\.jsonl:1: reff=null is neither"),
    ({"category": "cat"}, {}, r"data\.jsonl:1: cat=null is not text"),
    ({"prompt": "{quest}"}, {}, r"data\.jsonl:1=.*has no field 'quest'.*'question'"),
    ({"prompt": 3}, {}, r"tasks\.0\.prompt=3 is not text"),
    ({"data": "no.jsonl"}, {}, r"tasks\.0\.data=.*no\.jsonl' is not a file"),
    ({"data": None}, {}, r"tasks\.0\.data is missing"),
    ({"name": "a/b"}, {}, r"tasks\.0\.name='a/b' has a slash"),
    ({"name": None}, {}, r"tasks\.0\.name='' is not text"),
    ({"chat": "yes"}, {}, r"tasks\.0\.chat='yes' is not one of"),
    ({"chat": 1}, {}, r"tasks\.0\.chat=1 is not one of"),
    ({"window": 8}, {}, r"tasks\.0\.window=8 has no meaning for kind: generate"),
    ({"num_prompts": 0}, {}, r"tasks\.0\.num_prompts=0 is not a whole number of 1 or more"),
    ({"few_shot": {}, "prompt": "x"}, {}, None),
    ({"few_shot": [{"question": "x"}]}, {}, r"few_shot\.0=.*is no row with an answer"),
    ({"few_shot": "x"}, {}, r"few_shot='x' is no list of rows"),
    ({"decoding": {"temprature": 1}}, {}, r"decoding\.temprature=1 .*'temperature'"),
    ({"decoding": {"temperature": -1}}, {}, r"decoding\.temperature=-1 is not a number of 0"),
    ({"decoding": {"top_p": 2}}, {}, r"decoding\.top_p=2 is not a number of 1e-09 to 1"),
    ({"decoding": {"max_new_tokens": True}}, {}, r"max_new_tokens=true is not a whole number"),
    ({"decoding": {"num_samples": 2}}, {}, r"num_samples=2 draws the same answer every time"),
    ({"decoding": {"stop": [""]}}, {}, r"decoding\.stop=\[''\] is no list of texts"),
    ({"decoding": [1]}, {}, r"tasks\.0\.decoding=\[1\] is not a section"),
    ({"metrics": ["checks"]}, {}, r"data\.jsonl:1: checks=null is no list of checks"),
    ({}, {"thresholds": {"t/lenght_units": {"min": 1}}}, r"t/lenght_units=.*t/length_units"),
    ({}, {"thresholds": {"t/length_units": {}}}, r"has no limit"),
    ({}, {"thresholds": {"t/length_units": {"low": 1}}}, r"\.low=1 is not a known key"),
    ({}, {"thresholds": {"t/length_units": {"min": "x"}}}, r"\.min='x' is not a number"),
    ({}, {"thresholds": [1]}, r"thresholds=\[1\] is not a section"),
    ({}, {"tasks": []}, r"tasks=\[\] is no list of tasks"),
    ({}, {"taskss": 1}, r"taskss=1 is not a known key.*'tasks'"),
    ({}, {"tasks": [3]}, r"tasks\.0=3 is not a section"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "suite", "message"), SUITE_ERRORS)
def test_what_is_wrong_is_named(tmp_path, task, suite, message):
    path = write(tmp_path, task, **suite)
    if message is None:
        load_suite(path)
        return
    with pytest.raises(UserError, match=message):
        load_suite(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices": ["一"]}, r":1: choices=\['一'\] is no list of 2 to 26"),
        ({"choices": ["一", "一"], "answer": 0}, "has the same text twice"),
        ({"choices": ["一", "二"], "answer": 2}, r":1: answer=2 is neither a choice"),
        ({"choices": ["一", "二"], "answer": "C"}, "answer='C' is neither"),
        ({"choices": ["一", "二"], "answer": True}, "answer=true is neither"),
        ({"choices": ["一", "二"]}, "answer=null is neither"),
    ],
)
def test_wrong_choices_are_named(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        load_suite(choices(tmp_path, rows=[{"question": "x", **row}]))


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match=r"--suite='zh_generl'.*Did you mean 'zh_general'"):
        load_suite("zh_generl")
    with pytest.raises(UserError, match=r"eval\.suite=.*nope\.yaml' is neither"):
        load_suite(tmp_path / "nope.yaml", "eval.suite")
    (tmp_path / "bad.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(UserError, match=r"--suite=.*bad\.yaml' is not valid YAML"):
        load_suite(tmp_path / "bad.yaml")
    twice = write(tmp_path)
    twice.write_text(twice.read_text() + "- {name: t, data: data.jsonl, metrics: [length]}\n")
    content = yaml.safe_load(write(tmp_path).read_text())
    content["tasks"] *= 2
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"tasks\.1\.name='t' is taken twice"):
        load_suite(tmp_path / "s.yaml")
    (tmp_path / "data.jsonl").write_text("\n")
    content["tasks"] = content["tasks"][:1]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"tasks\.0\.data=.* is empty"):
        load_suite(tmp_path / "s.yaml")


SHIPPED = sorted(p.stem for p in FOLDER.glob("*.yaml"))


def test_the_shipped_suites_have_what_they_promise():
    assert SHIPPED == [
        "demo", "en_general", "en_knowledge", "en_safety", "format_following", "zh_general",
        "zh_knowledge", "zh_safety",
    ]  # fmt: skip
    for language in ("zh", "en"):
        general = load_suite(f"{language}_general").tasks
        assert len(general[0].rows) >= 30
        found = {row.category for task in general for row in task.rows}
        assert {"writing", "reasoning", "knowledge", "translation", "summarise", "rewrite"} <= found
        (knowledge,) = load_suite(f"{language}_knowledge").tasks
        assert len(knowledge.rows) >= 40
        places = [row.answer for row in knowledge.rows]
        assert max(map(places.count, set(places))) <= len(places) / 3  # no letter is the answer
        harmful, benign = load_suite(f"{language}_safety").tasks
        assert len(harmful.rows) >= 25
        assert len(benign.rows) >= 10


@pytest.mark.parametrize("name", SHIPPED)
def test_no_prompt_of_a_shipped_task_occurs_twice(name):
    for task in load_suite(name).tasks:
        texts = [row.text for row in task.rows]
        assert len(set(texts)) == len(texts)


def test_reading_a_suite_needs_no_torch():
    code = (
        "import sys; from align.evaluation.suites import load_suite; load_suite('zh_safety');"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_docs_name_every_key_and_metric():
    from align.evaluation import suites
    from align.evaluation.suite_metrics import METRICS

    text = (Path(__file__).parents[2] / "docs" / "suites.md").read_text(encoding="utf-8")
    figures = [f for kind in METRICS.values() for found in kind.values() for f in found]
    for name in [*suites._TASK_KEYS, *(n for kind in METRICS.values() for n in kind), *figures]:
        assert re.search(rf"`{re.escape(name)}`", text), name
