"""The queue: scores reach the request that asked, in any order of arrival."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import NumberEngine

from reward_models.server_batching import BadText, Batcher, NotFinite, QueueFull


def texts(*values):
    return [SimpleNamespace(completion=str(value)) for value in values]


def scores(job, seconds=60):
    return [scored.score for scored in job.future.result(seconds)]


@pytest.fixture
def engine():
    return NumberEngine()


@pytest.fixture
def closed(engine):
    """Makes batchers and closes them at the end."""
    made = []

    def make(**options):
        made.append(Batcher(engine, **options))
        return made[-1]

    yield make
    engine.gate.set()
    for batcher in made:
        batcher.close()


def test_a_batch_mixes_requests_and_a_request_is_spread_over_batches(engine, closed):
    batcher = closed(batch_size=2, max_wait=0.0)
    engine.gate.clear()
    first = batcher.submit(texts(0))
    assert engine.entered.wait(30)
    jobs = [batcher.submit(texts(*range(n, n + 5))) for n in (10, 20, 30)]
    engine.gate.set()
    assert scores(first) == [0]
    assert [scores(job) for job in jobs] == [
        [10, 11, 12, 13, 14], [20, 21, 22, 23, 24], [30, 31, 32, 33, 34],
    ]  # fmt: skip
    # At most 4 · batch_size texts in one pass: 8 and 7 of the 15 that waited.
    assert engine.batches == [1, 8, 7]


def test_a_lone_text_waits_for_others_but_not_for_long(engine, closed):
    batcher = closed(batch_size=3, max_wait=20.0)
    early = batcher.submit(texts(1))
    late = batcher.submit(texts(2, 3))  # with these the batch is full
    assert scores(early, 15) == [1]
    assert scores(late, 15) == [2, 3]
    assert engine.batches == [3]
    assert scores(closed(batch_size=64, max_wait=0.01).submit(texts(4))) == [4]


def test_the_queue_takes_a_request_whole_or_not_at_all(engine, closed):
    batcher = closed(batch_size=1, max_wait=0.0, max_queue=3)
    engine.gate.clear()
    batcher.submit(texts(1))
    assert engine.entered.wait(30)
    waiting = batcher.submit(texts(2, 3))
    with pytest.raises(QueueFull, match="2 texts are waiting") as caught:
        batcher.submit(texts(4, 5))
    assert caught.value.retry_after == 1
    last = batcher.submit(texts(6))
    assert batcher.depth == 3
    engine.gate.set()
    assert (scores(waiting), scores(last)) == ([2, 3], [6])
    assert engine.seen == [1, 2, 3, 6]


def test_what_nobody_waits_for_is_not_scored(engine, closed):
    batcher = closed(batch_size=1, max_wait=0.0)
    engine.gate.clear()
    batcher.submit(texts(1))
    assert engine.entered.wait(30)
    given_up, kept = batcher.submit(texts(2, 3)), batcher.submit(texts(4))
    assert given_up.future.cancel()
    engine.gate.set()
    assert scores(kept) == [4]
    assert engine.seen == [1, 4]


def test_a_bad_text_fails_its_request_alone(engine, closed):
    batcher = closed(batch_size=8, max_wait=0.05)
    good, bad, worse, broken = (
        batcher.submit(texts(*values))
        for values in ((1, 2), (3, "?", 4), (5, "nan"), (6, "!"))
    )  # fmt: skip
    with pytest.raises(BadText) as caught:
        bad.future.result(60)
    assert (caught.value.index, caught.value.reason) == (1, "the chat template refuses it")
    with pytest.raises(NotFinite) as caught:
        worse.future.result(60)
    assert caught.value.index == 1
    with pytest.raises(RuntimeError, match=r"^MemoryError: out of memory$"):
        broken.future.result(60)
    assert scores(good) == [1, 2]
    assert batcher.alive


def test_an_engine_that_loses_a_score_is_found_out(engine, closed):
    engine.score = lambda rows: [1.0] * (len(rows) - 1)
    with pytest.raises(RuntimeError, match="1 scores for 2 texts"):
        closed().submit(texts(1, 2)).future.result(60)


def test_closing_finishes_what_waits_and_takes_nothing_more(engine):
    batcher = Batcher(engine, batch_size=64, max_wait=30.0)
    jobs = [batcher.submit(texts(n)) for n in range(5)]
    batcher.close()  # does not wait for the batch to fill
    assert [scores(job, 0) for job in jobs] == [[0], [1], [2], [3], [4]]
    assert not batcher.alive
    with pytest.raises(RuntimeError, match="is stopping"):
        batcher.submit(texts(1))
    assert scores(batcher.submit([]), 0) == []


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=30),
    batch_size=st.integers(1, 9),
    threads=st.integers(1, 8),
)
def test_every_score_reaches_its_place(sizes, batch_size, threads):
    engine, total = NumberEngine(), sum(sizes)
    batcher = Batcher(engine, batch_size=batch_size, max_wait=0.001, max_queue=max(total, 1))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]

    def ask(start, size):
        return scores(batcher.submit(texts(*range(start, start + size))))

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(ask, starts, sizes))
    batcher.close()
    assert found == [
        [float(n) for n in range(start, start + size)]
        for start, size in zip(starts, sizes, strict=True)
    ]
    assert sorted(engine.seen) == list(range(total))
    assert sum(engine.batches) == total
    assert all(n <= 4 * batch_size for n in engine.batches)
