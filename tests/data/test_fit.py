"""Fitting keeps the header, keeps some completion and never changes the order of tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.data.fit import Fitted, FittedGroup, fit, fit_group

PROMPT = [1, 2, 3, 4, 5, 8, 9]  # 8, 9: the header
ANSWER = [11, 12, 13, 0]
ONES = [1, 1, 1, 1]


def run(**limits):
    return fit(PROMPT, ANSWER, ONES, header_len=2, **limits)


def test_nothing_to_cut():
    for limits in ({"max_length": None}, {"max_length": 11}, {"max_length": 20}):
        assert run(**limits) == Fitted(PROMPT, ANSWER, ONES, False, False)


def test_keep_start_loses_the_end_of_the_completion():
    assert run(max_length=9) == Fitted(PROMPT, [11, 12], [1, 1], False, True)


def test_keep_start_cuts_the_prompt_before_the_header_when_it_fills_the_row():
    assert run(max_length=5) == Fitted([1, 2, 8, 9], [11], [1], True, True)


def test_keep_end_cuts_the_start_of_the_prompt_first():
    fitted = run(max_length=9, truncation="keep_end")
    assert fitted == Fitted([3, 4, 5, 8, 9], ANSWER, ONES, True, False)


def test_keep_end_cuts_the_completion_when_only_the_header_is_left():
    assert run(max_length=4, truncation="keep_end") == Fitted([8, 9], [11, 12], [1, 1], True, True)


@pytest.mark.parametrize(
    ("truncation", "kept"), [("keep_start", [1, 2, 8, 9]), ("keep_end", [4, 5, 8, 9])]
)
def test_max_prompt_length(truncation, kept):
    fitted = run(max_length=100, max_prompt_length=4, truncation=truncation)
    assert fitted == Fitted(kept, ANSWER, ONES, True, False)


@pytest.mark.parametrize("truncation", ["keep_start", "keep_end"])
def test_too_long(truncation):
    assert run(max_length=2, truncation=truncation) == "too_long"
    assert run(max_length=3, truncation=truncation) == Fitted([8, 9], [11], [1], True, True)
    assert run(max_length=9, max_prompt_length=1, truncation=truncation) == "too_long"


def test_mask_without_ones_after_the_cut_is_too_long():
    assert fit([1], [5, 6, 7], [0, 0, 1], max_length=3) == "too_long"


def test_candidates_share_the_prompt():
    group = fit_group(PROMPT, [[11, 0], ANSWER], max_length=9, truncation="keep_end", header_len=2)
    ones = [[1, 1], ONES]
    assert group == FittedGroup([3, 4, 5, 8, 9], [[11, 0], ANSWER], ones, True, 0)
    cut = fit_group(PROMPT, [[11, 0], ANSWER], max_length=10, header_len=2)
    assert (cut.prompt_ids, cut.completions) == (PROMPT, [[11, 0], [11, 12, 13]])
    assert cut.completion_truncated == 1


def test_unknown_truncation():
    with pytest.raises(ValueError, match="keep_start nor keep_end"):
        run(max_length=5, truncation="left")


@given(
    prompt=st.integers(1, 12),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    max_length=st.integers(1, 25),
    max_prompt=st.none() | st.integers(1, 12),
    truncation=st.sampled_from(["keep_start", "keep_end"]),
    header=st.integers(0, 4),
)
def test_invariants(prompt, lengths, max_length, max_prompt, truncation, header):
    header = min(header, prompt)
    ids = list(range(100, 100 + prompt))
    completions = [list(range(200, 200 + n)) for n in lengths]
    group = fit_group(
        ids,
        completions,
        max_length=max_length,
        max_prompt_length=max_prompt,
        truncation=truncation,
        header_len=header,
    )
    smallest = max(header, 1)
    if isinstance(group, str):
        assert max_length < smallest + 1 or (max_prompt is not None and max_prompt < smallest)
        return
    assert sorted(group.prompt_ids) == group.prompt_ids
    assert group.prompt_ids
    assert set(group.prompt_ids) <= set(ids)
    assert group.prompt_ids[len(group.prompt_ids) - header :] == ids[len(ids) - header :]
    assert max_prompt is None or len(group.prompt_ids) <= max_prompt
    for full, kept, mask in zip(completions, group.completions, group.masks, strict=True):
        assert kept
        assert full[: len(kept)] == kept
        assert len(mask) == len(kept)
        assert len(group.prompt_ids) + len(kept) <= max_length
        # Nothing is cut without need.
        assert kept == full or len(group.prompt_ids) + len(kept) == max_length
