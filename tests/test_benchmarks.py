"""The harness of benchmarks/: what makes a row void, and that both sides get the same token ids."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "sides"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import cleaning
import comparison
import floor
import growth
import ppo_comparison
import prepare
import run
import sampling
import stopwatch
import suite
from comparison import Side

ROOT = Path(__file__).resolve().parents[1]
BASE = str(ROOT / "recipes" / "assets" / "demo_base")


def side(name: str, losses: list[float], seconds: list[float], figure: str = "loss") -> Side:
    logs = [{figure: loss} for loss in losses]
    run = {"logs": logs, "seconds": seconds, "peak_mib": 100.0, "versions": {"torch": "2"}}
    return Side(name, "python", "x.py", {}, [run])


def test_a_row_by_hand():
    ours, peer = side("align", [0.7, 0.6], [1.0, 2.0, 9.0]), side("trl", [0.7, 0.6], [4.0])
    row = comparison.row_of("dpo", "dpo", ours, peer, 200.0, 1.0)
    assert (row["ours_s"], row["peer_s"], row["ratio"], row["floor_share"]) == (2.0, 4.0, 2.0, 0.5)
    assert (row["ours_tokens_per_s"], row["peer_tokens_per_s"]) == (100.0, 50.0)
    assert row["valid"]
    assert "**2.00×**" in comparison.table([row])


@pytest.mark.parametrize(
    ("losses", "valid"), [([0.7, 0.6], True), ([0.7, 0.61], False), ([], False)]
)
def test_a_row_whose_losses_differ_is_void(losses, valid):
    ours, peer = side("align", [0.7, 0.6], [1.0]), side("trl", losses, [1.0])
    row = comparison.row_of("dpo", "dpo", ours, peer, 1.0, None)
    assert row["valid"] is valid
    assert ("void" in comparison.table([row])) is not valid


def test_orpo_is_compared_before_the_first_step_only():
    ours = side("align", [0.5, 0.4], [1.0], "log_odds")
    peer = side("trl", [0.5, 0.9], [1.0], "log_odds_chosen")
    assert comparison.agreement("orpo", ours, peer)[1]


@pytest.mark.parametrize("candidates", [2, 3])
def test_both_sides_read_the_same_texts(tmp_path, candidates):
    file = suite.pairs(tmp_path / "pairs.jsonl", 12)
    tokenizer = prepare.model_folder(BASE, tmp_path / "model", "reward", False)
    options = argparse.Namespace(candidates=candidates, max_length=200, prompt_repeat=1)
    rows = prepare.read_rows(str(file), "reward", 4, tokenizer, options)
    prepare.write_rows(rows, "reward", tmp_path)
    ours, peer = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("ours", "peer")
    )
    pairs = candidates * (candidates - 1) // 2
    assert (len(ours), len(peer)) == (4, 4 * pairs)
    for i, row in enumerate(ours):
        answers = [c["content"] for c in row["candidates"]] if candidates > 2 else None
        answers = answers or [row["chosen"], row["rejected"]]
        assert [p["prompt"] for p in peer[i * pairs : (i + 1) * pairs]] == [row["prompt"]] * pairs
        assert peer[i * pairs]["chosen"] == answers[0]  # the best beats the second
        assert peer[(i + 1) * pairs - 1]["rejected"] == answers[-1]
        size, lengths = rows.tokens[i]
        for answer, length in zip(answers, lengths, strict=True):
            whole = tokenizer(row["prompt"] + answer).input_ids
            assert len(whole) + 1 == size + length <= 200


def test_prompts_of_ppo_have_exactly_so_many_tokens(tmp_path):
    file = suite.pairs(tmp_path / "pairs.jsonl", 12)
    tokenizer = prepare.model_folder(BASE, tmp_path / "model", "ppo", False)
    prepare.write_prompts(
        argparse.Namespace(prompt_tokens=16, data=str(file)), tokenizer, tmp_path, 8
    )
    texts = (tmp_path / "ours.jsonl").read_text("utf-8").splitlines()
    ids = (tmp_path / "peer.jsonl").read_text("utf-8").splitlines()
    assert len(texts) == len(ids) == 8
    for text, row in zip(texts, ids, strict=True):
        assert tokenizer(json.loads(text)["prompt"]).input_ids == json.loads(row)["input_ids"]
        assert len(json.loads(row)["input_ids"]) == 16


def test_lengths_that_chance_explains_are_the_same_and_others_are_not():
    # Of 1 and 63 tokens in turn: a mean of 32, a deviation of 31, so of 16 an error of 7.75 each.
    few = [1, 63] * 8
    assert sampling.same_mean(few, [n + 30 for n in few])  # three errors of the gap are 32.9
    assert not sampling.same_mean(few, [n + 35 for n in few])
    assert sampling.same_mean([100] * 4, [102] * 4)  # no chance at all: within 2 %
    assert not sampling.same_mean([100] * 4, [103] * 4)


@pytest.mark.parametrize(("entropy", "valid"), [(2.2, True), (2.4, False)])
def test_a_ppo_row_compares_all_rollouts(entropy, valid):
    # trl's entropies are sums over 64 tokens: 1.5 and 2.5 a token, 2 on average; 15 % are 2.3.
    ours = side("align", [], [1.0])
    ours.runs[0]["logs"] = [{"length/mean": 64.0, "entropy": entropy + d} for d in (-1, 1)]
    peer = side("trl", [96.0, 160.0], [1.0], "objective/entropy")
    text, found = ppo_comparison._agreement(ours, peer, 64)
    assert found is valid
    assert text.startswith(f"entropy {entropy:.3f} / 2.000 nats a token, 64.0 tokens")


def test_a_row_may_hold_what_unicode_takes_for_a_line_end(tmp_path):
    text = "one\u2028two\u0085three"
    rows = prepare.Rows([(text, [text, "other"])], [(3, [3, 1])])
    prepare.write_rows(rows, "dpo", tmp_path)
    assert stopwatch.rows_of({"data": str(tmp_path / "peer.jsonl")}) == [
        {"prompt": text, "chosen": text, "rejected": "other"}
    ]


@pytest.mark.parametrize("peer", ["llamafactory", "swift"])
def test_a_method_that_a_peers_side_lacks_is_refused(peer, capsys):
    words = ["--peer", peer, "--method", "reward", "--model", "x", "--data", "y"]
    with pytest.raises(SystemExit) as stopped:
        run.main(words)
    assert stopped.value.code == 2
    assert f"--method reward: the side of {peer} does sft or dpo" in capsys.readouterr().err


def test_the_slope_of_a_power_law():
    assert growth.exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2.0)


def test_the_floor_is_the_longer_of_computing_and_moving():
    machine = floor.Machine(operations=10.0, bandwidth=2.0)
    assert machine.seconds(100.0) == 10.0
    assert machine.seconds(100.0, 30.0) == 15.0


@pytest.mark.parametrize("language", ["en", "zh"])
def test_cleaning_texts_are_of_the_size_and_language_asked_for(tmp_path, language):
    cleaning.make(tmp_path, language, 0.05)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    size = cleaning.text_bytes(tmp_path)
    assert 50_000 <= size == sum(len(row["text"].encode()) for row in rows) < 60_000
    chinese = sum("\u4e00" <= c <= "\u9fff" for row in rows for c in row["text"])
    assert (chinese > 10_000) is (language == "zh")
    mine = cleaning.ours(tmp_path, tmp_path / "out", near=True)
    assert 0 < mine["kept"] < len(rows)


def test_cleaning_alone_has_a_row_for_each_file(tmp_path, monkeypatch, capsys):
    cleaning.make(tmp_path, "zh", 0.02)
    monkeypatch.setattr(sys, "argv", ["cleaning.py", "--alone", str(tmp_path / "a.jsonl")])
    assert cleaning.main() == 0
    *_, row = capsys.readouterr().out.splitlines()
    name, *speeds = [cell.strip() for cell in row.strip("|").split("|")]
    assert name.startswith("a.jsonl")
    assert len(speeds) == 3
    assert all(float(speed) > 0 for speed in speeds)


def test_cleaning_without_the_peer_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cleaning.py", "--python", "gone"])
    assert cleaning.main() == 2
    assert "setup_peers.sh datatrove" in capsys.readouterr().err
