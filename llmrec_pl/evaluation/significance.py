"""Tests of a difference between two models over the same users; pure functions.

The unit is the user: each has one value a model (a mean over its seeds), and only the paired
differences count. The functions see neither files nor names.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Values = NDArray[np.float64]

BLOCK = 2**19
"""Random numbers held at once, whatever the number of draws: few enough for the cache."""
_ROUNDING = 1e-12
"""Sums in another order differ by rounding; a draw that equals the sum seen must count as such."""


class Interval(NamedTuple):
    """A range of plausible mean differences."""

    low: float
    high: float


def randomisation_p(differences: Values, draws: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p of the paired randomisation (sign-flip) test of mean 0.

    Under the null hypothesis a user's two values could be swapped, so each difference has either
    sign with probability 1/2. p = (1 + draws at least as far from 0) / (1 + draws): never 0, and
    valid at any number of draws.

    Source: Smucker, Allan and Carterette, CIKM 2007; the + 1 is that of Phipson and Smyth, 2010.
    Deviations: none.

    Args:
        differences: one value a user, ``[n]``, n >= 1.
        draws: sign patterns drawn.
        seed: of the draws; equal seeds give equal p, whatever `BLOCK` is.
    """
    moving = differences[differences != 0]
    if not len(moving):
        return 1.0
    seen = abs(moving.sum())
    limit = seen - _ROUNDING * np.abs(moving).sum()
    words = -(-len(moving) // 64)
    random = np.random.default_rng(seed)
    hits = 0
    for size in _blocks(draws, 64 * words):
        # One bit a sign; whole words a draw keep the stream independent of the blocks.
        drawn = random.integers(2**64, size=(size, words), dtype=np.uint64).astype("<u8")
        flips = np.unpackbits(drawn.view(np.uint8), axis=1, count=len(moving))
        sums = moving.sum() - 2 * (flips.astype(np.float64) @ moving)
        hits += int((np.abs(sums) >= limit).sum())
    return (1 + hits) / (1 + draws)


def bootstrap_interval(
    differences: Values, draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Return the BCa bootstrap interval of the mean difference.

    Bias-corrected and accelerated: per-user differences of ranking metrics are skewed, which
    a percentile interval ignores.

    Source: Efron, JASA 1987; the acceleration is the jackknife's, in closed form for a mean.
    Deviations: none.

    Args:
        differences: one value a user, ``[n]``, n >= 1.
        draws: resamples of the users.
        seed: of the draws.
        level: coverage aimed at.
    """
    n, mean = len(differences), float(differences.mean())
    centred = differences - mean
    spread = float((centred**2).sum())
    if n == 1 or spread <= (_ROUNDING * np.abs(differences).max()) ** 2 * n:
        return Interval(mean, mean)
    random = np.random.default_rng(seed)
    means = np.concatenate(
        [differences[random.integers(n, size=(size, n))].mean(axis=1) for size in _blocks(draws, n)]
    )
    tie = _ROUNDING * np.abs(differences).max()
    below = ((means < mean - tie).sum() + (means <= mean + tie).sum()) / (2 * draws)
    bias = stats.norm.ppf(np.clip(below, 0.5 / draws, 1 - 0.5 / draws))
    acceleration = float((centred**3).sum()) / (6 * spread**1.5)
    tails = bias + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(means, stats.norm.cdf(bias + tails / (1 - acceleration * tails)))
    return Interval(float(low), float(high))


def mcnemar_p(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return the two-sided p of the exact McNemar test on yes-or-no values of the same users.

    Only users with a hit of one model and none of the other count; under the null hypothesis
    each of them falls on either side like a coin.

    Source: McNemar, Psychometrika 1947, with the binomial in place of the chi-squared.
    Deviations: none.

    Args:
        first: hits of one model, ``[n]``.
        second: hits of the other, ``[n]``.
    """
    only_first = int((first & ~second).sum())
    discordant = int((first != second).sum())
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values that hold over the whole family, in the order given.

    Source: Holm, Scandinavian Journal of Statistics 1979.
    Deviations: none.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    factors = len(p) - np.arange(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return [float(value) for value in adjusted]


def effect_size(differences: Values) -> float:
    """Return Cohen's d of paired values (d_z): mean over standard deviation of the differences.

    Source: Cohen, 1988, Sec. 2.3.5.
    Deviations: none; NaN where all users differ by one same amount other than 0.
    """
    mean, deviation = float(differences.mean()), _deviation(differences)
    if deviation > _ROUNDING * np.abs(differences).max(initial=0.0):
        return mean / deviation
    return 0.0 if mean == 0 else math.nan


def detectable_difference(differences: Values, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest true mean difference that a two-sided test finds with `power`.

    (z_{1 - alpha/2} + z_{power}) * deviation / sqrt(n), with the spread seen: the normal
    approximation, for one comparison.

    Source: Cohen, 1988; Sakai, SIGIR 2016, for its use on rankings.
    Deviations: none.

    Args:
        differences: one value a user, ``[n]``.
        alpha: level of the test.
        power: probability of finding it.
    """
    quantiles = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)
    return float(quantiles * _deviation(differences) / math.sqrt(len(differences)))


def _deviation(values: Values) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _blocks(draws: int, width: int) -> Iterator[int]:
    """Yield sizes that sum to `draws`, so that size * width stays near `BLOCK`."""
    size = max(1, BLOCK // width)
    for start in range(0, draws, size):
        yield min(size, draws - start)
