"""Scoring files: every row has a line, and an interrupted run ends as an uninterrupted one."""

from __future__ import annotations

import json
import math
import statistics

import pytest
import tiny_rewards as tiny

from align.config_errors import UserError
from align.records import Message
from reward_models import score_file as module
from reward_models.contract import Attribute
from reward_models.score_file import bar, fingerprint, score_file
from reward_models.scorer import Scorer

ROWS = [
    {"prompt": "写一条酒店评论", "completion": "房间很干净。", "id": 1},
    {"prompt": "Write a review", "response": "The room was clean.", "note": "é\ud800"},
    {"prompt": [{"role": "user", "content": "你好"}], "completions": ["好", "不好", "很好"]},
    {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}]},
    {"prompt": "q", "chosen": "早餐不错", "rejected": [{"role": "assistant", "content": "太差了"}]},
    {"prompt": "q", "candidates": [{"id": "a", "content": "x"}, {"id": "b", "content": "y"}]},
    {"prompt": "q"},
    {"completion": "a"},
    ["not", "an", "object"],
    {"prompt": "q", "completion": [{"role": "user", "content": "x"}]},
    {"prompt": "q", "answer": "Terrible food, never again. " * 8},
]


@pytest.fixture(scope="module")
def scorer():
    return Scorer(loaded=tiny.loaded(max_length=40), batch_size=4)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_becomes_a_line_with_its_scores(scorer, tmp_path):
    source, output = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out" / "scored.jsonl"
    counts = score_file(scorer, source, output, mark="m")
    lines = read(output)
    assert counts == {"rows": 11, "resumed": 0, "errors": 4, "truncated": 1}
    assert [p.name for p in output.parent.iterdir()] == ["scored.jsonl"]
    assert all(line["scorer"] == "m" for line in lines)
    for row, line in zip(ROWS, lines, strict=True):
        kept = row if isinstance(row, dict) else {"input": row}
        assert {k: line[k] for k in kept} == kept

    def alone(prompt, answer):
        return pytest.approx(scorer.score([[Message("user", prompt)]], [answer])[0], abs=1e-6)

    assert lines[0]["score"] == alone("写一条酒店评论", "房间很干净。")
    assert lines[2]["scores"] == [alone("你好", "好"), alone("你好", "不好"), alone("你好", "很好")]
    assert lines[3]["score"] == alone("你好", "好")
    assert lines[4]["scores"] == [alone("q", "早餐不错"), alone("q", "太差了")]
    assert lines[5]["scores"] == [alone("q", "x"), alone("q", "y")]
    assert [line.get("error", "").split(":")[0] for line in lines] == [
        "", "", "", "", "", "", "no_completion", "no_prompt", "not_an_object", "no_assistant", "",
    ]  # fmt: skip
    assert [line.get("truncated") for line in lines] == [None] * 10 + [1]
    assert lines[6]["score"] is None


def test_lines_that_cannot_be_read_are_counted_and_do_not_stop_the_run(scorer, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_bytes(
        b'{"prompt": "q", "completion": "a"}\n{"prompt": \n\xff\n{"prompt": "q", "output": "b"}\n'
    )
    counts = score_file(scorer, source, tmp_path / "out.jsonl", mark="m")
    lines = read(tmp_path / "out.jsonl")
    assert (counts["rows"], counts["errors"]) == (4, 2)
    assert [line["error"].split(":")[0] for line in lines[1:3]] == ["bad_json", "bad_encoding"]
    assert [line["line"] for line in lines[1:3]] == [2, 3]
    assert isinstance(lines[3]["score"], float)


def test_a_json_array_is_read_too(scorer, tmp_path):
    source = tmp_path / "in.json"
    source.write_text(json.dumps(ROWS[:2], indent=1))
    assert score_file(scorer, source, tmp_path / "out.jsonl", mark="m")["rows"] == 2


class Stop(Exception):
    pass


def interrupted(scorer, source, output, after):
    """Runs until ``after`` rows are scored, as a signal would."""

    def progress(done):
        if done >= after:
            raise Stop

    with pytest.raises(Stop):
        score_file(scorer, source, output, mark="m", progress=progress)


@pytest.mark.parametrize(("cut", "kept"), [(0, 6), (1, 4), (25, 4), (100_000, 0)])
def test_an_interrupted_run_goes_on_and_ends_alike(scorer, tmp_path, monkeypatch, cut, kept):
    monkeypatch.setattr(module, "CHUNK", 2)
    source = write(tmp_path / "in.jsonl", ROWS)
    wanted = score_file(scorer, source, tmp_path / "whole.jsonl", mark="m")
    output, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    interrupted(scorer, source, output, after=6)
    assert not output.exists()
    with open(partial, "rb+") as file:  # the last line was half written
        file.truncate(max(0, partial.stat().st_size - cut))
    counts = score_file(scorer, source, output, mark="m")
    # Of a chunk that is not complete nothing is kept: the batches are those of the first run.
    assert counts == {**wanted, "resumed": kept}
    assert not partial.exists()
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_resumed_run_counts_errors_and_cuts_once(scorer, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 3)
    rows = [ROWS[6], ROWS[10], ROWS[0], ROWS[10], ROWS[7], ROWS[10], ROWS[1]]
    source = write(tmp_path / "in.jsonl", rows)
    wanted = score_file(scorer, source, tmp_path / "whole.jsonl", mark="m")
    assert (wanted["errors"], wanted["truncated"]) == (2, 3)
    output = tmp_path / "out.jsonl"
    interrupted(scorer, source, output, after=6)
    with open(tmp_path / "out.jsonl.partial", "rb+") as file:
        file.truncate(file.seek(0, 2) - 3)
    assert score_file(scorer, source, output, mark="m") == {**wanted, "resumed": 3}


def test_a_finished_output_is_kept_and_new_rows_are_added(scorer, tmp_path):
    source, output = write(tmp_path / "in.jsonl", ROWS[:3]), tmp_path / "out.jsonl"
    score_file(scorer, source, output, mark="m")
    first = output.read_text()
    assert score_file(scorer, source, output, mark="m")["resumed"] == 3
    assert output.read_text() == first
    write(source, ROWS[:5])
    assert score_file(scorer, source, output, mark="m")["resumed"] == 3
    assert output.read_text().startswith(first)
    assert len(read(output)) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mark": "other"}, "was begun with another model or option"),
        ({"rows": ROWS[1:]}, "was begun with another input"),
        ({"rows": ROWS[:1]}, "was begun with another input"),
    ],
)
def test_another_model_or_input_is_an_error_and_nothing_is_lost(scorer, tmp_path, change, message):
    source, output = write(tmp_path / "in.jsonl", ROWS[:3]), tmp_path / "out.jsonl"
    score_file(scorer, source, output, mark="m")
    before = output.read_bytes()
    write(source, change.get("rows", ROWS[:3]))
    with pytest.raises(UserError, match=message) as caught:
        score_file(scorer, source, output, mark=change.get("mark", "m"))
    assert caught.value.field == "output"
    assert output.read_bytes() == before
    assert not (tmp_path / "out.jsonl.partial").exists()


@pytest.mark.parametrize("content", ["my notes\n", "no line end", '{"prompt": "q"}\n', "[1]\n"])
def test_a_file_that_score_did_not_write_is_never_replaced(scorer, tmp_path, content):
    source, output = write(tmp_path / "in.jsonl", ROWS[:1]), tmp_path / "out.jsonl"
    output.write_text(content)
    with pytest.raises(UserError, match="was not written by score"):
        score_file(scorer, source, output, mark="m")
    assert output.read_text() == content


def test_output_that_is_the_input_or_a_folder(scorer, tmp_path):
    source = write(tmp_path / "in.jsonl", ROWS[:1])
    before = source.read_text()
    with pytest.raises(UserError, match="is the input"):
        score_file(scorer, source, tmp_path / "." / "in.jsonl", mark="m")
    with pytest.raises(UserError, match="is a folder"):
        score_file(scorer, source, tmp_path, mark="m")
    assert source.read_text() == before


def test_fields_of_an_earlier_scoring_are_replaced(scorer, tmp_path):
    row = {"prompt": "q", "completion": "a", "score": 99.0, "error": "old", "scorer": "old"}
    source, output = write(tmp_path / "in.jsonl", [row]), tmp_path / "out.jsonl"
    score_file(scorer, source, output, mark="m")
    (line,) = read(output)
    assert line.keys() == {"prompt", "completion", "score", "scorer"}
    assert line["score"] != 99.0
    assert score_file(scorer, source, output, mark="m")["resumed"] == 1


def test_a_score_that_is_not_finite_is_an_error_of_the_row(tmp_path):
    made = tiny.loaded()
    made[0].score.weight.data.fill_(math.inf)
    source = write(tmp_path / "in.jsonl", ROWS[:1])
    counts = score_file(Scorer(loaded=made), source, tmp_path / "out.jsonl", mark="m")
    assert counts["errors"] == 1
    (line,) = read(tmp_path / "out.jsonl")
    assert line["score"] is None
    assert line["error"].startswith("not_finite")


def test_an_ensemble_says_how_far_its_heads_disagree(tmp_path):
    scorer = Scorer(loaded=tiny.loaded(heads=3, scores=[0.0, 4.0]))  # mean 2, deviation 2
    source = write(tmp_path / "in.jsonl", [ROWS[0], ROWS[2]])
    score_file(scorer, source, tmp_path / "out.jsonl", mark="m")
    one, three = read(tmp_path / "out.jsonl")
    heads = scorer.score_heads([[Message("user", "写一条酒店评论")]], ["房间很干净。"])[0]
    assert one["score"] == pytest.approx(statistics.fmean(heads), abs=1e-6)
    assert one["uncertainty"] == pytest.approx(statistics.stdev(heads), abs=1e-6)
    assert len(three["scores"]) == len(three["uncertainty"]) == 3
    score_file(scorer, source, tmp_path / "again.jsonl", mark="m", calibrated=True)
    calibrated = read(tmp_path / "again.jsonl")[0]
    assert calibrated["score"] == pytest.approx((one["score"] - 2) / 2, abs=1e-6)
    assert calibrated["uncertainty"] == pytest.approx(one["uncertainty"] / 2, abs=1e-6)


def test_attributes_are_written_in_their_own_unit(tmp_path):
    rated = [Attribute("helpfulness", 0.5, 3.0, 2.0), Attribute("verbosity", -1.0, 1.0, 0.5)]
    scorer = Scorer(loaded=tiny.loaded(heads=2, attributes=rated))
    source = write(tmp_path / "in.jsonl", [ROWS[0], ROWS[4]])
    score_file(scorer, source, tmp_path / "out.jsonl", mark="m")
    one, two = read(tmp_path / "out.jsonl")
    a, b = scorer.score_heads([[Message("user", "写一条酒店评论")]], ["房间很干净。"])[0]
    found = {"helpfulness": 3 + 2 * a, "verbosity": 1 + b / 2}
    assert one["score_attributes"] == pytest.approx(found, abs=1e-6)
    assert one["score"] == pytest.approx(1.5 + a - 1 - b / 2, abs=1e-6)
    assert "uncertainty" not in one
    assert [row.keys() for row in two["score_attributes"]] == [found.keys()] * 2


def test_the_bar():
    assert bar(0, 8) == f"[{'.' * 30}] 0/8 rows"
    assert bar(4, 8) == f"[{'#' * 15}{'.' * 15}] 4/8 rows"
    assert bar(8, 8) == f"[{'#' * 30}] 8/8 rows"


def test_the_fingerprint_tells_what_changes_a_score(tmp_path):
    folder = tiny.save(tmp_path / "a")
    same, other = tiny.save(tmp_path / "b"), tiny.save(tmp_path / "c", seed=1)
    first = fingerprint(folder)
    assert fingerprint(same) == first
    assert (
        len({first, fingerprint(other), fingerprint(folder, True), fingerprint(folder, False, 9)})
        == 4
    )
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1  # one bit, far from both ends
    weights.write_bytes(data)
    assert fingerprint(folder) != first
