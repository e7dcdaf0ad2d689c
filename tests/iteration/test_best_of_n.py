"""recipes/best_of_n.py: what it writes, a killed run goes on, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))
import eval_models

from align.data.pairs import load_preferences
from align.data.prompts import load_prompts
from align.evaluation.sampling import Decoding
from align.iteration.best_of_n import best_of_n
from align.iteration.sampling import BLOCK, scored_samples
from align.iteration.select import Rules
from align.records import Message, Prompt
from align.tools import run_tool

REWARD = '''
def length(prompts, completions, finished=None, **kwargs):
    """More characters are better; what the prompt says is worth one more."""
    return [len(c) + float(m[-1]["content"][-1] in c) for m, c in zip(prompts, completions)]
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("best")
    eval_models.save(folder / "run", 3)
    rows = [{"prompt": f"{eval_models.PROMPTS[i % 6]} {i}", "category": "c"} for i in range(40)]
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    (folder / "prompts.jsonl").write_text(text, "utf-8")
    (folder / "reward.py").write_text(REWARD, "utf-8")
    return folder


def words(place, output, *extra):
    return [
        "--model", str(place / "run"), "--prompts", str(place / "prompts.jsonl"),
        "--reward", f"{place / 'reward.py'}:length", "--n", "4", "--output", str(output),
        "--max_new_tokens", "8", "--unfinished", "keep", *map(str, extra),
    ]  # fmt: skip


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_the_command_writes_data_that_the_trainers_read(place, tmp_path, capsys):
    output = tmp_path / "out"
    assert run_tool("best_of_n", words(place, output)) == 0
    assert "40 prompts, 4 answers each" in capsys.readouterr().out
    samples = lines(output / "samples.jsonl")
    assert len(samples) == 160
    by_prompt: dict[str, list] = {}
    for row in samples:
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    groups, counts = load_preferences(output / "preferences.jsonl")
    assert not counts.dropped
    assert groups
    for group in groups:
        rows = [r for r in by_prompt[group.group_id] if r["completion"].strip()]
        high, low = max(r["score"] for r in rows), min(r["score"] for r in rows)
        assert group.judgements[0].strength == pytest.approx(high - low)
        assert group.meta["category"] == "c"
        assert group.candidates[0].model == "run"
    best = {
        (str(rows[0]["prompt"]), r["completion"])
        for rows in by_prompt.values()
        for r in rows
        if r["score"] == max(x["score"] for x in rows if x["completion"].strip())
    }
    for row in lines(output / "sft.jsonl"):
        assert (str(row["messages"][:-1]), row["messages"][-1]["content"]) in best
    summary = json.loads((output / "summary.json").read_text("utf-8"))
    assert summary["best_of_n"][0]["value"] == pytest.approx(np.mean([r["score"] for r in samples]))
    assert summary["best_of_n"][-1]["value"] == pytest.approx(
        np.mean([max(r["score"] for r in rows) for rows in by_prompt.values()])
    )
    used, dropped = summary["sft"]["used"], sum(summary["sft"]["dropped"].values())
    assert used + dropped == 40
    assert "Expected reward" in (output / "report.html").read_text("utf-8")


def test_a_run_that_was_killed_goes_on_with_the_same_answers(place, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run_tool("best_of_n", words(place, whole)) == 0
    assert run_tool("best_of_n", words(place, cut)) == 0
    wanted = (whole / "samples.jsonl").read_text("utf-8")
    assert (cut / "samples.jsonl").read_text("utf-8") == wanted
    # Two blocks, half a prompt, and a line that was torn.
    kept = wanted.splitlines(keepends=True)[: 2 * BLOCK * 4 + 2]
    (cut / "samples.jsonl").write_text("".join(kept) + '{"prompt_id": "x', "utf-8")
    assert run_tool("best_of_n", words(place, cut)) == 0
    assert (cut / "samples.jsonl").read_text("utf-8") == wanted
    for name in ("preferences.jsonl", "sft.jsonl", "summary.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_what_is_there_needs_no_model(place, tmp_path):
    prompts = load_prompts(place / "prompts.jsonl")[:5]
    options = {"seed": 1, "say": lambda _: None}

    def load():
        return eval_models.gpt2(3), eval_models.tokenizer()

    def reward(_, texts, finished):
        return [float(len(t)) for t in texts]

    decoding = Decoding(max_new_tokens=6)
    first, _ = scored_samples(load, prompts, reward, 3, decoding, tmp_path, **options)

    def broken():
        raise AssertionError("the model was loaded")

    again, _ = scored_samples(broken, prompts, reward, 3, decoding, tmp_path, **options)
    assert again == first
    assert len({s.text for row in first.values() for s in row}) > 5
    # More prompts: those that are there are not sampled again.
    more = load_prompts(place / "prompts.jsonl")[:BLOCK]
    rest, _ = scored_samples(load, more, reward, 3, decoding, tmp_path, **options)
    assert all(len(rest[p.prompt_id]) == 3 for p in more)


def test_prompts_that_are_too_long_are_counted(tmp_path, place):
    long = [*load_prompts(place / "prompts.jsonl")[:2], Prompt((Message("user", "长" * 200),))]
    summary = best_of_n(
        lambda: (eval_models.gpt2(3), eval_models.tokenizer()), long,
        lambda _, texts, finished: [float(len(t)) for t in texts], 2, tmp_path / "out",
        decoding=Decoding(max_new_tokens=6), rules=Rules(unfinished="keep"), say=lambda _: None,
    )  # fmt: skip
    assert (summary["prompts"], summary["too_long"]) == (2, 1)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--model", "none"], "model='none' no such folder"),
        (["--prompts", "none.jsonl"], "--prompts='none.jsonl' does not exist"),
        (["--reward", "none"], "--reward='none' no such folder"),
        (["--n", "1"], "1 is below 2"),
        (["--min_margin", "-1"], "-1 is below 0"),
        (["--temperature", "0"], "--temperature=0 gives n equal answers"),
        (["--seeds", "0,1"], "is not an option of this recipe. Use --seed"),
    ],
)
def test_wrong_options(place, tmp_path, capsys, extra, message):
    assert run_tool("best_of_n", words(place, tmp_path / "out", *extra)) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_other_settings_in_the_same_folder_are_refused(place, tmp_path, capsys):
    assert run_tool("best_of_n", words(place, tmp_path / "out", "--num_prompts", 3)) == 0
    (tmp_path / "f").write_text("x")
    assert run_tool("best_of_n", words(place, tmp_path / "f")) == 2
    assert "is a file. Give a folder" in capsys.readouterr().err
    code = run_tool("best_of_n", words(place, tmp_path / "out", "--num_prompts", 3, "--seed", 9))
    assert code == 2
    assert "holds results with another seed (0). Give another folder" in capsys.readouterr().err
