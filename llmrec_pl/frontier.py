"""The rows of each layer that propagation towards some nodes of a bipartite graph needs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from llmrec_pl.tensors import take_rows

if TYPE_CHECKING:
    from llmrec_pl.sparse_operator import RowEntries, SparseOperator

SHARE_OF_WHOLE = 1 / 3
"""From this share of the entries on, all rows cost less than cutting out some of them."""


class _Held:
    """Nodes of one side that have a row in one layer.

    Args:
        ids: sorted distinct ids ``[n]``, None for all nodes.
        place: row of each id, ``[n_nodes]``; None to search for it.
    """

    def __init__(self, ids: Tensor | None = None, place: Tensor | None = None) -> None:
        self.ids, self._place = ids, place

    def place(self, ids: Tensor) -> Tensor:
        """Return the rows of some ids that are held."""
        if self.ids is None:
            return ids
        if self._place is None:
            return torch.searchsorted(self.ids, ids)
        return self._place.index_select(0, ids)


_Pair = tuple[_Held, _Held]
_Cut = tuple["RowEntries | None", "RowEntries | None"]


class Frontier:
    """Plans L propagations of which only some rows of the last layer are asked for.

    A layer holds the nodes of the next one and their neighbours; layer 0 holds all nodes, as its
    features exist anyway. Where the nodes of a layer have a third of all entries or more, the layer
    is computed for all nodes, because cutting out their entries would cost more. So a batch that
    reaches most of the graph falls back to the full form, side by side and layer by layer.

    Time and memory grow with the entries in use, and with one number a node of the graph.

    Attributes:
        n_whole: how many of the 2 L products are computed for all nodes.

    Args:
        to_user: the operator ``[n_users, n_items]``.
        to_item: the operator ``[n_items, n_users]``.
        users: the users asked for, int64 ``[n]``, repeats allowed.
        items: the items asked for, int64 ``[m]``, repeats allowed.
        n_layers: L.
    """

    def __init__(
        self,
        to_user: SparseOperator,
        to_item: SparseOperator,
        users: Tensor,
        items: Tensor,
        n_layers: int,
    ) -> None:
        self.n_layers, self._to_user, self._to_item = n_layers, to_user, to_item
        self._layers: list[_Pair] = []
        self._cuts: list[_Cut] = []
        self._users, self._user_place = torch.unique(users, return_inverse=True)
        self._items, self._item_place = torch.unique(items, return_inverse=True)
        held = _decide(self._users, to_user), _decide(self._items, to_item)
        for layer in range(n_layers, 0, -1):
            self._layers.append(held)
            cut = _entries(held[0], to_user), _entries(held[1], to_item)
            if layer > 1:
                held = _below(held[0], cut[1], to_user), _below(held[1], cut[0], to_item)
            else:
                held = _Held(), _Held()
            self._cuts.append((_relabelled(cut[0], held[1]), _relabelled(cut[1], held[0])))
        self._layers.append((_Held(), _Held()))
        self._layers.reverse()
        self._cuts.reverse()
        self.n_whole = sum(part is None for cut in self._cuts for part in cut)

    def propagate(self, layer: int, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Pass one layer of messages both ways at once.

        Args:
            layer: from which the messages go to the next.
            user: rows of that layer's users.
            item: rows of that layer's items.

        Returns:
            What the users and items of layer ``layer + 1`` hear.
        """
        for_user, for_item = self._cuts[layer]
        return (
            self._to_user(item) if for_user is None else self._to_user.gather(item, for_user),
            self._to_item(user) if for_item is None else self._to_item.gather(user, for_item),
        )

    def kept(self, layer: int, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Return those rows of a layer whose nodes the next layer holds."""
        own, following = self._layers[layer], self._layers[layer + 1]
        return (
            self._look_up(layer, user, own[0], following[0].ids),
            self._look_up(layer, item, own[1], following[1].ids),
        )

    def asked(self, layer: int, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Return those rows of a layer that were asked for, each once; `repeated` orders them."""
        users, items = self._layers[layer]
        return (
            self._look_up(layer, user, users, self._users),
            self._look_up(layer, item, items, self._items),
        )

    def repeated(self, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Give what was asked for its order and repeats, ``[n, d]`` and ``[m, d]``."""
        return take_rows(user, self._user_place), take_rows(item, self._item_place)

    def _look_up(self, layer: int, x: Tensor, held: _Held, ids: Tensor | None) -> Tensor:
        if ids is None or ids is held.ids:
            return x
        if layer > 0 or self.n_layers == 0:
            return take_rows(x, held.place(ids))
        # Layer 0 gets a dense gradient from its messages; one of these rows alone is added to it,
        # where a further dense one would be as large as the table.
        return F.embedding(held.place(ids), x, sparse=True)


def _decide(ids: Tensor, operator: SparseOperator) -> _Held:
    """Hold these nodes, or all if that costs less."""
    whole = operator.n_entries(ids) >= SHARE_OF_WHOLE * operator.n_entries()
    return _Held() if whole else _Held(ids)


def _entries(held: _Held, operator: SparseOperator) -> RowEntries | None:
    return None if held.ids is None else operator.entries(held.ids)


def _below(above: _Held, heard: RowEntries | None, operator: SparseOperator) -> _Held:
    """Return what a side holds in the layer below.

    Args:
        above: what it holds in the layer above.
        heard: the other side's entries above, whose columns are nodes of this side.
        operator: gives this side's rows.
    """
    if above.ids is None or heard is None:
        return _Held()
    mask = torch.zeros(operator.shape[0], dtype=torch.bool, device=above.ids.device)
    mask.index_fill_(0, above.ids, value=True)
    mask.index_fill_(0, heard.columns.long(), value=True)
    held = _decide(mask.nonzero().squeeze(1), operator)
    if held.ids is None:
        return held
    return _Held(held.ids, mask.cumsum(0, dtype=heard.columns.dtype) - 1)


def _relabelled(entries: RowEntries | None, below: _Held) -> RowEntries | None:
    """Let columns count among the nodes that the layer below holds."""
    if entries is None or below.ids is None:
        return entries
    return dataclasses.replace(entries, columns=below.place(entries.columns))
