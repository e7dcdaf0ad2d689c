"""Token groups on disk: the same groups, counts and runs as those in memory."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import small_runs as small

from align.data.tokenizer import train_tokenizer
from align.groups import TokenGroup
from align.records import Example, Message, PairTarget
from align.train import token_cache
from align.train.token_cache import CachedGroups, attach, cached, key

RESULTS = [
    (TokenGroup([1, 2], [[3], [4, 5]], [[1], [0, 1]], pairs=[PairTarget(0, 1, 0.75, 2.0, 1.5)],
                extras={"rating_0": [0.1, float("nan")]}), ["prompt_truncated"]),
    "too_long",
    (TokenGroup([70_000], [[7], [8]]), []),
]  # fmt: skip
RECORDS = [Example((Message("user", "写"), Message("assistant", str(i)))) for i in range(3)]


def words():
    return train_tokenizer(
        ["房间很干净。", "The room"] * 4, 275, min_frequency=1, chat_template="chatml"
    )


def folder(tmp_path: Path, **more):
    return cached(lambda: RESULTS, RECORDS, tmp_path / ".cache", words(), {"a": 1, **more})


def test_groups_come_back_as_they_were(tmp_path):
    groups, dropped, cuts = folder(tmp_path)
    assert isinstance(groups, CachedGroups)
    assert (dropped, cuts) == (["too_long"], ["prompt_truncated"])
    assert len(groups) == 2
    first, last = groups[0], groups[-1]
    assert (first.prompt_ids, first.completions, first.masks) == (
        [1, 2],
        [[3], [4, 5]],
        [[1], [0, 1]],
    )
    assert first.pairs == [PairTarget(0, 1, 0.75, 2.0, 1.5)]
    assert first.extras["rating_0"][0] == 0.1
    assert first.extras["rating_0"][1] != first.extras["rating_0"][1]
    assert (last.prompt_ids, last.masks, last.pairs) == ([70_000], None, [])
    assert [g.prompt_ids for g in groups] == [[1, 2], [70_000]]
    with pytest.raises(IndexError):
        groups[2]


def test_a_second_run_builds_nothing(tmp_path, capsys):
    folder(tmp_path)

    def never():
        raise AssertionError("built again")

    groups, dropped, _ = cached(never, RECORDS, tmp_path / ".cache", words(), {"a": 1})
    assert (len(groups), dropped) == (2, ["too_long"])
    assert "token ids from" in capsys.readouterr().out
    assert [f.suffix for f in (tmp_path / ".cache").iterdir()] == [".arrow"]  # nothing half-written


def test_the_key_follows_records_tokenizer_template_and_settings():
    tokenizer = words()
    found = {key(RECORDS, tokenizer, {"a": 1})}
    assert found == {key(list(RECORDS), words(), {"a": 1})}
    found.add(key(RECORDS[::-1], tokenizer, {"a": 1}))
    found.add(key(RECORDS, tokenizer, {"a": 2}))
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    found.add(key(RECORDS, tokenizer, {"a": 1}))
    other = train_tokenizer(["another text"] * 4, 270, min_frequency=1, chat_template="chatml")
    found.add(key(RECORDS, other, {"a": 1}))
    assert len(found) == 5


def test_other_processes_of_a_machine_wait_for_the_one_that_builds(tmp_path, monkeypatch):
    mine = threading.local()
    monkeypatch.setattr(token_cache.launch_env, "local_rank", lambda: getattr(mine, "rank", 0))
    seen = []

    def second():
        mine.rank = 1
        groups, _, _ = cached(lambda: 1 / 0, RECORDS, tmp_path / ".cache", words(), {"a": 1})
        seen.append(len(groups))

    waiting = threading.Thread(target=second)
    waiting.start()
    folder(tmp_path)
    waiting.join(timeout=20)
    assert seen == [2]


def test_extras_that_are_found_later(tmp_path):
    groups, _, _ = folder(tmp_path)
    plain = [TokenGroup([1], [[2], [3]])]
    attach(groups, "ref_logps", [[-1.0, -2.0], [-3.0, -4.0]])
    attach(plain, "ref_logps", [[-5.0, -6.0]])
    assert groups[1].extras["ref_logps"] == [-3.0, -4.0]
    assert groups[0].extras.keys() == {"rating_0", "ref_logps"}
    assert plain[0].extras == {"ref_logps": [-5.0, -6.0]}
    with pytest.raises(ValueError, match="1 values for 2 groups"):
        groups.attach("x", [[0.0]])


def test_where_nothing_can_be_written_there_is_no_folder(tmp_path, monkeypatch):
    config = SimpleNamespace(train=SimpleNamespace(output_dir=str(tmp_path / "a" / "run")))
    assert token_cache.folder(config) == tmp_path / "a" / ".cache"
    monkeypatch.setattr(token_cache.os, "access", lambda path, mode: path != tmp_path)
    assert token_cache.folder(config) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [("sft", ()), ("dpo", ("--policy.reference", "cached")), ("reward", ()), ("orpo", ())],
)
def test_a_run_from_disk_is_the_run_from_memory_to_the_bit(tmp_path, method, options, monkeypatch):
    in_memory = small.weights(small.train(method, tmp_path / "memory" / "run", *options))
    assert not list((tmp_path / "memory" / ".cache").glob("tokens-*"))
    monkeypatch.setattr(token_cache, "SMALL", 0)
    for name in ("first", "second"):
        found = small.weights(small.train(method, tmp_path / "disk" / name, *options))
        assert found.keys() == in_memory.keys()
        assert all(torch.equal(found[k], in_memory[k]) for k in found)
        counts = (tmp_path / "disk" / name / "data_counts.json").read_text("utf-8")
        assert counts == (tmp_path / "memory" / "run" / "data_counts.json").read_text("utf-8")
    assert list((tmp_path / "disk" / ".cache").glob("tokens-*.arrow"))
