from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.votes import votes

DRAWS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(lambda p: p[0] != p[1]), max_size=8
)


@pytest.mark.parametrize(
    ("draws", "winner"),
    [
        ([], None),
        ([(1, 2)], (1, 2)),
        ([(1, 2), (3, 2), (3, 4)], (3, 2)),
        ([(1, 2), (3, 4)], (1, 2)),  # ties go to the earlier draw
        ([(1, 2), (2, 1)], (1, 2)),
        ([(1, 2), (2, 1), (2, 1)], (2, 1)),
        ([(1, 2), (1, 3), (4, 3), (4, 3), (1, 2), (3, 2)], (1, 2)),
    ],
)
def test_examples(draws, winner):
    assert votes(draws) == winner


@given(DRAWS)
@settings(max_examples=200)
def test_winner_is_the_most_frequent_and_the_two_differ(draws):
    winner = votes(draws)
    if not draws:
        assert winner is None
        return
    counts = Counter(most for most, _ in draws)
    if winner is None:  # nobody was named least but the favourite
        assert all(least == counts.most_common(1)[0][0] for _, least in draws)
        return
    positive, negative = winner
    assert positive != negative
    assert counts[positive] == max(counts.values())
    leasts = Counter(least for _, least in draws if least != positive)
    assert leasts[negative] == max(leasts.values())
    firsts = [most for most, _ in draws if counts[most] == counts[positive]]
    assert firsts[0] == positive


@given(DRAWS.filter(bool), st.permutations(range(5)))
@settings(max_examples=50)
def test_names_do_not_matter(draws, names):
    renamed = votes([(names[a], names[b]) for a, b in draws])
    winner = votes(draws)
    assert renamed == (None if winner is None else (names[winner[0]], names[winner[1]]))
