"""Targets that an import found from all votes reach training, and only if the import noted them."""

from __future__ import annotations

import json

import pytest
import recipe_runs as rr

from reward_models.import_annotations import main as import_main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aggregates")
    rr.tiny_model(folder / "model")
    rr.settings(folder)
    return folder


def votes(n=20):
    """x and y agree on everything; z says the opposite every time."""
    for k in range(n):
        asked = f"问题 {k}: what is {k} + {k}?"
        for who in ("x", "y", "z"):
            answers = [str(2 * k), f"{2 * k + 1}, 我想"]
            chosen, rejected = answers[::-1] if who == "z" else answers
            yield {"prompt": asked, "chosen": chosen, "rejected": rejected, "annotator": who}


def shown(place, file, aggregate, capsys):
    words = ["--config", str(place / "config.yaml"), "--data.preferences", str(file), "--dry_run"]
    code = rr.main_of("reward")([*words, "--reward.aggregate", aggregate])
    said = capsys.readouterr()
    return code, said.out + said.err


@pytest.mark.parametrize("aggregate", ["dawid_skene", "noisy_bt"])
def test_training_takes_what_the_import_found(place, tmp_path, capsys, aggregate):
    pytest.importorskip("crowdkit")
    file = rr.write_rows(tmp_path / "votes.jsonl", list(votes()))
    output = tmp_path / aggregate
    words = ["--input", str(file), "--output", str(output), "--aggregate", aggregate]
    assert import_main(words) == 0
    capsys.readouterr()
    file = output / "preferences.jsonl"
    (_, _, p), *_ = json.loads(file.read_text("utf-8").splitlines()[0])["meta"]["aggregated"][
        aggregate
    ]
    # Three votes alone would give 2/3; somebody who is always wrong counts for the others.
    assert p > 0.8
    code, said = shown(place, file, aggregate, capsys)
    assert code == 0
    assert f"is preferred to 1 with probability {p:g}," in said
    assert "with probability 0.666667," in shown(place, file, "soft", capsys)[1]


def test_without_them_it_is_an_error_that_says_how_to_get_them(place, tmp_path, capsys):
    file = rr.write_rows(tmp_path / "votes.jsonl", list(votes(3)))
    code, said = shown(place, file, "dawid_skene", capsys)
    assert code == 2
    assert "it needs the votes of all groups" in said
    assert "Import the annotations with --aggregate dawid_skene, or use soft" in said
