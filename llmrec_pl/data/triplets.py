"""The keyed triplet sampler: (epoch, step, rank) -> a batch, with no state in between.

A batch is a pure function of (seed, epoch, step, rank), so resuming in the middle of an epoch
needs no sampler state, and 0 or 2 loader workers give the same batches. Knows no graph.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from llmrec_pl.errors import AugmentationError, ConfigError, DatasetError

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

Sampling = Literal["edge", "user"]
OBSERVED, LLM = 0, 1
"""Values of `TripletBatch.source`."""

# First word of every key: separates the streams that one seed feeds.
_PERMUTATION, _GLOBAL_BATCH, _RANK_BATCH = 1, 2, 3
_MOST_ROUNDS = 64
"""Of drawing negatives again, in which a user who has met nine tenths of all items is done."""
_MOST_MARKED = 1 << 26
"""Pairs of users and items of which a bit each is kept: up to 8 MiB, which a cache holds."""


def keyed_generator(seed: int, stream: int, *key: int) -> np.random.Generator:
    """Return a generator that depends on nothing but its arguments."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, *key])))


def batches_an_epoch(n_train: int, batch_size: int, world_size: int) -> int:
    """Return ceil(n_train / (batch_size * world_size))."""
    return -(-n_train // (batch_size * world_size))


@dataclasses.dataclass(frozen=True)
class TripletBatch:
    """Training triplets of one step on one rank.

    Attributes:
        user: dense user ids, ``[B + L]``.
        pos_item: items the user interacted with, or that the LLM chose, ``[B + L]``.
        neg_item: sampled items the user has not interacted with in train, or the LLM's least
            liked, ``[B + L]``.
        source: `OBSERVED` for the first B, `LLM` for the last L triplets.
    """

    user: NDArray[np.int64]
    pos_item: NDArray[np.int64]
    neg_item: NDArray[np.int64]
    source: NDArray[np.int8]


@dataclasses.dataclass(frozen=True)
class ManyNegativesBatch(TripletBatch):
    """Triplets with more than one negative each.

    Attributes:
        neg_items: `neg_item`, then further items the user has not interacted with in train,
            ``[B + L, n_negatives]``.
    """

    neg_items: NDArray[np.int64]


class TripletSampler:
    """Draws B observed and up to ``int(llm_edge_rate * B)`` LLM triplets a step and rank.

    ``sampling="edge"`` visits each train interaction once an epoch, in an order keyed by
    (seed, epoch); ranks take disjoint slices of every global batch, and a last batch that does
    not divide by the number of ranks is filled with the first interactions of the same order
    (`n_padding` of them). ``sampling="user"`` draws the users of a global batch without
    replacement where there are enough, and one of their interactions each.

    Negatives are uniform over the items that the user has not interacted with in train, each
    drawn by itself, so one may come twice. All but `neg_items` is the same for any `n_negatives`.

    The LLM triplets are those of ``int(llm_edge_rate * B)`` distinct users of the batch, drawn
    without replacement; users without one add none, so coverage of the augmentation carries
    over. A user with several LLM triplets brings one of them, uniformly.

    Args:
        train: boolean CSR matrix ``[n_users, n_items]``.
        batch_size: B, observed triplets a step and rank.
        seed: first word of every random key.
        sampling: "edge" or "user".
        llm_edges: (user, positive, negative) rows ``[3, n]`` of an augmentation.
        llm_edge_rate: w3 of the paper, in [0, 1].
        world_size: number of ranks.
        n_negatives: negatives a triplet; with more than one, batches are `ManyNegativesBatch`.

    Raises:
        ConfigError: a rate, size or name is out of range.
        AugmentationError: the rate is positive but there are no LLM edges.
        DatasetError: no train interactions, or a user has interacted with every item.
    """

    def __init__(
        self,
        train: sp.csr_array,
        batch_size: int,
        seed: int,
        sampling: Sampling = "edge",
        llm_edges: NDArray[np.int64] | None = None,
        llm_edge_rate: float = 0.0,
        world_size: int = 1,
        n_negatives: int = 1,
    ) -> None:
        _check_settings(batch_size, sampling, llm_edge_rate, world_size, n_negatives)
        if not train.has_sorted_indices:
            train = train.sorted_indices()
        self.n_users, self.n_items = train.shape
        self.batch_size, self.seed, self.world_size = batch_size, seed, world_size
        self.sampling, self.llm_edge_rate = sampling, llm_edge_rate
        self.n_negatives = n_negatives
        self.indptr = train.indptr.astype(np.int64)
        self.items = train.indices  # in whatever integers the matrix has, to hold no copy
        degree = np.diff(self.indptr)
        self.n_train = len(self.items)
        if self.n_train == 0:
            raise DatasetError("the train split is empty; there is nothing to sample.")
        if degree.max() >= self.n_items:
            raise DatasetError(
                f"user {int(degree.argmax())} has interacted with all {self.n_items} items, so no "
                "negative item exists; drop the user or enlarge the catalogue."
            )
        self.degree = degree
        self.edge_user = np.repeat(np.arange(self.n_users, dtype=_smallest(self.n_users)), degree)
        self.active_users = np.flatnonzero(degree)
        self._met = self._marked() if self.n_users * self.n_items <= _MOST_MARKED else None
        self._set_llm_edges(llm_edges)

    def _marked(self) -> NDArray[np.uint8]:
        """Return a bit for each pair, set for train interactions."""
        pair = self.edge_user.astype(np.int64) * self.n_items + self.items
        marked = np.zeros(self.n_users * self.n_items // 8 + 1, dtype=np.uint8)
        np.bitwise_or.at(marked, pair >> 3, _bit(pair))
        return marked

    def _set_llm_edges(self, llm_edges: NDArray[np.int64] | None) -> None:
        if llm_edges is None:
            if self.llm_edge_rate > 0:
                raise AugmentationError(
                    f"llm_edge_rate is {self.llm_edge_rate} but there are no LLM edges; give "
                    "`data.augmentation` a folder with pairs or set `data.llm_edge_rate` to 0."
                )
            llm_edges = np.zeros((3, 0), dtype=np.int64)
        order = np.argsort(llm_edges[0], kind="stable")
        self.llm_edges = llm_edges[:, order]
        self.llm_indptr = np.zeros(self.n_users + 1, dtype=np.int64)
        counts = np.bincount(self.llm_edges[0], minlength=self.n_users)
        np.cumsum(counts, out=self.llm_indptr[1:])

    @property
    def n_batches(self) -> int:
        """Steps an epoch: ceil(n_train / (B * world_size))."""
        return batches_an_epoch(self.n_train, self.batch_size, self.world_size)

    @property
    def n_padding(self) -> int:
        """Interactions that one epoch of edge sampling visits twice to fill the last batch."""
        if self.sampling == "user":
            return 0
        return -self.n_train % self.world_size

    def batch(self, epoch: int, step: int, rank: int = 0) -> TripletBatch:
        """Return the triplets of one step on one rank.

        Args:
            epoch: epoch, from 0.
            step: step in the epoch, below `n_batches`.
            rank: rank, below `world_size`.
        """
        random = keyed_generator(self.seed, _RANK_BATCH, epoch, step, rank)
        if self.sampling == "edge":
            edges = self._edges(epoch, step, rank)
            user, positive = self.edge_user[edges].astype(np.int64), self.items[edges]
        else:
            user = self._users(epoch, step, rank)
            positive = self.items[self.indptr[user] + random.integers(self.degree[user])]
        negative = self._negatives(user, random)
        llm = self._llm_triplets(user, random)
        source = np.full(len(user) + llm.shape[1], OBSERVED, dtype=np.int8)
        source[len(user) :] = LLM
        user = np.concatenate([user, llm[0]])
        positive = np.concatenate([positive, llm[1]], dtype=np.int64)
        negative = np.concatenate([negative, llm[2]])
        triplets = user, positive, negative, source
        if self.n_negatives == 1:
            return TripletBatch(*triplets)
        further = self._negatives(np.repeat(user, self.n_negatives - 1), random)
        neg_items = np.column_stack([negative, further.reshape(len(user), -1)])
        return ManyNegativesBatch(*triplets, neg_items)

    def _edges(self, epoch: int, step: int, rank: int) -> NDArray[np.int32 | np.int64]:
        permutation = _permutation(self.seed, epoch, self.n_train)
        start = step * self.batch_size * self.world_size
        stop = min(start + self.batch_size * self.world_size, self.n_train)
        share = -(-(stop - start) // self.world_size)
        positions = np.arange(start + rank * share, start + (rank + 1) * share)
        return permutation[positions % self.n_train]

    def _users(self, epoch: int, step: int, rank: int) -> NDArray[np.int64]:
        random = keyed_generator(self.seed, _GLOBAL_BATCH, epoch, step)
        size = self.batch_size * self.world_size
        enough = size <= len(self.active_users)
        drawn = random.choice(self.active_users, size=size, replace=not enough)
        return drawn[rank * self.batch_size : (rank + 1) * self.batch_size]

    def _negatives(self, user: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
        negative = random.integers(self.n_items, size=len(user))
        todo = np.arange(len(user))
        for _ in range(_MOST_ROUNDS):
            todo = todo[self._has_met(user[todo], negative[todo])]
            if not len(todo):
                return negative
            negative[todo] = random.integers(self.n_items, size=len(todo))
        # Users who have met nearly everything: draw among what is left.
        for place in todo[self._has_met(user[todo], negative[todo])]:
            met = self.items[self.indptr[user[place]] : self.indptr[user[place] + 1]]
            rest = np.delete(np.arange(self.n_items), met)
            negative[place] = rest[random.integers(len(rest))]
        return negative

    def _has_met(self, user: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return for each pair whether it is a train interaction.

        In a large catalogue by a binary search in the user's own sorted items, for all pairs at
        once: its time does not depend on the size of the data, and nothing is kept for it.
        """
        if self._met is not None:
            pair = user * self.n_items + item
            marked: NDArray[np.bool_] = (self._met[pair >> 3] & _bit(pair)) != 0
            return marked
        place, end = self.indptr[user], self.indptr[user + 1]
        longest = int((end - place).max(initial=0))
        for power in reversed(range(longest.bit_length())):
            further = np.minimum(place + (1 << power), end)
            np.copyto(place, further, where=self.items[further - 1] < item)
        met: NDArray[np.bool_] = self.items[np.minimum(place, self.n_train - 1)] == item
        met &= place < end
        return met

    def _llm_triplets(
        self, user: NDArray[np.int64], random: np.random.Generator
    ) -> NDArray[np.int64]:
        # The rate counts B, so a short last batch brings proportionally fewer.
        size = int(self.llm_edge_rate * len(user))
        if size == 0:
            return np.zeros((3, 0), dtype=np.int64)
        distinct = np.unique(user)
        drawn = random.choice(distinct, size=min(size, len(distinct)), replace=False)
        start, count = self.llm_indptr[drawn], self.llm_indptr[drawn + 1] - self.llm_indptr[drawn]
        start, count = start[count > 0], count[count > 0]
        return self.llm_edges[:, start + random.integers(count)]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n: int) -> NDArray[np.int32 | np.int64]:
    # The order of `Generator.permutation(n)`, whose integers are twice as long.
    permutation: NDArray[Any] = np.arange(n, dtype=_smallest(n))
    keyed_generator(seed, _PERMUTATION, epoch).shuffle(permutation)
    permutation.flags.writeable = False  # shared by all samplers of this process
    return permutation


def _bit(pair: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the bit of a pair within its byte."""
    return np.left_shift(np.uint8(1), (pair & 7).astype(np.uint8))


def _smallest(n: int) -> type[np.int32 | np.int64]:
    """Return the shorter integer type that counts to n."""
    return np.int32 if n < 2**31 else np.int64


def _check_settings(
    batch_size: int, sampling: str, rate: float, world_size: int, n_negatives: int
) -> None:
    if min(batch_size, world_size, n_negatives) < 1:
        raise ConfigError(
            "`batch_size`, the number of devices and `n_negatives` must be positive, got "
            f"{batch_size}, {world_size} and {n_negatives}."
        )
    if sampling not in get_args(Sampling):
        raise ConfigError(f"`sampling` must be one of {get_args(Sampling)}, got {sampling!r}.")
    if not 0 <= rate <= 1:
        raise ConfigError(f"`llm_edge_rate` (w3) must be in [0, 1], got {rate!r}.")
