"""One answer out of several draws; pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def votes(draws: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the most frequent favourite and, apart from it, the most frequent least liked.

    Ties go to the earlier draw.

    Args:
        draws: (most liked, least liked) of each draw, in order.

    Returns:
        Two different items; None if there are no draws or only one item was ever named least.
    """
    if not draws:
        return None
    positive = _winner([pos for pos, _ in draws])
    rest = [neg for _, neg in draws if neg != positive]
    return (positive, _winner(rest)) if rest else None


def _winner(names: Sequence[int]) -> int:
    counts = Counter(names)
    return max(counts, key=lambda name: (counts[name], -names.index(name)))
