"""The spool keeps whole bodies and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.store.spool import Spool

SIZE = 4096


def reopened(folder):
    spool = Spool(folder, SIZE)
    found = dict(spool.pending())
    spool.close()
    return found


def test_a_body_is_found_again_by_the_next_process(tmp_path):
    spool = Spool(tmp_path, SIZE)
    spool.write(7, b"paid for")
    spool.close()
    assert reopened(tmp_path) == {7: b"paid for"}


def test_space_is_taken_when_the_spool_is_opened(tmp_path):
    Spool(tmp_path, SIZE).close()
    assert [f.stat().st_blocks * 512 >= SIZE for f in sorted(tmp_path.iterdir())] == [True, True]


@pytest.mark.parametrize("keep", range(1, 34))
def test_a_torn_last_frame_is_dropped_and_those_before_it_stay(tmp_path, keep):
    spool = Spool(tmp_path, SIZE)
    spool.write(1, b"first")
    end = spool._files[0].end
    spool.write(2, b"second body")
    spool.close()
    with (tmp_path / "spool.0.bin").open("r+b") as file:
        file.seek(end + keep)
        file.write(bytes(64))
    assert reopened(tmp_path) == {1: b"first"}


def test_old_frames_do_not_come_back_after_reuse(tmp_path):
    spool = Spool(tmp_path, SIZE)
    for attempt in (1, 2, 3):
        spool.write(attempt, b"x" * 10)
    for attempt in (1, 2, 3):
        spool.settled(attempt)
    spool.write(4, b"y" * 10)  # ends exactly where attempt 2's frame begins
    spool.close()
    assert reopened(tmp_path) == {4: b"y" * 10}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1500)), max_size=60))
def test_what_was_written_and_not_settled_is_what_is_found(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("spool")
    spool, model = Spool(folder, SIZE), {}
    for attempt, (settle, length) in enumerate(steps):
        if settle and model:
            oldest = next(iter(model))
            spool.settled(oldest)
            del model[oldest]
        else:
            model[attempt] = bytes([attempt % 256]) * length
            spool.write(attempt, model[attempt])
    spool.close()
    found = reopened(folder)
    # A settled body may still lie in a file that holds others; the store knows it is settled.
    assert {k: found.get(k) for k in model} == model
