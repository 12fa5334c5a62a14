"""Ways of a feature from its stored rows to users and items, equal in values and gradients.

A feature is projected, ``P = F W' + 1 b'``, masked in part, and carried over the graph twice: to
the other side, ``O = A P``, and back to its own, ``S = B O``. `PlainPath` does just that.

Propagation is linear, ``A P = (A F) W' + (A 1) b'``, so where features are frozen and nothing is
dropped out, the products with the graph are made once: `DistinctPath` projects each distinct row
of F once a step, `PropagatedPath` only those rows of ``A F`` and ``B A F`` that a step reads. A
mask enters both as ``A[:, M] (token - P[M])`` over the masked nodes M.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec_pl.data.features import Feature, Side, release
from llmrec_pl.graph import BipartiteGraph, SparseOperator, at_least_float32
from llmrec_pl.models.frozen import FrozenRows, MixedRows, Storage
from llmrec_pl.models.layers import FeatureTable, MaskedRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

MaskSpace = Literal["projected", "raw", "none"]
Projector = Callable[[Tensor | None], Tensor]
"""Gives some distinct rows after projection, or all of them, in float32 or wider."""
_BLOCK_ROWS = 4096
_LONG_ROW = 8
"""Entries of a row of A above which it is stored: to sum it in every step would cost too much."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a step needs of every feature.

    Attributes:
        user: users asked for, int64 ``[n]``; None for all.
        item: items asked for, int64 ``[m]``; None for all.
        masked: distinct masked nodes of each side; empty where nothing is masked.
    """

    user: Tensor | None = None
    item: Tensor | None = None
    masked: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def rows(self, side: Side) -> Tensor | None:
        """Return the rows asked for on one side."""
        return self.user if side == "user" else self.item


@dataclasses.dataclass(frozen=True)
class Propagated:
    """A feature after collaborative context injection.

    Attributes:
        user: of the users asked for, ``[n, d]``.
        item: of the items asked for, ``[m, d]``.
        at_masked: of the masked nodes with a known feature, ``[k, d]``; None without masks.
        target: their rows before masking, projected ``[k, d]`` or raw ``[k, dim]``; None without.
        squared_norm: computes the squared norm of all users' and items' rows, a scalar.
    """

    user: Tensor
    item: Tensor
    at_masked: Tensor | None
    target: Tensor | None
    squared_norm: Callable[[], Tensor]


class FeaturePath(nn.Module):
    """One feature's way over the graph.

    Args:
        feature: the frozen matrix.
        graph: the user-item graph.
    """

    def __init__(self, feature: Feature, graph: BipartiteGraph) -> None:
        super().__init__()
        self.side: Side = feature.side
        self.other: Side = "item" if feature.side == "user" else "user"
        self.to_other = graph.to_user if feature.side == "item" else graph.to_item
        self.back = graph.to_item if feature.side == "item" else graph.to_user

    def forward(
        self, projection: nn.Linear, asked: Asked, token: MaskedRows | None, space: MaskSpace
    ) -> Propagated:
        """Return what is asked for.

        Args:
            projection: from the feature's width to d.
            asked: rows and masked nodes.
            token: what replaces masked rows; None if this feature is never masked.
            space: whether it does so before or after projection.
        """
        raise NotImplementedError


class PlainPath(FeaturePath):
    """Project every node, mask, propagate twice, and take the rows asked for.

    Args:
        feature: the frozen matrix.
        graph: the user-item graph.
        dropout: rate on projected rows.
    """

    def __init__(self, feature: Feature, graph: BipartiteGraph, dropout: float = 0.0) -> None:
        super().__init__(feature, graph)
        self.table = FeatureTable(feature)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, projection: nn.Linear, asked: Asked, token: MaskedRows | None, space: MaskSpace
    ) -> Propagated:
        """Return what is asked for, by the definition; see `FeaturePath.forward`."""
        masked = None if token is None else asked.masked.get(self.side)
        rows, target = self._project(projection, masked, token, space)
        other = self.to_other(rows)
        own = self.back(other)
        user, item = (own, other) if self.side == "user" else (other, own)
        known = None if masked is None else self.table.known(masked)
        return Propagated(
            _take(user, asked.user),
            _take(item, asked.item),
            None if known is None else own[known],
            None if known is None else target[known],
            lambda: _square_sum(own) + _square_sum(other),
        )

    def _project(
        self,
        projection: nn.Linear,
        masked: Tensor | None,
        token: MaskedRows | None,
        space: MaskSpace,
    ) -> tuple[Tensor, Tensor]:
        table = self.table
        if token is not None and masked is not None and space == "raw":
            raw, visible = table.dense(), table.visible(masked)
            rows = projection(token(raw, masked))
            return self.dropout(rows if visible is None else rows * visible), raw
        rows = self.dropout(table.expand(projection(table.values)))
        if token is None or masked is None:
            return rows, rows
        return token(rows, masked), rows


class _FrozenPath(FeaturePath):
    """What the lean paths share: the order of the rows, and masks as a correction."""

    index: Tensor | None
    mean_row: Tensor

    def __init__(self, feature: Feature, graph: BipartiteGraph) -> None:
        super().__init__(feature, graph)
        index = None if feature.index is None else torch.from_numpy(feature.index.copy())
        self.register_buffer("index", index, persistent=False)
        mean_row, self.known_share = _mean_row(feature)
        self.register_buffer("mean_row", mean_row, persistent=False)
        # Over distinct rows: fewer entries than edges, from a source that a cache holds.
        self.spread = self.to_other
        if feature.index is not None:
            self.spread = SparseOperator(
                self.to_other.matrix() @ _selection(feature.index, len(feature.values))
            )

    def forward(
        self, projection: nn.Linear, asked: Asked, token: MaskedRows | None, space: MaskSpace
    ) -> Propagated:
        """Return what is asked for; see `FeaturePath.forward`."""
        project = self._projector(projection)
        squared_norm = partial(self._squared_norm, projection, project)
        own_rows, other_rows = asked.rows(self.side), asked.rows(self.other)
        masked = None if token is None else asked.masked.get(self.side)
        if token is None or masked is None:
            own, other = self._propagate(projection, project, own_rows, other_rows)
            return self._result(own, other, squared_norm)
        place, is_known = self._place(masked)
        before = project(place) * is_known.unsqueeze(1)
        row = self._token_row(token, projection, space)
        correction = self.to_other.columns(row - before, masked)
        known = masked[is_known]
        target = self._raw(place[is_known]) if space == "raw" else before[is_known]
        wanted = None if own_rows is None else torch.cat([own_rows, known])
        own, other = self._propagate(projection, project, wanted, other_rows, correction)
        if own_rows is None:
            return self._result(own, other, squared_norm, own[known], target)
        own, at_masked = torch.split(own, [len(own_rows), len(known)])
        return self._result(own, other, squared_norm, at_masked, target)

    def _result(
        self,
        own: Tensor,
        other: Tensor,
        squared_norm: Callable[[], Tensor],
        at_masked: Tensor | None = None,
        target: Tensor | None = None,
    ) -> Propagated:
        user, item = (own, other) if self.side == "user" else (other, own)
        return Propagated(user, item, at_masked, target, squared_norm)

    def _place(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Return each node's row among the distinct ones, and whether it is known."""
        if self.index is None:
            return nodes, torch.ones_like(nodes, dtype=torch.bool)
        index = self.index[nodes]
        return index.clamp(min=0), index >= 0

    def _token_row(self, token: MaskedRows, projection: nn.Linear, space: MaskSpace) -> Tensor:
        """Return what stands for a masked node after projection, ``[d]``."""
        if space == "raw":
            row: Tensor = projection(self.mean_row if token.token is None else token.token)
            return row
        if token.token is not None:
            return token.token
        return F.linear(self.mean_row, projection.weight, self.known_share * projection.bias)

    def _projector(self, projection: nn.Linear) -> Projector:
        """Return what projects distinct rows."""
        raise NotImplementedError

    def _raw(self, place: Tensor) -> Tensor:
        """Return some distinct rows as they are stored, ``[k, dim]``."""
        raise NotImplementedError

    def _propagate(
        self,
        projection: nn.Linear,
        project: Projector,
        own_rows: Tensor | None,
        other_rows: Tensor | None,
        correction: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return rows of S and of O, None asking for all of them."""
        raise NotImplementedError

    def _squared_norm(self, projection: nn.Linear, project: Projector) -> Tensor:
        """Return the squared norm of all of S and O, without masks."""
        raise NotImplementedError


class DistinctPath(_FrozenPath):
    """Project each distinct row once a step, and carry distinct rows over the graph.

    For rows that repeat, and for small catalogues. Takes the memory of the distinct rows.

    Args:
        feature: the frozen matrix.
        graph: the user-item graph.
        storage: the type in which rows are kept.
    """

    def __init__(self, feature: Feature, graph: BipartiteGraph, storage: Storage) -> None:
        super().__init__(feature, graph)
        self.rows = FrozenRows(_float32(feature), storage)

    def _projector(self, projection: nn.Linear) -> Projector:
        distinct = at_least_float32(self.rows.project(projection))
        return lambda place: distinct if place is None else distinct[place]

    def _raw(self, place: Tensor) -> Tensor:
        return at_least_float32(self.rows.values[place])

    def _propagate(
        self,
        projection: nn.Linear,
        project: Projector,
        own_rows: Tensor | None,
        other_rows: Tensor | None,
        correction: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        other = self.spread(project(None))
        other = other if correction is None else other + correction
        own = self.back(other) if own_rows is None else self.back.rows(other, own_rows)
        return own, _take(other, other_rows)

    def _squared_norm(self, projection: nn.Linear, project: Projector) -> Tensor:
        own, other = self._propagate(projection, project, None, None)
        return _square_sum(own) + _square_sum(other)


class PropagatedPath(_FrozenPath):
    """Project only those propagated rows that a step reads.

    Keeps ``B A F``, and ``A F`` too, unless masks need F itself and rows of ``A`` are short: then
    those of ``A F`` are summed from F as they are read, which spares their memory.

    Args:
        feature: the frozen matrix.
        graph: the user-item graph.
        storage: the type in which rows are kept.
        masked: whether masks apply.
    """

    gram: Tensor | None

    def __init__(
        self, feature: Feature, graph: BipartiteGraph, storage: Storage, *, masked: bool
    ) -> None:
        super().__init__(feature, graph)
        values, first, back = _float32(feature), self.spread.matrix(), self.back.matrix()
        other, other_share = first @ values, first @ np.ones(len(values), dtype=np.float32)
        own, own_share = back @ other, back @ other_share
        gram = None if masked else _gram(other, other_share) + _gram(own, own_share)
        self.register_buffer("gram", gram, persistent=False)
        self.rows = FrozenRows(values, storage) if masked else None
        self.other_rows = (
            FrozenRows(other, storage, other_share)
            if self.rows is None or _entries_a_read(first) > _LONG_ROW
            else MixedRows(self.rows, self.spread)
        )
        self.own_rows = FrozenRows(own, storage, own_share)

    def _projector(self, projection: nn.Linear) -> Projector:
        def project(place: Tensor | None) -> Tensor:
            assert self.rows is not None
            return at_least_float32(self.rows.project(projection, place))

        return project

    def _raw(self, place: Tensor) -> Tensor:
        assert self.rows is not None
        return at_least_float32(self.rows.values[place])

    def _propagate(
        self,
        projection: nn.Linear,
        project: Projector,
        own_rows: Tensor | None,
        other_rows: Tensor | None,
        correction: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        own = at_least_float32(self.own_rows.project(projection, own_rows))
        other = at_least_float32(self.other_rows.project(projection, other_rows))
        if correction is None:
            return own, other
        back = self.back(correction) if own_rows is None else self.back.rows(correction, own_rows)
        return own + back, other + _take(correction, other_rows)

    def _squared_norm(self, projection: nn.Linear, project: Projector) -> Tensor:
        assert self.gram is not None
        both = torch.cat([projection.weight, projection.bias.unsqueeze(1)], dim=1)
        return ((both @ self.gram) * both).sum()


def choose_path(
    feature: Feature,
    graph: BipartiteGraph,
    *,
    rows_a_step: int,
    mask_rate: float = 0.0,
    dropout: float = 0.0,
    storage: Storage = "float32",
    plain: bool = False,
) -> FeaturePath:
    """Return the way that projects the fewest rows a step.

    Args:
        feature: the frozen matrix.
        graph: the user-item graph.
        rows_a_step: users and items that a step reads, about.
        mask_rate: share of nodes masked; these are projected twice, before and after propagation.
        dropout: rate on projected rows; any needs the plain way.
        storage: the type in which rows are kept.
        plain: take the plain way whatever it costs.
    """
    if plain or dropout > 0:
        return PlainPath(feature, graph, dropout)
    if rows_a_step + 2 * mask_rate * feature.n_rows < len(feature.values):
        return PropagatedPath(feature, graph, storage, masked=mask_rate > 0)
    return DistinctPath(feature, graph, storage)


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]


def _square_sum(x: Tensor) -> Tensor:
    return at_least_float32(x).square().sum()


def _blocks(feature: Feature) -> Iterator[NDArray[np.float32]]:
    """Yield the distinct rows in blocks, and let go of the memory-mapped pages after each."""
    for start in range(0, len(feature.values), _BLOCK_ROWS):
        yield feature.values[start : start + _BLOCK_ROWS].astype(np.float32)
        release(feature.values)


def _float32(feature: Feature) -> NDArray[np.float32]:
    rows = np.empty(feature.values.shape, dtype=np.float32)
    for number, block in enumerate(_blocks(feature)):
        rows[number * _BLOCK_ROWS :][: len(block)] = block
    return rows


def _mean_row(feature: Feature) -> tuple[Tensor, float]:
    """Return the mean row over all nodes, unknown ones being zero, and the share of known ones."""
    n = max(feature.n_rows, 1)
    index = np.arange(n) if feature.index is None else feature.index[feature.index >= 0]
    count = np.bincount(index, minlength=len(feature.values))
    total, start = np.zeros(feature.dim), 0
    for block in _blocks(feature):
        total += count[start : start + len(block)] @ block
        start += len(block)
    return torch.from_numpy((total / n).astype(np.float32)), 1.0 - feature.n_missing / n


def _selection(index: NDArray[np.int64], n_distinct: int) -> sp.csr_array:
    """Return the matrix that gives each node its distinct row, ``[n_rows, n_distinct]``."""
    known = np.flatnonzero(index >= 0)
    ones = np.ones(len(known), dtype=np.float32)
    return sp.csr_array((ones, (known, index[known])), shape=(len(index), n_distinct))


def _entries_a_read(matrix: sp.csr_array) -> float:
    """Return how many entries a row has, on average over the entries: rows are read by edges."""
    count = np.diff(matrix.indptr).astype(np.float64)
    return float((count**2).sum() / max(count.sum(), 1.0))


def _gram(rows: NDArray[np.float32], share: NDArray[np.float32]) -> Tensor:
    """Return ``X' X`` of the rows with the bias's share as a last column, ``[dim + 1, dim + 1]``.

    Blocks are multiplied in float32 and summed in float64.
    """
    total = np.zeros((rows.shape[1] + 1,) * 2)
    for start in range(0, len(rows), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        block = np.column_stack([rows[part], share[part]])
        total += block.T @ block
    return torch.from_numpy(total.astype(np.float32))
