from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmrec_pl.evaluation.groups import ITEM_GROUPS, item_groups

COLD, TAIL, MID, HEAD = range(4)
POPULARITY = hnp.arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 30))


def test_hand_made_catalogue():
    # 90 interactions: the first 30 begin in the head, the next 30 in mid, the rest in the tail.
    popularity = np.array([5, 0, 30, 20, 10, 10, 10, 5, 0])
    expected = ["tail", "cold", "head", "mid", "mid", "tail", "tail", "tail", "cold"]
    assert [ITEM_GROUPS[code] for code in item_groups(popularity)] == expected


def test_one_item_with_everything_is_head():
    assert item_groups(np.array([0, 100, 0])).tolist() == [COLD, HEAD, COLD]


def test_without_any_interaction_all_items_are_cold():
    assert item_groups(np.zeros(4, dtype=np.int64)).tolist() == [COLD] * 4


def test_equal_popularity_is_split_in_thirds_by_id():
    assert item_groups(np.full(6, 7)).tolist() == [HEAD, HEAD, MID, MID, TAIL, TAIL]


@given(POPULARITY)
def test_groups_follow_popularity_then_id(popularity):
    codes = item_groups(popularity)
    np.testing.assert_array_equal(codes == COLD, popularity == 0)
    order = sorted(range(len(popularity)), key=lambda i: (-popularity[i], i))
    ordered = [int(codes[i]) for i in order]
    assert ordered == sorted(ordered, reverse=True)


@given(POPULARITY)
def test_groups_hold_a_third_of_the_interactions_up_to_one_item(popularity):
    codes = item_groups(popularity)
    total, largest = popularity.sum(), popularity.max()
    head = popularity[codes == HEAD].sum()
    upper = head + popularity[codes == MID].sum()
    assert total / 3 <= head < total / 3 + largest or total == 0
    assert 2 * total / 3 <= upper < 2 * total / 3 + largest or total == 0
