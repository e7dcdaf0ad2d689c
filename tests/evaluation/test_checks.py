"""Checks of format, length and language, each with a text that passes and one that does not."""

from __future__ import annotations

import pytest

from align.config_errors import UserError
from align.evaluation.checks import CHECKS, run_checks, validate

CASES = [
    ({"check": "json"}, '{"a": 1}', "{a: 1}"),
    ({"check": "json", "kind": "object", "keys": ["a"]}, '```json\n{"a": 1, "b": 2}\n```', "[1]"),
    ({"check": "json", "keys": ["a"], "only": True}, '{"a": 1}', '{"a": 1, "b": 2}'),
    ({"check": "json", "kind": "list"}, '["苹果", "香蕉"]', '好的：["苹果"]'),
    ({"check": "list_items", "n": 3}, "1. 汽车\n2. 火车\n3. 飞机", "1. 汽车\n2. 火车"),
    ({"check": "list_items", "n": 2}, "- one\n* two\n\nThat is all.", "one, two"),
    ({"check": "list_items", "n": 2}, "一、早睡\n二、早起", "1、早睡\n2、早起\n3、多走"),
    ({"check": "lines", "n": 2}, "春暖花开\n\n春风得意\n", "春暖花开"),
    ({"check": "sentences", "low": 1, "high": 1}, "友谊是互相帮助", "友谊很好。它很重要。"),
    ({"check": "sentences", "low": 2, "high": 2}, "It is 3.5 km. Take a bus.", "It is 3.5 km."),
    ({"check": "words", "high": 4}, "长城很长。", "长城真的很长。"),
    ({"check": "words", "low": 3}, "It is, well.", "It is, -."),
    ({"check": "characters", "high": 5}, "长 城 很长。", "长城真的很长。"),
    ({"check": "language", "code": "zh"}, "你好，世界！123", "hello 世界"),
    ({"check": "language", "code": "en"}, "Hello, world!", "你好 world"),
    ({"check": "contains", "words": ["西湖", "龙井"]}, "西湖边喝龙井", "西湖很美"),
    ({"check": "contains", "words": "happy", "times": 2}, "Happy, happy!", "happy"),
    ({"check": "contains_any", "words": ["yes", "是"]}, "是的", "不"),
    ({"check": "excludes", "words": "hot"}, "It is warm.", "HOT days"),
    ({"check": "excludes", "words": "热"}, "凉快", ""),
    ({"check": "starts_with", "start": "从前"}, " 从前有座山", "有一天"),
    ({"check": "ends_with", "end": "谢谢大家。"}, "熊猫很可爱。谢谢大家。\n", "谢谢大家。熊猫"),
    ({"check": "one_of", "answers": ["是", "否"]}, "是。", "是的，没错"),
    ({"check": "number", "value": 42}, "15 + 27 = 42", "42 is what 15 and 26 do not give, 41 is"),
    ({"check": "number", "value": 1200}, "一共 1,200 元", "一千二百"),
    ({"check": "upper_case"}, "RAIN FALLS.", "Rain falls."),
    ({"check": "lower_case"}, "rain falls.", "Rain falls."),
    ({"check": "quoted"}, "“下雨了。”", "“下雨了。"),
    ({"check": "paragraphs", "n": 2}, "一段。\n\n二段。", "一段。\n二段。"),
    ({"check": "bold"}, "要 **读书**", "要读书"),
    ({"check": "title"}, "《雪》\n下雪了", "雪\n下雪了"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "good", "bad"), CASES)
def test_each_check_tells_good_from_bad(check, good, bad):
    validate([check], "checks")
    assert run_checks(good, [check]) == [True]
    assert run_checks(bad, [check]) == [False]


def test_every_check_has_a_case():
    assert {c["check"] for c, _, _ in CASES} == set(CHECKS)


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ([], r"checks=\[\] is no list of checks"),
        ("json", "is no list of checks"),
        ([{"check": "jsn"}], r"checks\.0\.check='jsn' names no check\. Did you mean 'json'"),
        ([{"check": "lines"}], r"checks\.0\.n=null is needed by the check lines"),
        ([{"check": "lines", "n": 1, "m": 2}], r"checks\.0\.m=2 is no option of the check lines"),
        ([3], r"checks\.0\.check=null names no check"),
    ],
)
def test_wrong_checks_are_refused(checks, message):
    with pytest.raises(UserError, match=message):
        validate(checks, "checks")
