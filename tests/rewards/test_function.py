"""Python functions as rewards: how they are found, what they are given, what they may return."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from align.config_errors import UserError
from align.records import Message
from align.rewards import RewardError
from align.rewards.function import FunctionReward, load_function

ZH = [Message("system", "你是酒店客人。"), Message("user", "写一条好评")]
EN = [Message("user", "Write a review")]
PROMPTS, TEXTS, FINISHED = [ZH, EN], ["房间很干净。", "clean"], [True, False]


@pytest.fixture
def write(tmp_path):
    def write(source: str, name: str = "my_rewards.py") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
        return file

    return write


def score(reward: FunctionReward) -> list[float]:
    return reward(PROMPTS, TEXTS, FINISHED)


def test_item16_function_of_a_file_in_chinese_and_english(write):
    file = write(
        "GOOD = ('干净', 'clean')\n"
        "def praise(prompts, completions):\n"
        "    return [sum(word in text for word in GOOD) - 0.5 for text in completions]\n"
        "def asked(prompts, completions):\n"
        "    return [len(chat) * 100 + len(chat[-1]['content']) for chat in prompts]\n"
        "def roles(prompts, completions):\n"
        "    return [1.0 if chat[-1] == {'role': 'user', 'content': 'Write a review'} else 0.0\n"
        "            for chat in prompts]\n"
    )
    assert score(FunctionReward(f"{file}:praise")) == [0.5, 0.5]
    assert score(FunctionReward(f"{file}:asked")) == [205.0, 114.0]
    assert score(FunctionReward(f"{file}:roles")) == [0.0, 1.0]
    assert FunctionReward(f"{file}:praise").name == "praise"


def test_item16_function_of_a_module_in_the_current_folder(write, tmp_path, monkeypatch):
    write("def length(prompts, completions):\n    return map(len, completions)\n", "zz_one.py")
    write("def half(prompts, completions):\n    return [.5] * len(prompts)\n", "zz_pack/inner.py")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert score(FunctionReward("zz_one:length")) == [6.0, 5.0]
    assert score(FunctionReward("zz_pack.inner:half")) == [0.5, 0.5]
    assert sys.path == path


@pytest.mark.parametrize(
    "signature",
    [
        "prompts, completions, finished",
        "finished, completions, prompts",  # by name, so the order is free
        "*, completions, prompts, finished",
        "completions, finished=None, other=3",
        "completions, **kwargs",
        "chats, texts, **kwargs",  # neither name: two by position, and finished by name
        "chats, texts, *, finished",
        "chats, texts, finished",
        "chats, texts=(), *, finished",
        "finished, **kwargs",
        "**kwargs",
    ],
)
def test_functions_get_what_they_name(write, signature):
    body = (
        "    here = dict(locals())\n"
        "    here.update(here.pop('kwargs', {}))\n"
        "    texts = here.get('completions', here.get('texts'))\n"
        "    assert here['finished'] == [True, False], here\n"
        "    chats = here.get('prompts', here.get('chats', [[0, 0], [0]]))\n"
        "    assert [len(c) for c in chats] == [2, 1], here\n"
        "    return [len(t) for t in texts]\n"
    )
    file = write(f"def f({signature}):\n{body}")
    assert score(FunctionReward(f"{file}:f")) == [6.0, 5.0]


def test_a_function_of_the_endings_alone(write):
    file = write("def f(finished):\n    return [1 if done else -1 for done in finished]\n")
    assert score(FunctionReward(f"{file}:f")) == [1.0, -1.0]


def test_a_builtin_without_names_gets_two_lists(write):
    file = write("f = zip\ndef g(*lists):\n    return [len(a) + len(b) for a, b in zip(*lists)]\n")
    assert score(FunctionReward(f"{file}:g")) == [8.0, 6.0]  # messages plus characters
    with pytest.raises(RewardError, match="must be a number"):
        score(FunctionReward(f"{file}:f"))


def test_other_callables(write):
    file = write(
        "import functools\n"
        "class Bonus:\n"
        "    def __init__(self, by): self.by = by\n"
        "    def __call__(self, completions): return [self.by] * len(completions)\n"
        "bonus = Bonus(2)\n"
        "def plus(prompts, completions, by): return [by for _ in prompts]\n"
        "three = functools.partial(plus, by=3)\n"
    )
    assert score(FunctionReward(f"{file}:bonus")) == [2.0, 2.0]
    assert score(FunctionReward(f"{file}:three")) == [3.0, 3.0]


def test_what_the_function_changes_stays_with_it(write):
    file = write(
        "def f(prompts, completions):\n"
        "    prompts[0][0]['content'] = ''\n    completions.sort()\n    prompts.pop()\n"
        "    return [1, 2]\n"
    )
    texts, prompts = list(TEXTS), [list(ZH), list(EN)]
    assert FunctionReward(f"{file}:f")(prompts, texts, FINISHED) == [1.0, 2.0]
    assert (texts, prompts) == (TEXTS, [ZH, EN])


def test_files_may_use_files_beside_them_and_dataclasses(write):
    write("WORD = '干净'\n", "zz_words.py")
    file = write(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from zz_words import WORD\n"
        "@dataclass\nclass Rule:\n    word: str = WORD\n"
        "def f(completions):\n    return [float(Rule().word in t) for t in completions]\n"
    )
    assert score(FunctionReward(f"{file}:f")) == [1.0, 0.0]
    assert str(file.parent) not in sys.path


def test_two_files_of_one_name_do_not_meet(write):
    source = "class K: pass\ndef f(completions):\n    return [{}] * len(completions)\n"
    one, two = (write(source.format(i), f"d{i}/same.py") for i in (1, 2))
    first, second = FunctionReward(f"{one}:f"), FunctionReward(f"{two}:f")
    assert (score(first), score(second)) == ([1.0, 1.0], [2.0, 2.0])
    assert first.function.__module__ != second.function.__module__


@pytest.mark.parametrize("path", ["brevity", "a b:c d", "my_rewards:", ":f", "m.py:C.f"])
def test_form(path):
    with pytest.raises(UserError) as caught:
        load_function(path, "rewards.0.path")
    assert str(caught.value) == (
        f"rewards.0.path='{path}' does not name a function. "
        "Write module:function or file.py:function."
    )


def refused(path: str) -> str:
    with pytest.raises(UserError) as caught:
        FunctionReward(path, "rewards.1.path")
    assert caught.value.field == "rewards.1.path"
    assert caught.value.value == path
    return str(caught.value)


def test_what_is_not_there(write, tmp_path):
    file = write("import os\nLIMIT = 3\ndef brevity(completions): ...\ndef _helper(): ...\n")
    assert f"names a file that does not exist: {tmp_path}/no.py" in refused(f"{tmp_path}/no.py:f")
    assert "could not be imported: ModuleNotFoundError: No module named 'zz_no'" in (
        refused("zz_no:f")
    )
    message = refused(f"{file}:brevty")
    assert "has no such function" in message
    assert message.endswith("my_rewards.py has: brevity.")
    assert "is not a function" in refused(f"{file}:LIMIT")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f(:", "SyntaxError: "),
        ("raise SystemExit('usage: …')", "SystemExit: usage: …"),
        # The missing file is another one than the reward's.
        ("open('zz_words.txt')", "FileNotFoundError: [Errno 2] No such file or directory: 'zz_w"),
    ],
)
def test_files_that_cannot_be_imported(write, source, reason):
    message = refused(f"{write(source, 'zz_broken.py')}:f")
    assert f"could not be imported: {reason}" in message
    assert not [name for name in sys.modules if "zz_broken" in name]


@pytest.mark.parametrize(
    ("definition", "reason"),
    [
        ("def f(completion): ...", "has the signature (completion): too many positional arguments"),
        ("def f(): ...", "has the signature (): too many positional arguments"),
        (
            "def f(prompts, completions, answers): ...",
            "has the signature (prompts, completions, answers): missing a required argument: "
            "'answers'",
        ),
        ("def f(a, b, c): ...", "has the signature (a, b, c): missing a required argument: 'c'"),
        ("async def f(prompts, completions): ...", "is an async function"),
    ],
)
def test_signatures_are_checked_when_loaded(write, definition, reason):
    message = refused(f"{write(definition)}:f")
    assert reason in message
    assert message.endswith(
        "Define it as def name(prompts, completions), optionally with finished or **kwargs."
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return [1.0]", "returned 1 numbers for 2 completions"),
        ("return [1.0, 2.0, 3.0]", "returned 3 numbers for 2 completions"),
        (
            "return [float('nan'), 1]",
            "returned nan for completion 0 ('房间很干净。'); it must be finite",
        ),
        (
            "return [1, float('-inf')]",
            "returned -inf for completion 1 ('clean'); it must be finite",
        ),
        ("return [1, 10 ** 400]", "for completion 1 ('clean'); it must be a number"),
        (
            "return [None, 1]",
            "returned None for completion 0 ('房间很干净。'); it must be a number",
        ),
        ("return ['1', '2']", "returned '1' for completion 0"),
        ("return [[1, 2], [3, 4]]", "returned [1, 2] for completion 0"),
        (
            "return",
            "returned None (NoneType); it must return a list with one number per completion",
        ),
        ("return 0.5", "returned 0.5 (float)"),
        ("return '12'", "returned '12' (str)"),
        ("return {'a': 1, 'b': 2}", "(dict)"),
        ("return {1.0, 2.0}", "(set)"),  # without order
        ("import torch; return torch.tensor(1.0)", "returned tensor(1.) (Tensor)"),
        ("import numpy; return numpy.float64(1)", "(float64)"),
        ("return len(completions[5])", "raised IndexError: list index out of range"),
        ("yield 1; raise KeyError('词')", "raised KeyError: '词'"),
    ],
)
def test_wrong_results_name_the_function_and_the_completion(write, body, reason):
    file = write(f"def f(prompts, completions):\n    {body}\n")
    with pytest.raises(RewardError) as caught:
        score(FunctionReward(f"{file}:f"))
    assert str(caught.value).startswith(f"reward '{file}:f' ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        "return (0.5, -2)",
        "import torch; return torch.tensor([0.5, -2.0])",
        "import numpy; return numpy.array([0.5, -2], dtype='float32')",
        "yield 0.5; yield -2",
        "from decimal import Decimal; return [Decimal('0.5'), Decimal(-2)]",
    ],
)
def test_lists_of_any_kind(write, body):
    got = score(FunctionReward(f"{write(f'def f(prompts, completions):{chr(10)}    {body}')}:f"))
    assert got == [0.5, -2.0]
    assert [type(x) for x in got] == [float, float]


def test_errors_point_into_the_users_file(write):
    file = write(
        "import json\n"
        "def inner(text):\n"
        "    return json.loads(text)\n"  # line 3
        "def f(completions):\n"
        "    return [inner(t) for t in completions]\n"
    )
    with pytest.raises(RewardError) as caught:
        score(FunctionReward(f"{file}:f"))
    assert "raised JSONDecodeError" in str(caught.value)
    assert str(caught.value).endswith(f"({file}, line 3)")
    assert caught.value.__cause__ is not None
