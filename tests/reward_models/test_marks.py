"""The compact set of hashes is a dict of what came first."""

from __future__ import annotations

import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from reward_models.marks import FEWEST, Marks


@settings(max_examples=100)
@given(
    st.integers(1, 8).flatmap(
        lambda bits: st.tuples(
            st.just(bits),
            st.lists(st.tuples(st.integers(0, 40), st.integers(1, 2**bits - 1)), max_size=80),
        )
    )
)
def test_the_first_code_of_a_hash_stays(given):
    bits, pairs = given
    marks, wanted = Marks(bits), {}
    for mark, code in pairs:
        # Spread, near each other at the array's end, and below 0, as Python's own hashes may be.
        for hashed in (mark * 0x9E3779B97F4A7C15, (1 << 20) - 1 + mark * FEWEST, -mark - 1):
            hashed &= (1 << 64 - bits) - 1
            assert marks.setdefault(hashed, code) == wanted.get(hashed, 0)
            wanted.setdefault(hashed, code)
    assert len(marks) == len(wanted)


def test_it_grows_and_stays_small():
    marks = Marks()
    n = 100_000
    assert not any(marks.setdefault(hash(f"a{k}")) for k in range(n))
    assert all(marks.setdefault(hash(f"a{k}")) for k in range(n))
    assert not any(marks.setdefault(hash(f"b{k}")) for k in range(n))
    assert len(marks) == 2 * n
    assert sys.getsizeof(marks._slots) <= 32 * 2 * n
