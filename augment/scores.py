"""Shares with intervals, and tests against chance and against the most frequent answer; pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_EXACT_UP_TO = 20_000
"""Users up to which the Poisson-binomial tail is summed; above it is the normal curve."""
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Share:
    """k of n with a 95 % Wilson interval; all None where n is 0."""

    k: int
    n: int
    share: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, k: int, n: int) -> Share:
        """Return the share of k in n."""
        if not n:
            return cls(k, n, None, None, None)
        from scipy.stats import binomtest

        found = binomtest(k, n).proportion_ci(0.95, "wilson")
        return cls(k, n, k / n, float(found.low), float(found.high))


def tail_above(hits: int, chances: Sequence[float]) -> float:
    """Return the probability of at least so many hits if each user's is one random pick.

    Chances differ between users, so hits are Poisson-binomial; the tail is summed exactly up to
    20,000 users, above that it is the normal curve with a continuity correction.

    Args:
        hits: those seen.
        chances: for each user the chance of a hit.
    """
    if hits <= 0:
        return 1.0
    p = np.asarray(chances, dtype=np.float64)
    if len(p) > _EXACT_UP_TO:
        from scipy.stats import norm

        spread = float(np.sqrt((p * (1 - p)).sum()))
        return float(norm.sf((hits - 0.5 - p.sum()) / spread)) if spread else float(hits <= p.sum())
    below = np.zeros(hits)  # the chance of 0 .. hits-1 hits so far
    below[0] = 1.0
    for chance in p:
        lost = below * chance
        below -= lost
        below[1:] += lost[:-1]
    return float(min(1.0, max(0.0, 1.0 - below.sum())))


def tail_below(hits: int, chances: Sequence[float]) -> float:
    """Return the probability of at most so many hits by random picks."""
    return tail_above(len(chances) - hits, [1.0 - chance for chance in chances])


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer held against the truth.

    Attributes:
        label: title or name of the item or user.
        answer: names that were answered; empty for unknown.
        truth: names that are right; any of them counts.
        said: the answer as it was given.
        meant: the truth as it stands in the table.
    """

    label: str
    answer: frozenset[str]
    truth: frozenset[str]
    said: str
    meant: str


def score_names(judged: Iterable[Judged]) -> dict[str, Any]:
    """Score answers that are right if they share a name with the truth.

    Returns:
        Counts; `of_all` and `of_answered` (shares that are right: no answer counts as wrong in
        the first); `majority`, the share that always saying the most frequent true name gets;
        the exact McNemar p-value of that difference; the most frequent confusions.
    """
    rows = [row for row in judged if row.truth]
    answered = [row for row in rows if row.answer]
    right = [bool(row.answer & row.truth) for row in rows]
    frequency = Counter(name for row in rows for name in row.truth)
    common = min(frequency, key=lambda n: (-frequency[n], n)) if rows else None
    usual = [common in row.truth for row in rows]
    mine = sum(r and not u for r, u in zip(right, usual, strict=True))
    theirs = sum(u and not r for r, u in zip(right, usual, strict=True))
    return {
        "truth_known": len(rows),
        "answered": asdict(Share.of(len(answered), len(rows))),
        "of_all": asdict(Share.of(sum(right), len(rows))),
        "of_answered": asdict(Share.of(sum(right), len(answered))),
        "majority": asdict(Share.of(sum(usual), len(rows))),
        "majority_answer": common,
        "p_against_majority": _mcnemar(mine, theirs),
        "confusions": _confusions(answered),
    }


def _mcnemar(mine: int, theirs: int) -> float | None:
    if not mine + theirs:
        return None
    from scipy.stats import binomtest

    return float(binomtest(mine, mine + theirs).pvalue)


def _confusions(answered: Sequence[Judged], most: int = 10) -> list[dict[str, Any]]:
    seen: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in answered:
        if not row.answer & row.truth:
            seen[row.meant, row.said].append(row.label)
    order = sorted(seen, key=lambda pair: (-len(seen[pair]), pair))[:most]
    return [
        {"truth": t, "answer": a, "n": len(seen[t, a]), "titles": seen[t, a][:_EXAMPLES]}
        for t, a in order
    ]


Range = tuple[int, int]


def score_ages(rows: Iterable[tuple[Range | None, Range | None]]) -> dict[str, Any]:
    """Score ages: (answer, truth), each a range of years.

    A range counts as its middle. The rival is the one age that would score best, chosen with the
    truth in hand.

    Returns:
        Counts, shares within 5 and 10 years with the rival's, mean absolute error in years and
        the median age's, the share of answered bands that hold the truth, and how often each
        (truth, answer) occurs.
    """
    known = [(answer, truth) for answer, truth in rows if truth is not None]
    pairs = [(_middle(a), _middle(t)) for a, t in known if a is not None]
    truths = [_middle(t) for _, t in known]
    bands = [(a, _middle(t)) for a, t in known if a is not None and a[0] < a[1]]
    made: dict[str, Any] = {
        "truth_known": len(known),
        "answered": asdict(Share.of(len(pairs), len(known))),
        "mean_error_years": fmean(abs(a - t) for a, t in pairs) if pairs else None,
        "median_age_error_years": _spread(truths),
        "bands": asdict(Share.of(sum(a[0] <= t <= a[1] for a, t in bands), len(bands))),
    }
    for years in (5, 10):
        hits = sum(abs(a - t) <= years for a, t in pairs)
        age, best = _best_age(truths, years)
        made[f"within_{years}"] = asdict(Share.of(hits, len(known)))
        made[f"within_{years}_constant"] = asdict(Share.of(best, len(known)))
        made[f"within_{years}_constant_age"] = age
    points = Counter((t, a) for a, t in pairs)
    made["points"] = [[t, a, n] for (t, a), n in sorted(points.items())]
    return made


def _middle(years: Range) -> float:
    return (years[0] + years[1]) / 2


def _spread(truths: Sequence[float]) -> float | None:
    if not truths:
        return None
    middle = median(truths)
    return fmean(abs(t - middle) for t in truths)


def _best_age(truths: Sequence[float], years: int) -> tuple[int | None, int]:
    """Return the age with most truths within so many years, and their number."""
    if not truths:
        return None, 0
    ages = np.asarray(truths)
    counts = {a: int((np.abs(ages - a) <= years).sum()) for a in range(1, 111)}
    age = max(counts, key=lambda a: (counts[a], -a))
    return age, counts[age]
