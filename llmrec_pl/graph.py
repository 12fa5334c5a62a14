"""Bipartite graphs, their normalisations, and sparse propagation: the only torch.sparse call site.

Graphs are kept as dense buffers (pointers, indices, weights): a sparse tensor as a buffer aborts
distributed training. The sparse matrix is made for each product, which copies nothing. Where the
weights of edges are learned, the product is an embedding bag, which has gradients for both sides.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Products and their backward are covered by our tests; the notice says nothing a user could act on.
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")

Norm = Literal["row", "symmetric", "mean"]
_ENTRIES_AT_ONCE = 1 << 16


def normalise(matrix: sp.csr_array, norm: Norm) -> sp.csr_array:
    """Weight the entries of a boolean adjacency block.

    With r the row sum and c the column sum of an entry:
    ``row`` gives ``r^-1/2`` (the released LLMRec code), ``symmetric`` gives ``r^-1/2 c^-1/2``
    (LightGCN), ``mean`` gives ``1 / r``. Rows and columns without entries stay empty.

    Args:
        matrix: ``[n_rows, n_columns]``.
        norm: the name of the normalisation.

    Returns:
        A float64 CSR matrix of the same pattern.

    Raises:
        ConfigError: the name is unknown.
    """
    if norm not in get_args(Norm):
        raise ConfigError(f"`norm` must be one of {get_args(Norm)}, got {norm!r}.")
    matrix = sp.csr_array(matrix, dtype=np.float64)
    row_sum = np.maximum(matrix.sum(axis=1), 1.0)
    column_sum = np.maximum(matrix.sum(axis=0), 1.0)
    row_weight = 1.0 / row_sum if norm == "mean" else row_sum**-0.5
    data = matrix.data * np.repeat(row_weight, np.diff(matrix.indptr))
    if norm == "symmetric":
        data = data * (column_sum**-0.5)[matrix.indices]
    return sp.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)


class _SparseProduct(torch.autograd.Function):
    """``A @ x`` with a constant A, and ``A^T @ gradient`` from a stored transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:  # noqa: ANN401
        ctx.transpose = transpose
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        # fp32 even if autocast is on around backward: CSR has no half-precision CPU kernel.
        return ctx.transpose @ gradient.to(ctx.transpose.dtype).contiguous(), None, None


class RowEntries(NamedTuple):
    """The entries of some rows of a sparse matrix, row after row.

    Attributes:
        columns: ``[n_entries]``.
        weight: ``[n_entries]``.
        offsets: where each row's entries begin, int64 ``[n_rows]``; a row may have none.
    """

    columns: Tensor
    weight: Tensor
    offsets: Tensor

    def gather(self, x: Tensor) -> Tensor:
        """Return each row's weighted sum of ``x[columns]``, ``[n_rows, d]``."""
        summed: Tensor = F.embedding_bag(
            self.columns.long(), x, self.offsets, mode="sum", per_sample_weights=self.weight
        )
        return summed

    def scatter(self, x: Tensor, n_columns: int) -> Tensor:
        """Return the adjoint of `gather`: each row of ``x [n_rows, d]`` added to its columns."""
        n = len(self.columns)
        position = torch.zeros(n + 1, dtype=torch.int64, device=x.device)
        position.index_add_(0, self.offsets, torch.ones_like(self.offsets))
        position = position[:n].cumsum(0) - 1
        summed = x.new_zeros(n_columns, x.shape[1])
        for start in range(0, n, _ENTRIES_AT_ONCE):
            part = slice(start, start + _ENTRIES_AT_ONCE)
            rows = x[position[part]].mul_(self.weight[part].unsqueeze(1))
            summed.index_add_(0, self.columns[part], rows)
        return summed


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, entries: RowEntries) -> Tensor:  # noqa: ANN401
        ctx.entries, ctx.n = entries, len(x)
        return entries.gather(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return ctx.entries.scatter(gradient, ctx.n), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, entries: RowEntries, n: int) -> Tensor:  # noqa: ANN401
        ctx.entries = entries
        return entries.scatter(x, n)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        return ctx.entries.gather(gradient.contiguous()), None, None


class SparseOperator(nn.Module):
    """A constant sparse matrix that multiplies node features, ``[n_out, n_in]``.

    Runs in float32 outside autocast (float64 after ``.double()``). Buffers are not persistent:
    a checkpoint holds no graph, which comes from the data set.
    """

    forward_indptr: Tensor
    forward_indices: Tensor
    forward_weight: Tensor

    def __init__(self, matrix: sp.csr_array) -> None:
        super().__init__()
        self.shape = matrix.shape
        for name, part in (("forward", matrix), ("transpose", sp.csr_array(matrix.T))):
            part.sort_indices()
            index_type = np.int32 if max(part.nnz, *part.shape) < 2**31 else np.int64
            arrays = {
                "indptr": part.indptr.astype(index_type),
                "indices": part.indices.astype(index_type),
                "weight": part.data.astype(np.float32),
            }
            for key, array in arrays.items():
                self.register_buffer(f"{name}_{key}", torch.from_numpy(array), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product with node features.

        Args:
            x: ``[n_in, d]``.

        Returns:
            ``[n_out, d]`` in the dtype of the weights.
        """
        with torch.autocast(x.device.type, enabled=False):
            matrix = self._csr("forward", self.shape)
            transpose = self._csr("transpose", self.shape[::-1])
            product: Tensor = _SparseProduct.apply(x.to(matrix.dtype), matrix, transpose)  # type: ignore[no-untyped-call]
        return product

    def rows(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return some rows of the product, ``forward(x)[rows]``, at the cost of their entries.

        Args:
            x: ``[n_in, d]``.
            rows: int64 ``[m]``, repeats allowed.

        Returns:
            ``[m, d]`` in the dtype of the weights.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.forward_weight.dtype)
            product: Tensor = _Gather.apply(x, self.entries(rows))  # type: ignore[no-untyped-call]
        return product

    def columns(self, x: Tensor, columns: Tensor) -> Tensor:
        """Return the product with features of some nodes only, all others being zero.

        Args:
            x: features of these nodes, ``[m, d]``.
            columns: the nodes, int64 ``[m]``, repeats allowed.

        Returns:
            ``[n_out, d]`` in the dtype of the weights.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.forward_weight.dtype)
            entries = self.entries(columns, transpose=True)
            product: Tensor = _Scatter.apply(x, entries, self.shape[0])  # type: ignore[no-untyped-call]
        return product

    def entries(self, rows: Tensor, *, transpose: bool = False) -> RowEntries:
        """Cut out the entries of some rows, of the matrix or of its transpose."""
        name = "transpose" if transpose else "forward"
        indptr = getattr(self, f"{name}_indptr")
        start = indptr[rows].long()
        count = indptr[rows + 1].long() - start
        offsets = count.cumsum(0) - count
        entry = torch.repeat_interleave(start - offsets, count)
        entry += torch.arange(len(entry), device=entry.device)
        columns, weight = (getattr(self, f"{name}_{k}")[entry] for k in ("indices", "weight"))
        return RowEntries(columns, weight, offsets)

    def matrix(self) -> sp.csr_array:
        """Return the matrix itself, with the weights in use."""
        parts = (self.forward_weight, self.forward_indices, self.forward_indptr)
        return sp.csr_array(tuple(p.cpu().numpy() for p in parts), shape=self.shape)

    def _csr(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.sparse_csr_tensor(
            getattr(self, f"{name}_indptr"),
            getattr(self, f"{name}_indices"),
            getattr(self, f"{name}_weight"),
            size=shape,
            check_invariants=False,
        )


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
        ones = np.ones(edges.shape[1])
        matrix = sp.csr_array((ones, (edges[0], edges[1])), shape=(n_users, n_items))
        self.to_user = SparseOperator(normalise(matrix, norm))
        self.to_item = SparseOperator(normalise(sp.csr_array(matrix.T), norm))

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
        user, item = edges[:, np.lexsort((edges[1], edges[0]))]
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


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half-precision values; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()
