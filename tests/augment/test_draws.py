from hypothesis import given, settings
from hypothesis import strategies as st

from augment.draws import keyed_numbers, keyed_order, keyed_seed


def test_keyed_numbers_are_what_they_were():
    """Held for ever: other numbers would be other prompts, paid again."""
    numbers = keyed_numbers("pool", 0, "u1")
    first = [next(numbers) for _ in range(5)]
    assert first == [
        1052590166805818879,
        17844340907054536966,
        5378092991934023800,
        4885918514457823414,
        5874510275201036021,
    ]
    assert keyed_seed("pool", 0, "u1") == 1669156465605185252
    assert keyed_order(list("abcdef"), "shown", 0, "u1", 0) == [0, 2, 1, 4, 3, 5]


@given(st.lists(st.text(max_size=5), unique=True, max_size=8), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_a_keyed_order_is_of_the_names_not_of_their_places(names, random):
    once = [names[i] for i in keyed_order(names, "x", 1)]
    random.shuffle(names)
    assert [names[i] for i in keyed_order(names, "x", 1)] == once
    assert sorted(once) == sorted(names)
