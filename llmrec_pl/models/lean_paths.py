"""Lean ways of a feature over the graph, equal to the plain one in values and gradients.

In the terms of `llmrec_pl.models.feature_paths`, ``A P = (A F) W' + (A 1) b'``. So where features
are frozen and nothing is dropped out, the products with the graph are made once: `DistinctPath`
projects each distinct row of F once a step, `PropagatedPath` only those rows of ``A F`` and ``B A
F`` that a step reads. A mask enters both as ``A[:, M] (token - P[M])`` over the masked nodes M.
Nodes without an edge, half of a sparse catalogue, have zeros for ``B A F`` and no part in that
sum: nothing of theirs is kept, and none of it computed but the target of a masked one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec_pl.data.features import Feature
from llmrec_pl.graph import BipartiteGraph, SparseOperator, at_least_float32
from llmrec_pl.models.feature_paths import (
    Asked,
    FeaturePath,
    MaskSpace,
    PlainPath,
    Propagated,
    square_sum,
)
from llmrec_pl.models.feature_products import (
    entries_a_read,
    filled_rows,
    gram,
    mean_row,
    propagated_rows,
    selection,
    stored_rows,
)
from llmrec_pl.models.frozen import FrozenRows, MixedRows, Storage
from llmrec_pl.models.layers import MaskedRows
from llmrec_pl.sparse_operator import take_rows

Projector = Callable[[Tensor | None], Tensor]
"""Gives some distinct rows after projection, or all of them, in float32 or wider."""
_LONG_ROW = 8
"""Entries of a row of A above which it is stored: to sum it in every step would cost too much."""


class _FrozenPath(FeaturePath):
    """What the lean paths share: the order of the rows, and masks as a correction."""

    index: Tensor | None
    mean_row: Tensor
    linked: Tensor

    def __init__(self, feature: Feature, graph: BipartiteGraph) -> None:
        super().__init__(feature, graph)
        index = None if feature.index is None else torch.from_numpy(feature.index.copy())
        self.register_buffer("index", index, persistent=False)
        mean, self.known_share = mean_row(feature)
        self.register_buffer("mean_row", mean, persistent=False)
        linked = torch.from_numpy(filled_rows(self.back.matrix()))
        self.register_buffer("linked", linked, persistent=False)
        # Over distinct rows: fewer entries than edges, from a source that a cache holds.
        self.spread = self.to_other
        if feature.index is not None:
            self.spread = SparseOperator(
                self.to_other.matrix() @ selection(feature.index, len(feature.values))
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
        linked = self.linked[masked]
        before = project(place[linked]) * is_known[linked].unsqueeze(1)
        row = self._token_row(token, projection, space)
        correction = self.to_other.columns(row - before, masked[linked])
        known = masked[is_known]
        with torch.no_grad():
            if space == "raw":
                target = self._raw(place[is_known])
            else:
                target = before.new_empty(len(masked), before.shape[1])
                target[linked], target[~linked] = before, project(place[~linked])
                target = target[is_known]
        wanted = None if own_rows is None else torch.cat([own_rows, known])
        own, other = self._propagate(projection, project, wanted, other_rows, correction)
        if own_rows is None:
            return self._result(own, other, squared_norm, take_rows(own, known), target)
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
        self.rows = FrozenRows(stored_rows(feature, storage))

    def _projector(self, projection: nn.Linear) -> Projector:
        distinct = at_least_float32(self.rows.project(projection))
        return partial(take_rows, distinct)

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
        return own, take_rows(other, other_rows)

    def _squared_norm(self, projection: nn.Linear, project: Projector) -> Tensor:
        own, other = self._propagate(projection, project, None, None)
        return square_sum(own) + square_sum(other)


class PropagatedPath(_FrozenPath):
    """Project only those propagated rows that a step reads.

    Keeps ``B A F``, and ``A F`` too, unless masks need F itself and rows of ``A`` are short: then
    those of ``A F`` are summed from F as they are read, which spares their memory.

    Args:
        feature: the frozen matrix.
        graph: the user-item graph.
        storage: the type in which rows are kept.
        masked: whether masks apply.
        normed: whether `Propagated.squared_norm` will be asked for; it is not where masks apply.
    """

    gram: Tensor | None

    def __init__(
        self,
        feature: Feature,
        graph: BipartiteGraph,
        storage: Storage,
        *,
        masked: bool,
        normed: bool = True,
    ) -> None:
        super().__init__(feature, graph)
        first, back = self.spread.matrix(), self.back.matrix()
        self.rows = FrozenRows(stored_rows(feature, storage)) if masked else None
        self.other_rows = (
            propagated_rows(feature, [first], storage)
            if self.rows is None or entries_a_read(first) > _LONG_ROW
            else MixedRows(self.rows, self.spread)
        )
        self.own_rows = propagated_rows(feature, [first, back], storage)
        needed = normed and not masked
        both = gram(self.other_rows) + gram(self.own_rows) if needed else None
        self.register_buffer("gram", both, persistent=False)

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
        return own + back, other + take_rows(correction, other_rows)

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
    normed: bool = True,
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
        normed: whether `Propagated.squared_norm` will be asked for.
        plain: take the plain way whatever it costs.
    """
    if plain or dropout > 0:
        return PlainPath(feature, graph, dropout)
    if rows_a_step + 2 * mask_rate * feature.n_rows < len(feature.values):
        return PropagatedPath(feature, graph, storage, masked=mask_rate > 0, normed=normed)
    return DistinctPath(feature, graph, storage)
