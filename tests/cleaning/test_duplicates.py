from __future__ import annotations

import random

import numpy as np
import pytest

from align.cleaning import minhash
from align.cleaning.counting import Counting
from align.cleaning.duplicates import find_duplicates
from align.cleaning.repetition import line_keys
from align.cleaning.settings import Settings
from align.cleaning.store import LINE, ROW, Stored, Writer
from align.cleaning.tokens import Batch

ZH = "这家酒店的位置非常好，房间也很干净，服务员的态度让人觉得像在自己家里一样，下次来还会住。"
EN = "The room was clean and the staff were kind and we had a good breakfast every single morning."


def jaccard(one: str, other: str, n: int) -> float:
    a, b = ({t[i : i + n] for i in range(len(t) - n + 1)} for t in (one, other))
    return len(a & b) / len(a | b)


def test_signatures_estimate_the_jaccard_similarity():
    rng = random.Random(1)
    letters = [chr(0x4E00 + i) for i in range(2000)]
    errors = []
    for share in (0.05, 0.1, 0.2, 0.4):
        for _ in range(40):
            text = "".join(rng.choices(letters, k=400))
            cut = round(len(text) * share)
            other = text[:-cut] + "".join(rng.choices(letters, k=cut))
            batch = Batch([text, other])
            signature = minhash.signatures(batch, batch.keys())
            errors.append(minhash.similarity(signature[:1], signature[1:])[0]
                          - jaccard(text, other, 5))  # fmt: skip
    # 160 estimates with a standard error of at most 0.044 each.
    assert abs(np.mean(errors)) < 0.012
    assert np.std(errors) < 0.05


def test_shingles_are_three_words_or_five_characters():
    batch = Batch(["one two three four", "一二三四五六", "ab", "", "一 two"])
    hashes, firsts = minhash.shingles(batch, batch.keys())
    assert np.diff([*firsts, len(hashes)]).tolist() == [2, 2, 1, 1, 1]


def test_bands_lie_around_the_threshold():
    for threshold in (0.5, 0.7, 0.8, 0.9):
        bands, rows = minhash.band_shape(threshold)
        assert bands * rows <= minhash.PERMUTATIONS
        assert 1 - (1 - (threshold + 0.1) ** rows) ** bands > 0.85
        assert 1 - (1 - (threshold - 0.25) ** rows) ** bands < 0.5


def store(folder, units, settings) -> list[Stored]:
    """Units of (text, score) pairs, as a run leaves them."""
    found = []
    for number, documents in enumerate(units):
        writer = Writer(folder / f"unit-{number}")
        texts = [text for text, _ in documents]
        if texts:
            batch, rows = Batch(texts), np.zeros(len(texts), ROW)
            rows["chars"], rows["key"] = batch.sizes, batch.keys()
            rows["score"] = [score for _, score in documents]
            signatures = minhash.signatures(batch, rows["key"])
            keys, doc, _, _ = line_keys(batch, settings.min_line)
            lines = np.zeros(len(keys), LINE)
            lines["key"], lines["row"] = keys, doc
            writer.add(texts, rows, signatures=signatures, lines=lines,
                       bands=minhash.bands(signatures, settings.near_duplicates))  # fmt: skip
        writer.close(Counting())
        found.append(Stored(folder / f"unit-{number}"))
    return found


@pytest.mark.parametrize("text", [ZH, EN])
def test_copies_across_units(tmp_path, text):
    changed = text.replace("会住", "会来").replace("morning", "evening")
    longer = changed + "！！"
    other = (
        "完全不同的一段话，说的是另外一件事情。" if text is ZH else "Something else was said here."
    )
    units = [[(text, 0), (other, 0)], [], [(text.upper() + " ", 0), (longer, 0)]]
    settings = Settings(near_duplicates=0.7)
    verdicts = find_duplicates(store(tmp_path, units, settings), settings)
    # 0 original, 1 other, 2 the same in capitals, 3 the longest of the near copies.
    assert verdicts.first.tolist() == [0, 2, 2, 4]
    assert verdicts.copy_of.tolist() == [3, 1, 3, 3]
    assert verdicts.near.tolist() == [False, False, True, False]


def test_the_better_copy_stays(tmp_path):
    settings = Settings(near_duplicates=0.7)
    units = [[(ZH, 0.2), (ZH + "。", 0.1)], [(ZH, 0.9)]]
    verdicts = find_duplicates(store(tmp_path, units, settings), settings)
    assert verdicts.copy_of.tolist() == [2, 2, 2]


def test_only_exact_copies_when_asked(tmp_path):
    units = [[(ZH, 0), (ZH + "好", 0), (ZH, 0)]]
    stored = store(tmp_path, units, Settings())
    exact = Settings(near_duplicates=0)
    assert find_duplicates(stored, exact).copy_of.tolist() == [0, 1, 0]
    none = Settings(near_duplicates=0, exact_duplicates=False)
    assert find_duplicates(stored, none).copy_of.tolist() == [0, 1, 2]


def test_a_chain_of_near_copies_is_one_cluster(tmp_path):
    rng = random.Random(0)
    words = [f"w{i}" for i in range(5000)]
    chain = [rng.choices(words, k=200)]
    for _ in range(6):
        following = list(chain[-1])
        for place in rng.sample(range(200), 4):
            following[place] = rng.choice(words)
        chain.append(following)
    texts = [(" ".join(c), 0) for c in chain]
    settings = Settings(near_duplicates=0.75)
    verdicts = find_duplicates(store(tmp_path, [texts], settings), settings)
    assert len(set(verdicts.copy_of.tolist())) == 1


def test_many_copies_of_one_text(tmp_path):
    texts = [(f"{EN} {i}", 0) for i in range(60)]
    settings = Settings(near_duplicates=0.7)
    verdicts = find_duplicates(store(tmp_path, [texts[:25], texts[25:]], settings), settings)
    assert len(set(verdicts.copy_of.tolist())) == 1


def test_random_texts_are_no_copies(tmp_path):
    rng = random.Random(3)
    letters = [chr(0x4E00 + i) for i in range(3000)]
    texts = [("".join(rng.choices(letters, k=80)), 0) for _ in range(500)]
    verdicts = find_duplicates(store(tmp_path, [texts], Settings()), Settings())
    assert verdicts.copy_of.tolist() == list(range(500))


def test_repeated_lines_stay_in_the_first_document_that_stays(tmp_path):
    notice = "版权所有，未经许可不得转载。"
    units = [
        [
            (f"第一篇的内容在这里写着\n{notice}", 0),
            (f"另一篇的内容在这里写着\n{notice}\n{notice}", 0),
        ],
        [(f"第三篇\n{notice}", 0), (f"第一篇的内容在这里写着\n{notice}", 0)],
    ]
    settings = Settings(near_duplicates=0.9, repeated_lines=3)
    verdicts = find_duplicates(store(tmp_path, units, settings), settings)
    assert len(verdicts.lines) == 1
    assert int(verdicts.lines[0, 1]) == 0
    few = Settings(near_duplicates=0.9, repeated_lines=4)
    assert len(find_duplicates(store(tmp_path, units, few), few).lines) == 0
