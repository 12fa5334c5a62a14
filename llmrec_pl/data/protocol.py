"""The choices that make a data set of raw interactions: filters, split, seed."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from llmrec_pl.errors import DatasetError

SplitKind = Literal["random", "leave-last-out", "time", "given"]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Every choice that takes part in the fingerprint: filters, split, seed.

    The filters run in the order of the attributes, after repeated (user, item) pairs are merged.

    Attributes:
        min_rating: a rating of at least this counts as positive; None keeps all.
        require_text: item column that must not be empty; None keeps all.
        max_per_user: keep at most so many interactions a user; None keeps all.
        k_core_users: each user keeps at least so many interactions.
        k_core_items: each item keeps at least so many interactions.
        split: "random" (per user), "leave-last-out" (per user), "time" (one cut for all) or
            "given" (from the raw data; what is missing there is carved out of train, with the
            shares rounded at random).
        ratios: shares of train, val and test; for "given" the shares that are carved.
        cold_items: share of the items that are held out of train with all their interactions,
            whatever `split` is; the ratios of val and test divide them. The split is made of
            the others.
        seed: of the split and of the choice in `max_per_user`.
    """

    min_rating: float | None = None
    require_text: str | None = None
    max_per_user: int | None = None
    k_core_users: int = 1
    k_core_items: int = 1
    split: SplitKind = "random"
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 2026
    cold_items: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            DatasetError: a value is out of range.
        """
        if self.split not in get_args(SplitKind):
            raise DatasetError(f"`split` is {self.split!r}; choose one of {get_args(SplitKind)}.")
        if len(self.ratios) != 3 or min(self.ratios) < 0 or abs(sum(self.ratios) - 1) > 1e-6:
            raise DatasetError(
                f"`ratios` are {self.ratios}; give three shares of at least 0 that sum to 1, such "
                "as 0.8 0.1 0.1."
            )
        if self.ratios[0] <= 0 or self.ratios[2] <= 0:
            raise DatasetError(f"`ratios` are {self.ratios}; train and test need more than 0.")
        if not 0 <= self.cold_items < 1:
            raise DatasetError(
                f"`cold_items` is {self.cold_items}; give a share of the items of at least 0 and "
                "below 1, such as 0.2."
            )
        for name in ("max_per_user", "k_core_users", "k_core_items"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DatasetError(f"`{name}` is {value}; it must be at least 1.")

    def record(self, carved: list[str]) -> dict[str, Any]:
        """Return what ``dataset.json`` keeps and the fingerprint covers, as plain values.

        Args:
            carved: which splits were carved out of the given train.
        """
        choices = {**dataclasses.asdict(self), "ratios": list(self.ratios), "carved": carved}
        if self.min_rating is not None:
            choices["min_rating"] = float(self.min_rating)  # 4 and 4.0 are one protocol
        if not self.cold_items:
            del choices["cold_items"]  # data sets without it keep their fingerprint
        return choices
