"""What the queue promises, for any number of people, votes, skips and restarts."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import feedback_rows as rows

from align.feedback.queue import Queue, build_items, make_item, to_json
from align.feedback.records import Completion

STEPS = st.lists(
    st.tuples(st.sampled_from(["ann", "bob", "陈"]), st.booleans()), min_size=1, max_size=120
)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def walk(queue, steps):
    """Let people vote (True) or skip; returns the log as (annotator, shown, voted)."""
    log = []
    for annotator, votes in steps:
        shown = queue.next(annotator)
        if shown is None:
            continue
        assert queue.next(annotator) == shown  # a reload shows the same
        assert queue.settle(annotator, shown.item.id, voted=votes) == shown
        assert queue.settle(annotator, shown.item.id, voted=votes) is None  # not twice
        log.append((annotator, shown, votes))
    return log


def lines(log):
    return [
        {"annotator": a, "item": s.item.id, "vote": "tie" if voted else None} for a, s, voted in log
    ]


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, overlap=st.sampled_from([0.0, 0.2, 0.5, 1.0]), seed=st.integers(0, 5))
def test_nobody_sees_an_item_twice_and_single_items_have_one_vote(steps, overlap, seed):
    queue = Queue(rows.items(12, overlap=overlap, seed=seed), overlap=overlap, seed=seed)
    seen, votes = defaultdict(set), defaultdict(list)
    for annotator, shown, voted in walk(queue, steps):
        assert shown.item.id not in seen[annotator]
        seen[annotator].add(shown.item.id)
        if voted:
            votes[shown.item.id].append(annotator)
    for item_id, people in votes.items():
        assert len(set(people)) == len(people)
        if not queue.items[item_id].shared:
            assert len(people) == 1


@settings(max_examples=40, deadline=None)
@given(steps=STEPS, overlap=st.sampled_from([0.0, 0.3, 1.0]), cut=st.integers(0, 120))
def test_a_restart_changes_nothing(steps, overlap, cut):
    def fresh():
        return Queue(rows.items(9, overlap=overlap, seed=3), overlap=overlap, seed=3)

    straight = walk(fresh(), steps)
    before = walk(fresh(), steps[:cut])
    again = fresh()
    assert again.restore(lines(before)) == len(before)
    after = walk(again, steps[cut:])
    said = [(a, s.item.id, s.swapped, voted) for a, s, voted in straight]
    assert [(a, s.item.id, s.swapped, v) for a, s, v in before + after] == said


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_any_beginning_is_balanced_over_pairs_and_the_overlap_is_kept(overlap):
    queue = Queue(rows.items(40, overlap=overlap, seed=1), overlap=overlap, seed=1)
    pairs, shared = Counter(), 0
    for done in range(1, 61):
        shown = queue.next("ann")
        queue.settle("ann", shown.item.id, voted=True)
        pairs[shown.item.pair] += 1
        shared += shown.item.shared
        assert abs(shared - overlap * done) <= 1
        if not overlap:
            assert max(pairs.values()) - min(pairs.values() if len(pairs) == 3 else [0]) <= 1
    assert set(pairs) == set(combinations(rows.MODELS, 2))
    assert max(pairs.values()) - min(pairs.values()) <= 6
    # Of each pair's 40 items the share, to within one.
    for pair in combinations(rows.MODELS, 2):
        found = sum(i.shared for i in queue.items.values() if i.pair == pair)
        assert abs(found - 40 * overlap) <= 1


def test_two_people_overlap_as_much_as_asked():
    queue = Queue(rows.items(100, overlap=0.2, seed=1), overlap=0.2, seed=1)
    log = walk(queue, [(name, True) for _ in range(50) for name in ("ann", "bob")])
    seen = defaultdict(set)
    for annotator, shown, _ in log:
        seen[annotator].add(shown.item.id)
    assert len(seen["ann"] & seen["bob"]) == 10  # a fifth of fifty


def test_sides_fall_like_a_coin_and_do_not_depend_on_the_order():
    items = rows.items(400, seed=0)
    queue = Queue(items, seed=0)
    sides = [queue.show("ann", item).swapped for item in items]
    assert abs(sum(sides) / len(sides) - 0.5) < 0.05  # 1,200 throws: 3.5 standard deviations
    backwards = Queue(items, seed=0)
    assert [backwards.show("ann", i).swapped for i in reversed(items)] == sides[::-1]
    other = Queue(items, seed=1)
    assert sides != [other.show("ann", i).swapped for i in items]
    assert sides != [queue.show("bob", i).swapped for i in items]


def test_what_is_left_lying_goes_to_others_after_the_lease():
    clock = Clock()
    queue = Queue(rows.items(1, ("a", "b")), lease_s=60, clock=clock)
    shown = queue.next("ann")
    assert queue.next("bob") is None
    assert queue.progress("bob") == (0, 0)
    clock.now = 61
    assert queue.next("bob").item == shown.item
    queue.settle("bob", shown.item.id, voted=False)
    # A skip leaves it to others, a vote does not; who was late may still say what they think.
    assert queue.next("cat").item == shown.item
    assert queue.settle("cat", shown.item.id, voted=True) is not None
    assert queue.next("dan") is None
    assert queue.settle("ann", shown.item.id, voted=True) is not None
    assert queue.progress("ann") == (1, 1)


def test_left_out_are_items_with_nothing_to_compare():
    asked = rows.prompts(4)
    given = {(p.prompt_id, m): f"{m}{i}" for i, p in enumerate(asked) for m in "ab"}
    given[asked[0].prompt_id, "a"] = given[asked[0].prompt_id, "b"]
    given[asked[1].prompt_id, "a"] = " \n"
    given[asked[2].prompt_id, "b"] = None
    items, dropped = build_items(asked, given, ["b", "a"])
    assert dropped == {"identical": 1, "empty": 1, "missing": 1}
    assert [i.prompt for i in items] == [asked[3].messages]


def test_an_item_is_the_same_whatever_the_order_and_names_no_model():
    prompt = rows.prompts(1)[0].messages
    one, other = Completion("zed", "甲"), Completion("ada", "乙")
    item = make_item(prompt, one, other)
    assert item == make_item(prompt, other, one)
    assert item.pair == ("ada", "zed")
    shown = Queue([item]).next("ann")
    assert shown.position == ("ba" if shown.completions[0].model == "zed" else "ab")
    told = str(to_json(shown))
    assert "zed" not in told
    assert "ada" not in told
