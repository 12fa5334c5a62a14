from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llmrec_pl.evaluation import significance
from llmrec_pl.evaluation.significance import (
    bootstrap_interval,
    detectable_difference,
    effect_size,
    holm,
    mcnemar_p,
    randomisation_p,
)

VALUES = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40).map(np.asarray)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def recall_differences(n=400, seed=0, shift=0.02):
    """Skewed and full of zeros, as differences of recall are."""
    random = np.random.default_rng(seed)
    values = random.choice([0, 0, 0, 0.5, -0.5, 1 / 3, -0.25, 1], size=n)
    return values - values.mean() + shift


def exact_p(differences):
    """All 2^n sign patterns, in a loop."""
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return np.mean([s >= abs(sum(differences)) - 1e-9 for s in sums])


# Randomisation.


def test_randomisation_p_is_that_of_all_sign_patterns():
    for seed in range(4):
        d = np.random.default_rng(seed).normal(0.4, 1, size=9)
        p, draws = exact_p(d), 40_000
        error = 4 * math.sqrt(p * (1 - p) / draws) + 1 / draws
        assert randomisation_p(d, draws) == pytest.approx(p, abs=error)


def test_randomisation_p_is_scipys_on_recall_differences():
    for shift in (0.005, 0.02, 0.04, 0.06):
        d = recall_differences(shift=shift)
        draws = 20_000
        reference = stats.permutation_test(
            (d, np.zeros_like(d)),
            lambda a, b, axis: (a - b).mean(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=draws,
            batch=500,
            rng=np.random.default_rng(1),
        ).pvalue
        # Four standard deviations; scipy doubles one tail, with twice the variance.
        error = 4 * math.sqrt(3 * reference / draws)
        assert randomisation_p(d, draws) == pytest.approx(reference, abs=error)


def test_ties_with_the_sum_seen_count_in_spite_of_rounding():
    """Ten equal differences: only two of 1,024 patterns reach the sum, in whatever order summed."""
    d = np.full(10, 0.1)
    assert randomisation_p(d, 100_000) == pytest.approx(2 / 1024, abs=6e-4)
    assert randomisation_p(np.array([0.1, 0.2, 0.3, -0.6]), 1000) == 1.0


@given(VALUES, st.integers(1, 50), st.integers(0, 5))
def test_randomisation_p_has_its_bounds_and_symmetries(d, draws, seed):
    p = randomisation_p(d, draws, seed)
    assert 1 / (1 + draws) <= p <= 1
    assert randomisation_p(-d, draws, seed) == p
    assert randomisation_p(4 * d, draws, seed) == p
    assert randomisation_p(np.concatenate([d, np.zeros(7)]), draws, seed) == p


def test_a_clear_difference_has_the_smallest_p_and_none_has_one():
    assert randomisation_p(np.ones(200), 999) == 1 / 1000
    assert randomisation_p(np.zeros(200), 999) == 1.0


def test_blocks_change_neither_p_nor_interval(monkeypatch):
    d = recall_differences(n=130)
    whole = randomisation_p(d, 3000, 7), bootstrap_interval(d, 3000, 7)
    for block in (1, 1000, 130 * 3001):
        monkeypatch.setattr(significance, "BLOCK", block)
        assert randomisation_p(d, 3000, 7) == whole[0]
        assert bootstrap_interval(d, 3000, 7) == pytest.approx(whole[1], abs=1e-15)


def test_seeds_draw_differently():
    d = recall_differences()
    assert len({randomisation_p(d, 2000, seed) for seed in range(5)}) > 1
    assert len({bootstrap_interval(d, 500, seed) for seed in range(5)}) == 5


@pytest.mark.slow
def test_memory_does_not_grow_with_the_draws():
    import tracemalloc

    d = np.random.default_rng(0).normal(size=50_000)
    for function in (randomisation_p, bootstrap_interval):
        tracemalloc.start()
        function(d, 1000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6 * 8 * significance.BLOCK < 8 * 1000 * 50_000


def test_false_alarms_are_as_rare_as_the_level_says():
    """Users whose two values are drawn alike: p <= 0.05 in about 5 of 100 tables."""
    random = np.random.default_rng(2026)
    runs, alarms = 1000, 0
    for run in range(runs):
        first, second = random.choice([0, 0, 0, 0.5, 1], size=(2, 60))
        alarms += randomisation_p(first - second, 199, run) <= 0.05
    # Four standard deviations of a binomial; ties make the test slightly shy.
    assert 0.05 - 4 * math.sqrt(0.05 * 0.95 / runs) < alarms / runs
    assert alarms / runs < 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)


# Interval.


def test_interval_is_scipys_bca():
    for seed, shift in ((0, 0.02), (1, 0.3), (2, -0.1)):
        d = recall_differences(n=60, seed=seed, shift=shift) ** 3
        reference = stats.bootstrap(
            (d,), np.mean, n_resamples=40_000, method="BCa", batch=500, rng=np.random.default_rng(5)
        ).confidence_interval
        error = 0.03 * (reference.high - reference.low)
        found = bootstrap_interval(d, 40_000)
        assert found.low == pytest.approx(reference.low, abs=error)
        assert found.high == pytest.approx(reference.high, abs=error)


def test_interval_is_scipys_where_the_bias_is_large():
    """Eight long-tailed values: half the correction for bias would move an end visibly."""
    d = np.exp(2 * np.random.default_rng(5).normal(size=8))
    reference = stats.bootstrap(
        (d,), np.mean, n_resamples=100_000, method="BCa", batch=5000, rng=np.random.default_rng(5)
    ).confidence_interval
    error = 0.02 * (reference.high - reference.low)
    found = bootstrap_interval(d, 100_000)
    assert found == pytest.approx((reference.low, reference.high), abs=error)


def test_interval_leans_towards_the_long_tail():
    """On skewed values it is not symmetric about the mean, as a normal interval would be."""
    d = np.random.default_rng(0).exponential(size=80)
    low, high = bootstrap_interval(d)
    assert high - d.mean() > 1.1 * (d.mean() - low)


def test_interval_covers_the_true_mean():
    random = np.random.default_rng(3)
    runs, covered = 600, 0
    for run in range(runs):
        d = random.exponential(size=80) - random.exponential(0.5, size=80)
        low, high = bootstrap_interval(d, 600, run)
        covered += low <= 0.5 <= high
    assert covered / runs == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / runs))


@given(VALUES, st.integers(0, 3))
def test_interval_lies_within_the_values(d, seed):
    low, high = bootstrap_interval(d, 50, seed)
    assert d.min() - 1e-9 <= low <= high <= d.max() + 1e-9


@given(VALUES, st.floats(0.01, 100), st.floats(-5, 5))
def test_interval_moves_and_scales_with_the_values(d, scale, shift):
    d = np.round(d, 3)
    low, high = bootstrap_interval(d, 100)
    moved = bootstrap_interval(d * scale + shift, 100)
    assert moved == pytest.approx((low * scale + shift, high * scale + shift), abs=1e-6 * scale)


def test_equal_differences_have_an_interval_of_one_point():
    assert bootstrap_interval(np.full(50, 0.1)) == pytest.approx((0.1, 0.1), abs=1e-15)
    assert bootstrap_interval(np.array([0.25])) == (0.25, 0.25)


def test_a_wider_level_has_a_wider_interval():
    d = recall_differences()
    narrow, wide = bootstrap_interval(d, level=0.8), bootstrap_interval(d, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


# McNemar.


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_binomial_sum(pairs):
    first, second = np.asarray(pairs).T
    b = sum(x and not y for x, y in pairs)
    c = sum(y and not x for x, y in pairs)
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1)) / 2 ** (b + c)
    assert mcnemar_p(first, second) == pytest.approx(min(1, 2 * tail), rel=1e-9)
    assert mcnemar_p(second, first) == pytest.approx(mcnemar_p(first, second), rel=1e-9)


def test_how_many_hits_must_be_shared_for_98_against_86_of_1845():
    def p(shared):
        first, second = np.zeros(1845, bool), np.zeros(1845, bool)
        first[:98] = True
        second[98 - shared : 98 - shared + 86] = True
        return mcnemar_p(first, second)

    assert p(0) > 0.3
    assert p(75) > 0.05 > p(78)


# Holm.


@given(P_VALUES)
def test_holm_is_the_step_down_loop(p_values):
    m, order = len(p_values), sorted(range(len(p_values)), key=lambda i: p_values[i])
    expected, running = [0.0] * m, 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (m - rank) * p_values[i]))
        expected[i] = running
    assert holm(p_values) == pytest.approx(expected, rel=1e-12)


@given(P_VALUES)
def test_holm_lies_between_raw_and_bonferroni(p_values):
    for raw, adjusted in zip(p_values, holm(p_values), strict=True):
        assert raw <= adjusted <= min(1, len(p_values) * raw) + 1e-12


def test_holm_of_a_known_table():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


# Effect and power.


def test_effect_size_is_t_over_root_n():
    d = recall_differences()
    t = stats.ttest_rel(d, np.zeros_like(d)).statistic
    assert effect_size(d) == pytest.approx(t / math.sqrt(len(d)), rel=1e-12)
    assert effect_size(-d) == pytest.approx(-effect_size(d), rel=1e-12)


def test_effect_size_without_spread():
    assert effect_size(np.zeros(9)) == 0
    assert math.isnan(effect_size(np.full(9, 0.1)))
    assert math.isnan(effect_size(np.array([0.5])))


def test_the_detectable_difference_is_found_four_times_of_five():
    """Simulated power of the test on users whose true mean difference is that size."""
    random = np.random.default_rng(4)
    n, runs = 200, 600
    size = detectable_difference(random.normal(size=1_000_000)) * math.sqrt(1_000_000 / n)
    found = sum(
        randomisation_p(random.normal(size, 1, size=n), 199, run) <= 0.05 for run in range(runs)
    )
    assert found / runs == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / runs))


def test_more_users_detect_less():
    d = recall_differences()
    assert detectable_difference(np.tile(d, 4)) == pytest.approx(
        detectable_difference(d) / 2, rel=2e-3
    )
    assert detectable_difference(np.zeros(5)) == 0
    assert detectable_difference(np.array([1.0])) == 0
    assert detectable_difference(d, power=0.9) > detectable_difference(d)
