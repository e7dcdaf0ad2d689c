"""Token shards: what is on disk is what the tokenizer gives, however it was built."""

from __future__ import annotations

import functools
import json
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.config_errors import UserError
from align.data import token_shards
from align.data.token_pieces import PIECE_CHARS, encode, pieces, portions
from align.data.token_shards import TokenShards, build, is_token_folder
from align.data.tokenizer import train_tokenizer

TEXTS = ["春天有樱花、桃花和杏花。", "A spider has eight legs.", "水烧到八十度。", "Leaves fall."]


@functools.cache
def tokenizer():
    return train_tokenizer(TEXTS, 300, min_frequency=1)


def expected(texts):
    """Ids with EOS after each text, and where the EOS are."""
    ids, ends = [], []
    for text in texts:
        ids += tokenizer()(text, add_special_tokens=False)["input_ids"]
        ends.append(len(ids))
        ids.append(tokenizer().eos_token_id)
    return ids, ends


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture
def small_portions(monkeypatch):
    """A portion of work is about two texts, so that a few texts make several shards."""
    monkeypatch.setattr(token_shards, "portions", functools.partial(portions, chars=30))


@pytest.mark.parametrize("shard_tokens", [1, 20, 10_000])
def test_what_is_read_is_what_was_tokenised(tmp_path, small_portions, shard_tokens):
    texts = TEXTS * 5
    build(tmp_path / "t", lambda: texts, tokenizer(), shard_tokens=shard_tokens)
    shards = TokenShards(tmp_path / "t", tokenizer())
    ids, ends = expected(texts)
    assert shards.read(0, len(shards)).tolist() == ids
    assert shards.ends(0, len(shards)).tolist() == ends
    assert shards.documents == 20
    assert shards.lengths(7).tolist() == [len(expected([t])[0]) - 1 for t in texts[:7]]
    for start, stop in ((3, 3), (5, 40), (len(ids) - 1, len(ids))):
        assert shards.read(start, stop).tolist() == ids[start:stop]
        assert shards.ends(start, stop).tolist() == [e for e in ends if start <= e < stop]
    assert (len(list((tmp_path / "t").glob("*.bin"))) == 1) is (shard_tokens == 10_000)


def test_processes_change_nothing(tmp_path, small_portions):
    for processes in (1, 2):
        build(tmp_path / f"p{processes}", lambda: TEXTS * 9, tokenizer(), shard_tokens=25,
              num_proc=processes)  # fmt: skip
    assert contents(tmp_path / "p1") == contents(tmp_path / "p2")


def test_a_build_that_was_killed_goes_on_after_the_last_whole_shard(tmp_path, small_portions):
    texts = TEXTS * 5
    build(tmp_path / "whole", lambda: texts, tokenizer(), shard_tokens=25)

    def broken():
        yield from texts[:12]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "parts", broken, tokenizer(), shard_tokens=25)
    part = tmp_path / "parts.part"
    done = sorted(p.name for p in part.glob("*.bin"))
    assert done
    before = {name: (part / name).stat().st_mtime_ns for name in done}
    build(tmp_path / "parts", lambda: texts, tokenizer(), shard_tokens=25)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert {n: (tmp_path / "parts" / n).stat().st_mtime_ns for n in done} == before
    assert not part.exists()


def test_a_corpus_without_text_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="holds no text"):
        build(tmp_path / "t", list, tokenizer())
    assert list(tmp_path.iterdir()) == []


def test_ids_above_16_bits_take_32(tmp_path):
    class Wide:
        """A tokenizer of 70,000 entries: every character is its code point."""

        eos_token_id = 69_999

        def get_vocab(self):
            return {str(i): i for i in range(70_000)}

        def __call__(self, texts, **kwargs):
            return {"input_ids": [[*map(ord, text)] for text in texts]}

    build(tmp_path / "t", lambda: ["春 a", "é"], Wide())
    index = json.loads((tmp_path / "t" / "index.json").read_text())
    assert (index["kind"], index["dtype"]) == ("tokens", "uint32")
    shards = TokenShards(tmp_path / "t", Wide())
    assert shards.read(0, 6).tolist() == [26149, 32, 97, 69999, 233, 69999]
    assert token_shards.id_type(tokenizer()) == "uint16"


def test_another_tokenizer_is_refused(tmp_path):
    build(tmp_path / "t", lambda: TEXTS, tokenizer())
    other = train_tokenizer([*TEXTS, "xyz xyz"], 290, min_frequency=1)
    with pytest.raises(UserError, match="was made with another tokenizer") as error:
        TokenShards(tmp_path / "t", other)
    assert error.value.field == "data.text"


def test_damage_is_said(tmp_path):
    build(tmp_path / "t", lambda: TEXTS, tokenizer())
    file = tmp_path / "t" / "00000.bin"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"is damaged: 00000\.bin has"):
        TokenShards(tmp_path / "t", tokenizer())
    (tmp_path / "t" / "index.json").write_text("{}")
    assert not is_token_folder(tmp_path / "t")
    with pytest.raises(UserError, match="has no index"):
        TokenShards(tmp_path / "t", tokenizer())


# Long texts


@given(st.lists(st.text("春a \n", min_size=1, max_size=40), max_size=5), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_pieces_lose_nothing(texts, limit):
    found = list(pieces(texts, limit))
    assert "".join(text for text, _ in found) == "".join(texts)
    assert [last for _, last in found].count(True) == len(texts)
    assert all(0 < len(text) <= limit for text, _ in found)


def test_a_long_text_is_cut_before_white_space():
    text = "eight legs " * 100_000
    found = list(pieces([text]))
    assert len(found) == 5
    assert found[1][0].startswith(" ")
    whole = tokenizer()(text[:220_000], add_special_tokens=False)["input_ids"]
    cut = [*pieces([text[:220_000]], 100_000)]
    assert len(cut) == 3
    assert encode(tokenizer(), cut).ids.tolist() == [*whole, tokenizer().eos_token_id]


def test_portions_hold_a_bounded_number_of_characters():
    sizes = [sum(len(t) for t, _ in p) for p in portions(pieces(["春" * 5_000_000]), 1 << 18)]
    assert sum(sizes) == 5_000_000
    assert max(sizes) <= PIECE_CHARS
    many = list(portions(pieces(TEXTS * 3), 30))
    assert list(chain.from_iterable(many)) == [(text, True) for text in TEXTS * 3]
