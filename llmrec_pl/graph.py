"""Bipartite graphs, their normalisations, and propagation over them.

Where the weights of edges are constant, a layer is a `SparseOperator`; where they are learned, it
is an embedding bag, which has gradients for weights and features.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec_pl.edges import edges_to_csr, is_sorted
from llmrec_pl.errors import ConfigError
from llmrec_pl.frontier import Frontier
from llmrec_pl.sparse_operator import RowEntries, SparseOperator, TransposedOperator
from llmrec_pl.tensors import at_least_float32, take_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BipartiteGraph",
    "Norm",
    "RowEntries",
    "SparseOperator",
    "WeightedBipartiteGraph",
    "normalise",
    "segment_softmax",
    "weighted_sum",
]
Norm = Literal["row", "symmetric", "mean"]
_LOG = logging.getLogger(__name__)
_ROWS_AT_ONCE = 1 << 16


def normalise(
    matrix: sp.csr_array, norm: Norm, dtype: type[np.floating[Any]] = np.float64
) -> sp.csr_array:
    """Weight the entries of a boolean adjacency block.

    With r the row sum and c the column sum of an entry:
    ``row`` gives ``r^-1/2`` (the released LLMRec code), ``symmetric`` gives ``r^-1/2 c^-1/2``
    (LightGCN), ``mean`` gives ``1 / r``. Rows and columns without entries stay empty.

    Args:
        matrix: ``[n_rows, n_columns]``, every stored entry counts as one.
        norm: the name of the normalisation.
        dtype: of the weights, which are computed in float64.

    Returns:
        A CSR matrix of the same pattern.

    Raises:
        ConfigError: the name is unknown.
    """
    if norm not in get_args(Norm):
        raise ConfigError(f"`norm` must be one of {get_args(Norm)}, got {norm!r}.")
    matrix = sp.csr_array(matrix)
    row_sum = np.maximum(np.diff(matrix.indptr), 1.0)
    column_sum = np.maximum(np.bincount(matrix.indices, minlength=matrix.shape[1]), 1.0)
    row_weight = 1.0 / row_sum if norm == "mean" else row_sum**-0.5
    column_weight = column_sum**-0.5
    data = np.empty(matrix.nnz, dtype=dtype)
    # In blocks, so that nothing in float64 is as long as the edges.
    for start in range(0, matrix.shape[0], _ROWS_AT_ONCE):
        bounds = matrix.indptr[start : start + _ROWS_AT_ONCE + 1]
        part = slice(bounds[0], bounds[-1])
        weight = np.repeat(row_weight[start : start + _ROWS_AT_ONCE], np.diff(bounds))
        if norm == "symmetric":
            weight *= column_weight[matrix.indices[part]]
        data[part] = weight
    return sp.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)


class BipartiteGraph(nn.Module):
    """Both directions of a user-item graph.

    Args:
        edges: distinct (user, item) pairs ``[2, n_edges]``.
        n_users: number of users.
        n_items: number of items.
        norm: see `normalise`; each direction is normalised by its own rows.
    """

    def __init__(
        self, edges: NDArray[np.int64], n_users: int, n_items: int, norm: Norm = "symmetric"
    ) -> None:
        super().__init__()
        matrix = edges_to_csr(edges[0], edges[1], n_users, n_items)
        self.to_user = SparseOperator(normalise(matrix, norm, np.float32))
        # The weights of a symmetric normalisation are those of the other direction too.
        other = None if norm == "symmetric" else normalise(matrix.T.tocsr(), norm, np.float32)
        self.to_item = TransposedOperator(self.to_user, other)
        self._told = False

    def propagate(self, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Pass one layer of messages both ways at once (LightGCN Eq. 3).

        Args:
            user: ``[n_users, d]``.
            item: ``[n_items, d]``.

        Returns:
            The new user and item features, of the same shapes.
        """
        return self.to_user(item), self.to_item(user)

    def mean_of_layers(self, user: Tensor, item: Tensor, n_layers: int) -> tuple[Tensor, Tensor]:
        """Propagate L times and average layers 0..L (LightGCN Eq. 4).

        Args:
            user: ``[n_users, d]``.
            item: ``[n_items, d]``.
            n_layers: L.

        Returns:
            User and item features of the same shapes.
        """
        user_sum, item_sum = user, item
        for _ in range(n_layers):
            user, item = self.propagate(user, item)
            user_sum, item_sum = user_sum + user, item_sum + item
        return user_sum / (n_layers + 1), item_sum / (n_layers + 1)

    def frontier(self, users: Tensor, items: Tensor, n_layers: int) -> Frontier:
        """Return the rows of each layer that L propagations towards some nodes need.

        Args:
            users: ids ``[n]``, repeats allowed.
            items: ids ``[m]``, repeats allowed.
            n_layers: L.
        """
        frontier = Frontier(self.to_user, self.to_item, users, items, n_layers)
        if frontier.n_whole and not self._told:
            self._told = True
            _LOG.info(
                "batches reach so much of the graph that %d of %d products run over all of it",
                frontier.n_whole,
                2 * n_layers,
            )
        return frontier

    def mean_of_layers_at(
        self, user: Tensor, item: Tensor, n_layers: int, users: Tensor, items: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return some rows of `mean_of_layers`, from the rows that they need alone.

        Args:
            user: ``[n_users, d]``.
            item: ``[n_items, d]``.
            n_layers: L.
            users: ids ``[n]``, repeats allowed.
            items: ids ``[m]``, repeats allowed.

        Returns:
            ``[n, d]`` and ``[m, d]``; the features get the gradients of the full form.
        """
        frontier = self.frontier(users, items, n_layers)
        if frontier.n_whole == 2 * n_layers:
            user, item = self.mean_of_layers(user, item, n_layers)
            return take_rows(user, users), take_rows(item, items)
        user_sum, item_sum = frontier.asked(0, user, item)
        for layer in range(n_layers):
            user, item = frontier.propagate(layer, user, item)
            user_rows, item_rows = frontier.asked(layer + 1, user, item)
            user_sum, item_sum = user_sum + user_rows, item_sum + item_rows
        return frontier.repeated(user_sum / (n_layers + 1), item_sum / (n_layers + 1))


def weighted_sum(
    columns: Tensor, weight: Tensor, x: Tensor, offsets: Tensor | None = None
) -> Tensor:
    """Sum weighted rows of node features, with gradients for the weights and the features.

    The sparse product for learned weights; needs no memory beyond its inputs and output. Runs
    in float32 outside autocast (float64 if `x` is).

    Args:
        columns: rows of `x` that are summed, ``[n_out, k]``, or ``[n_entries]`` with `offsets`.
        weight: one weight an entry, the shape of `columns`.
        x: ``[n_in, d]``.
        offsets: where each output's entries begin, ``[n_out]``; an output may have none.

    Returns:
        ``[n_out, d]``.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_float32(x)
        return F.embedding_bag(
            columns, x, offsets, mode="sum", per_sample_weights=weight.to(x.dtype)
        )


def segment_softmax(score: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Normalise the scores of each segment to sum to one.

    Args:
        score: ``[n_edges]``.
        segment: segment of each score, int64 ``[n_edges]``.
        n_segments: their number; empty ones are allowed.
    """
    highest = score.new_full((n_segments,), -torch.inf)
    highest = highest.scatter_reduce(0, segment, score.detach(), "amax")
    exponent = (score - highest[segment]).exp()
    total = exponent.new_zeros(n_segments).index_add(0, segment, exponent)
    return exponent / total[segment]


class _EdgeScores(torch.autograd.Function):
    """Inner products over the edges of a graph; the backward pass is two weighted sums."""

    @staticmethod
    def forward(ctx: Any, user: Tensor, item: Tensor, graph: WeightedBipartiteGraph) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(user, item)
        ctx.graph = graph
        return graph._scores(user, item)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        user, item = ctx.saved_tensors
        return ctx.graph._sum_to_user(item, gradient), ctx.graph._sum_to_item(user, gradient), None


class _EdgeSum(torch.autograd.Function):
    """A weighted sum over edges; its backward pass is a sum the other way, and edge scores."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        graph: WeightedBipartiteGraph,
        to_user: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.graph, ctx.to_user = graph, to_user
        return graph._sum_to_user(x, weight) if to_user else graph._sum_to_item(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        graph: WeightedBipartiteGraph = ctx.graph
        gradient = gradient.contiguous()
        if ctx.to_user:
            return graph._sum_to_item(gradient, weight), graph._scores(gradient, x), None, None
        return graph._sum_to_user(gradient, weight), graph._scores(x, gradient), None, None


class WeightedBipartiteGraph(nn.Module):
    """A user-item graph whose edge weights are given, with gradient, at each propagation.

    Edges are sorted by user, then item; every weight ``[n_edges]`` is in that order.

    Attributes:
        edge_user: user of each edge, int64 ``[n_edges]``.
        edge_item: item of each edge, int64 ``[n_edges]``.

    Args:
        edges: distinct (user, item) pairs ``[2, n_edges]``.
        n_users: number of users.
        n_items: number of items.
    """

    edge_user: Tensor
    edge_item: Tensor
    by_item: Tensor
    user_offsets: Tensor
    item_offsets: Tensor

    def __init__(self, edges: NDArray[np.int64], n_users: int, n_items: int) -> None:
        super().__init__()
        self.n_users, self.n_items = n_users, n_items
        if not is_sorted(edges[0], edges[1]):
            edges = edges[:, np.lexsort((edges[1], edges[0]))]
        user, item = (np.ascontiguousarray(ids) for ids in edges)
        buffers = {
            "edge_user": user,
            "edge_item": item,
            "by_item": np.argsort(item, kind="stable"),
            "user_offsets": _offsets(user, n_users),
            "item_offsets": _offsets(item, n_items),
        }
        for name, array in buffers.items():
            self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def edge_scores(self, user: Tensor, item: Tensor) -> Tensor:
        """Return the inner product of both ends of each edge, ``[n_edges]``.

        Like the sums, runs in float32 outside autocast (float64 if its input is), and keeps
        nothing of size ``n_edges * d`` for the backward pass.

        Args:
            user: ``[n_users, d]``.
            item: ``[n_items, d]``.
        """
        with torch.autocast(user.device.type, enabled=False):
            scores: Tensor = _EdgeScores.apply(*_widened(user, item), self)  # type: ignore[no-untyped-call]
        return scores

    def to_user(self, item: Tensor, weight: Tensor) -> Tensor:
        """Sum item features ``[n_items, d]`` into users ``[n_users, d]``."""
        return self._sum(item, weight, to_user=True)

    def to_item(self, user: Tensor, weight: Tensor) -> Tensor:
        """Sum user features ``[n_users, d]`` into items ``[n_items, d]``."""
        return self._sum(user, weight, to_user=False)

    def _sum(self, x: Tensor, weight: Tensor, *, to_user: bool) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            summed: Tensor = _EdgeSum.apply(*_widened(x, weight), self, to_user)  # type: ignore[no-untyped-call]
        return summed

    def _sum_to_user(self, item: Tensor, weight: Tensor) -> Tensor:
        return weighted_sum(self.edge_item, weight, item, self.user_offsets)

    def _sum_to_item(self, user: Tensor, weight: Tensor) -> Tensor:
        order = self.by_item
        return weighted_sum(self.edge_user[order], weight[order], user, self.item_offsets)

    def _scores(self, user: Tensor, item: Tensor) -> Tensor:
        # The gradient of a weighted sum for its weights is just these inner products, and its
        # kernel gathers no rows: a fifth of the time of indexing both sides.
        with torch.inference_mode(False), torch.enable_grad():
            user, item = _plain(user), _plain(item)
            weight = user.new_zeros(len(self.edge_user), requires_grad=True)
            summed = weighted_sum(self.edge_item, weight, item, self.user_offsets)
            return torch.autograd.grad(summed, weight, user)[0]


def _plain(x: Tensor) -> Tensor:
    """Return a tensor that autograd may keep, which one made in inference mode is not."""
    return x.clone() if x.is_inference() else x.detach()


def _widened(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the wider of their types, float32 at least."""
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(dtype), b.to(dtype)


def _offsets(row: NDArray[np.int64], n_rows: int) -> NDArray[np.int64]:
    """Return where each row's entries begin among the sorted ones, ``[n_rows]``."""
    count = np.bincount(row, minlength=n_rows)
    return np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int64)
