"""What a step asks of a feature on its way over the graph, and the plain way.

A feature is projected, ``P = F W' + 1 b'``, masked in part, and carried over the graph twice: to
the other side, ``O = A P``, and back to its own, ``S = B O``. `PlainPath` does just that; those of
`llmrec_pl.models.lean_paths` give the same values and gradients with less work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from llmrec_pl import losses
from llmrec_pl.data.features import Feature, Side
from llmrec_pl.graph import BipartiteGraph
from llmrec_pl.models.layers import FeatureTable, MaskedRows
from llmrec_pl.tensors import take_rows

MaskSpace = Literal["projected", "raw", "none"]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a step needs of every feature.

    Attributes:
        user: users asked for, int64 ``[n]``; None for all.
        item: items asked for, int64 ``[m]``; None for all.
        masked: distinct masked nodes of each side; empty where nothing is masked.
        restored: whether masked nodes are to be restored, which needs their rows and targets.
    """

    user: Tensor | None = None
    item: Tensor | None = None
    masked: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    restored: bool = True
    _shared: dict[Hashable, Any] = dataclasses.field(default_factory=dict, repr=False)

    def rows(self, side: Side) -> Tensor | None:
        """Return the rows asked for on one side."""
        return self.user if side == "user" else self.item

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return what does not depend on the feature, computed for the first that asks."""
        if key not in self._shared:
            self._shared[key] = compute()
        found: T = self._shared[key]
        return found


@dataclasses.dataclass(frozen=True)
class Propagated:
    """A feature after collaborative context injection.

    Attributes:
        user: of the users asked for, ``[n, d]``.
        item: of the items asked for, ``[m, d]``.
        at_masked: of the masked nodes with a known feature, ``[k, d]``; None where nothing is
            masked or restored.
        target: their rows before masking, projected ``[k, d]`` or raw ``[k, dim]``, without
            gradient; None where `at_masked` is.
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
        restored = asked.restored and masked is not None
        known = self.table.known(masked) if restored and masked is not None else None
        return Propagated(
            take_rows(user, asked.user),
            take_rows(item, asked.item),
            None if known is None else take_rows(own, known),
            None if known is None else target[known].detach(),
            partial(losses.squared_norm, own, other),
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
