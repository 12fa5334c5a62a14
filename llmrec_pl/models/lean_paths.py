"""Lean ways of a feature over the graph, equal to the plain one in values and gradients.

In the terms of `llmrec_pl.models.feature_paths`, ``A P = (A F) W' + (A 1) b'``. So where features
are frozen and nothing is dropped out, the products with the graph are made once: `DistinctPath`
projects each distinct row of F once a step, `PropagatedPath` only those rows of ``A F`` and ``B A
F`` that a step reads. A mask enters both as ``A[:, M] (token - P[M])`` over the masked nodes M.
Nodes without an edge, half of a sparse catalogue, have zeros for ``B A F`` and no part in that
sum: nothing of theirs is kept, and none of it computed but the target of a masked one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec_pl.data.features import Feature
from llmrec_pl.graph import BipartiteGraph, RowEntries, SparseOperator
from llmrec_pl.models.feature_paths import (
    Asked,
    FeaturePath,
    MaskSpace,
    PlainPath,
    Propagated,
)
from llmrec_pl.models.feature_products import (
    entries_a_read,
    filled_rows,
    gram_of,
    mean_row,
    propagated_rows,
    selection,
    stored_rows,
)
from llmrec_pl.models.frozen import FrozenRows, MixedRows, Source, Storage
from llmrec_pl.models.layers import MaskedRows
from llmrec_pl.tensors import at_least_float32, take_rows

Projector = Callable[[Tensor | None], Tensor]
"""Gives some distinct rows after projection, or all of them, in float32 or wider."""
_LONG_ROW = 8
"""Entries of a row of A above which it is stored: to sum it in every step would cost too much."""


class _Masked(NamedTuple):
    """The masked nodes of one side.

    Attributes:
        nodes: their ids, ``[k]``.
        reached: where those with an edge stand among them.
        lone: where the others do.
        entries: those of the columns of A of the nodes with an edge.
    """

    nodes: Tensor
    reached: Tensor
    lone: Tensor
    entries: RowEntries


class _Wanted(NamedTuple):
    """Rows of ``S = B O`` that are asked for.

    Attributes:
        rows: their ids; None for all.
        entries: cuts those of B out.
    """

    rows: Tensor | None
    entries: Callable[[], RowEntries]


class _FrozenPath(FeaturePath):
    """What the lean paths share: the order of the rows, masks as a correction, norms.

    Args:
        feature: the frozen matrix.
        graph: the user-item graph.
        rows: F, where a step reads it.
    """

    index: Tensor | None
    mean_row: Tensor
    linked: Tensor
    gram: Tensor | None

    def __init__(self, feature: Feature, graph: BipartiteGraph, rows: FrozenRows | None) -> None:
        super().__init__(feature, graph)
        self.rows = rows
        index = None if feature.index is None else torch.from_numpy(feature.index.copy())
        self.register_buffer("index", index, persistent=False)
        self.is_complete = feature.n_missing == 0
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
        correction = known = target = at_masked = None
        if token is not None and self.side in asked.masked:
            masked = asked.once(("masked", self.side), partial(self._masked, asked))
            place, is_known = self._place(masked.nodes)
            before = project(place[masked.reached])
            if is_known is not None:
                before = before * is_known[masked.reached].unsqueeze(1)
            row = self._token_row(token, projection, space)
            correction = self.to_other.scatter(row - before, masked.entries)
            if asked.restored:
                known = masked.nodes if is_known is None else masked.nodes[is_known]
                with torch.no_grad():
                    target = self._target(masked, place, is_known, before, project, space)
        wanted = self._wanted(asked, known)
        others = asked.rows(self.other)
        own, other = self._propagate(projection, project, wanted, others, correction)
        if known is not None and wanted.rows is None:
            at_masked = take_rows(own, known)
        elif known is not None:
            own, at_masked = torch.split(own, [len(own) - len(known), len(known)])
        user, item = (own, other) if self.side == "user" else (other, own)
        squared_norm = partial(self._squared_norm, projection)
        return Propagated(user, item, at_masked, target, squared_norm)

    def _masked(self, asked: Asked) -> _Masked:
        nodes = asked.masked[self.side]
        linked = self.linked[nodes]
        reached, lone = (part.nonzero().squeeze(1) for part in (linked, ~linked))
        return _Masked(nodes, reached, lone, self.to_other.entries(nodes[reached], transpose=True))

    def _wanted(self, asked: Asked, known: Tensor | None) -> _Wanted:
        """Return the rows asked for on the feature's own side, then some masked ones."""
        rows = asked.rows(self.side)
        if rows is not None and known is not None:
            rows = torch.cat([rows, known])
        # Features without unknown rows want the same.
        key = "entries", self.side, None if known is None else self.is_complete or id(self)

        def entries() -> RowEntries:
            assert rows is not None
            return asked.once(key, lambda: self.back.entries(rows))

        return _Wanted(rows, entries)

    def _target(
        self,
        masked: _Masked,
        place: Tensor,
        is_known: Tensor | None,
        before: Tensor,
        project: Projector,
        space: MaskSpace,
    ) -> Tensor:
        """Return the known masked rows before masking, ``[k, d]`` or ``[k, dim]``."""
        if space == "raw":
            return self._raw(place if is_known is None else place[is_known])
        target = before.new_empty(len(place), before.shape[1])
        target[masked.reached] = before
        target[masked.lone] = project(place[masked.lone])
        return target if is_known is None else target[is_known]

    def _place(self, nodes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return each node's row among the distinct ones, and whether it is known, None for yes."""
        if self.index is None:
            return nodes, None
        index = self.index[nodes]
        return (index, None) if self.is_complete else (index.clamp(min=0), index >= 0)

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
        assert self.rows is not None
        return at_least_float32(self.rows.values[place])

    def _propagate(
        self,
        projection: nn.Linear,
        project: Projector,
        wanted: _Wanted,
        others: Tensor | None,
        correction: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return rows of S and of O, None asking for all of them."""
        raise NotImplementedError

    def _back(self, other: Tensor, wanted: _Wanted) -> Tensor:
        """Return the wanted rows of ``B`` times rows of the other side."""
        if wanted.rows is not None:
            return self.back.gather(other, wanted.entries())
        rows: Tensor = self.back(other)
        return rows

    def _keep_gram(self, sources: Sequence[Source] | None) -> None:
        gram = None if sources is None else torch.stack([gram_of(s) for s in sources]).sum(dim=0)
        self.register_buffer("gram", gram, persistent=False)

    def _squared_norm(self, projection: nn.Linear) -> Tensor:
        """Return the squared norm of all of S and O, without masks."""
        assert self.gram is not None
        # Sums over all edges are beyond float16.
        with torch.autocast(projection.weight.device.type, enabled=False):
            both = torch.cat([projection.weight, projection.bias.unsqueeze(1)], dim=1)
            return ((both @ self.gram) * both).sum()


class DistinctPath(_FrozenPath):
    """Project each distinct row once a step, and carry distinct rows over the graph.

    For rows that repeat, and for small catalogues. Takes the memory of the distinct rows.

    Args:
        feature: the frozen matrix.
        graph: the user-item graph.
        storage: the type in which rows are kept.
        normed: whether `Propagated.squared_norm` will be asked for.
    """

    def __init__(
        self, feature: Feature, graph: BipartiteGraph, storage: Storage, *, normed: bool = True
    ) -> None:
        super().__init__(feature, graph, FrozenRows(stored_rows(feature, storage)))
        first, back = self.spread.matrix(), self.back.matrix()
        both = [[first], [first, back]] if normed else []
        sources = [propagated_rows(feature, operators, "float32") for operators in both]
        self._keep_gram(sources or None)

    def _projector(self, projection: nn.Linear) -> Projector:
        assert self.rows is not None
        distinct = at_least_float32(self.rows.project(projection))
        return partial(take_rows, distinct)

    def _propagate(
        self,
        projection: nn.Linear,
        project: Projector,
        wanted: _Wanted,
        others: Tensor | None,
        correction: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        other = self.spread(project(None))
        other = other if correction is None else other + correction
        return self._back(other, wanted), take_rows(other, others)


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

    def __init__(
        self,
        feature: Feature,
        graph: BipartiteGraph,
        storage: Storage,
        *,
        masked: bool,
        normed: bool = True,
    ) -> None:
        rows = FrozenRows(stored_rows(feature, storage)) if masked else None
        super().__init__(feature, graph, rows)
        first, back = self.spread.matrix(), self.back.matrix()
        self.other_rows = (
            propagated_rows(feature, [first], storage)
            if rows is None or entries_a_read(first) > _LONG_ROW
            else MixedRows(rows, self.spread)
        )
        self.own_rows = propagated_rows(feature, [first, back], storage)
        needed = normed and not masked
        self._keep_gram([self.other_rows, self.own_rows] if needed else None)

    def _projector(self, projection: nn.Linear) -> Projector:
        def project(place: Tensor | None) -> Tensor:
            assert self.rows is not None
            return at_least_float32(self.rows.project(projection, place))

        return project

    def _propagate(
        self,
        projection: nn.Linear,
        project: Projector,
        wanted: _Wanted,
        others: Tensor | None,
        correction: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        own = at_least_float32(self.own_rows.project(projection, wanted.rows))
        other = at_least_float32(self.other_rows.project(projection, others))
        if correction is None:
            return own, other
        return own + self._back(correction, wanted), other + take_rows(correction, others)


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
    return DistinctPath(feature, graph, storage, normed=normed and mask_rate == 0)
