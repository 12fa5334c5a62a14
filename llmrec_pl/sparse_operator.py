"""Constant sparse matrices that multiply node features, whole or some rows of them only.

Matrices are kept as dense buffers (pointers, indices, weights): a sparse tensor as a buffer aborts
distributed training. The only torch.sparse call site.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WIDENED_ROWS = 128

# Products and their backward are covered by our tests; the notice says nothing a user could act on.
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")


@dataclasses.dataclass(frozen=True, eq=False)
class RowEntries:
    """The entries of some rows of a sparse matrix, row after row.

    Attributes:
        columns: ``[n_entries]``.
        weight: ``[n_entries]``.
        indptr: where each row's entries begin and the last one's end, ``[n_rows + 1]``, of the
            integer type of `columns`.
    """

    columns: Tensor
    weight: Tensor
    indptr: Tensor
    _turned: dict[int, RowEntries] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def gather(self, x: Tensor) -> Tensor:
        """Return each row's weighted sum of ``x[columns]``, ``[n_rows, d]``, in the weights' type.

        Args:
            x: ``[n_columns, d]``.
        """
        if x.dtype == self.weight.dtype:
            return _bag(self.columns, x.contiguous(), self.indptr, self.weight)
        summed = x.new_empty(len(self.indptr) - 1, x.shape[1], dtype=self.weight.dtype)
        for rows, entries in self._blocks():
            read = x[self.columns[entries]].to(self.weight.dtype)
            place = torch.arange(len(read), dtype=self.indptr.dtype, device=x.device)
            offset = self.indptr[rows.start : rows.stop + 1] - entries.start
            summed[rows] = _bag(place, read, offset, self.weight[entries])
        return summed

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        """Yield rows with their entries, few enough for their widened columns to stay in cache."""
        n = len(self.indptr) - 1
        size = _WIDENED_ROWS if self.indptr.device.type == "cpu" else max(n, 1)
        bounds = [*self.indptr[::size].tolist(), len(self.columns)]
        for number, start in enumerate(range(0, n, size)):
            yield slice(start, min(start + size, n)), slice(bounds[number], bounds[number + 1])

    def scatter(self, x: Tensor, n_columns: int) -> Tensor:
        """Return the adjoint of `gather`: each row of ``x [n_rows, d]`` added to its columns."""
        return self.flipped(n_columns).gather(x)

    def flipped(self, n_columns: int) -> RowEntries:
        """Return the entries in the order of their columns: those of the transpose.

        They are kept, for all gradients that go through these entries.
        """
        if n_columns not in self._turned:
            self._turned[n_columns] = self._flip(n_columns)
        return self._turned[n_columns]

    def _flip(self, n_columns: int) -> RowEntries:
        n_rows = len(self.indptr) - 1
        # SciPy knows no half precision.
        if self.columns.device.type == "cpu" and self.weight.itemsize >= 4:
            parts = tuple(p.numpy() for p in (self.weight, self.columns, self.indptr))
            turned = sp.csr_array(parts, shape=(n_rows, n_columns)).tocsc()
            arrays = (turned.indices, turned.data, turned.indptr)
            return RowEntries(*(torch.from_numpy(a) for a in arrays))
        return self._flipped_by_sorting(n_columns)

    def _flipped_by_sorting(self, n_columns: int) -> RowEntries:
        columns, order = torch.sort(self.columns, stable=True)
        rows = torch.arange(len(self.indptr) - 1, dtype=columns.dtype, device=columns.device)
        rows = torch.repeat_interleave(rows, self.indptr.diff(), output_size=len(columns))
        indptr = self.indptr.new_zeros(n_columns + 1)
        torch.cumsum(torch.bincount(columns, minlength=n_columns), 0, out=indptr[1:])
        return RowEntries(rows[order], self.weight[order], indptr)


def _bag(columns: Tensor, x: Tensor, indptr: Tensor, weight: Tensor) -> Tensor:
    # On the CPU two to six times as fast as a product of torch's CSR.
    return F.embedding_bag(
        columns, x, indptr, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


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
        return ctx.entries.gather(gradient), None, None


class _Product(torch.autograd.Function):
    """``A @ x`` with a constant A, and ``A^T @ gradient`` from its stored transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, operator: SparseOperator) -> Tensor:  # noqa: ANN401
        ctx.operator, ctx.dtype = operator, x.dtype
        return operator._multiply(x, transpose=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return ctx.operator._multiply(gradient, transpose=True).to(ctx.dtype), None


class SparseOperator(nn.Module):
    """A constant sparse matrix that multiplies node features, ``[n_out, n_in]``.

    Runs in float32 outside autocast (float64 after ``.double()``). Buffers are not persistent:
    a checkpoint holds no graph, which comes from the data set.

    Args:
        matrix: any type of weights; kept as float32.
    """

    def __init__(self, matrix: sp.csr_array) -> None:
        super().__init__()
        self.shape: tuple[int, int] = matrix.shape
        if not matrix.has_sorted_indices:
            matrix = matrix.sorted_indices()
        parts = (matrix.data.astype(np.float32, copy=False), matrix.indices, matrix.indptr)
        matrix = sp.csr_array(parts, shape=matrix.shape)
        for name, part in (("forward", matrix), ("transpose", matrix.tocsc())):
            self._keep(name, part.indptr, part.indices, part.data)

    def _keep(self, name: str, *arrays: Any) -> None:  # noqa: ANN401
        indptr, indices, weight = arrays
        index_type = np.int32 if max(len(indices), *self.shape) < 2**31 else np.int64
        buffers = {
            "indptr": indptr.astype(index_type, copy=False),
            "indices": indices.astype(index_type, copy=False),
            "weight": weight,
        }
        for key, array in buffers.items():
            self.register_buffer(f"{name}_{key}", torch.from_numpy(array), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product with node features.

        Args:
            x: ``[n_in, d]``.

        Returns:
            ``[n_out, d]`` in the dtype of the weights.
        """
        with torch.autocast(x.device.type, enabled=False):
            product: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return product

    def rows(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return some rows of the product, ``forward(x)[rows]``, at the cost of their entries.

        Args:
            x: ``[n_in, d]``.
            rows: int64 ``[m]``, repeats allowed.

        Returns:
            ``[m, d]`` in the dtype of the weights.
        """
        return self.gather(x, self.entries(rows))

    def gather(self, x: Tensor, entries: RowEntries) -> Tensor:
        """Return `RowEntries.gather` of entries cut out of this matrix, with gradient for `x`."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(entries.weight.dtype)
            product: Tensor = _Gather.apply(x, entries)  # type: ignore[no-untyped-call]
        return product

    def columns(self, x: Tensor, columns: Tensor) -> Tensor:
        """Return the product with features of some nodes only, all others being zero.

        Args:
            x: features of these nodes, ``[m, d]``.
            columns: the nodes, int64 ``[m]``, repeats allowed.

        Returns:
            ``[n_out, d]`` in the dtype of the weights.
        """
        return self.scatter(x, self.entries(columns, transpose=True))

    def scatter(self, x: Tensor, entries: RowEntries) -> Tensor:
        """Return what `columns` does, by entries cut out of the transpose beforehand."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(entries.weight.dtype)
            product: Tensor = _Scatter.apply(x, entries, self.shape[0])  # type: ignore[no-untyped-call]
        return product

    def n_entries(self, rows: Tensor | None = None) -> int:
        """Return how many entries some rows have, or all, without cutting them out."""
        indptr, indices, _ = self._parts(transpose=False)
        if rows is None:
            return len(indices)
        return int((indptr[rows + 1] - indptr[rows]).sum(dtype=torch.int64))

    def entries(self, rows: Tensor, *, transpose: bool = False) -> RowEntries:
        """Cut out the entries of some rows, of the matrix or of its transpose.

        Args:
            rows: int64 ``[m]``, repeats allowed.
            transpose: of the transpose.
        """
        indptr, indices, weight = self._parts(transpose=transpose)
        start = indptr[rows]
        count = indptr[rows + 1] - start
        total = int(count.sum(dtype=torch.int64))
        # Repeats can bring more entries than the matrix has.
        index_type = indptr.dtype if total < 2**31 else torch.int64
        cut = torch.zeros(len(rows) + 1, dtype=index_type, device=indptr.device)
        torch.cumsum(count, 0, out=cut[1:])
        entry = torch.repeat_interleave(start - cut[:-1], count, output_size=total)
        entry += torch.arange(total, dtype=index_type, device=indptr.device)
        columns = indices.index_select(0, entry).to(index_type)
        return RowEntries(columns, weight.index_select(0, entry), cut)

    def matrix(self) -> sp.csr_array:
        """Return the matrix itself, with the weights in use."""
        indptr, indices, weight = self._parts(transpose=False)
        parts = tuple(p.cpu().numpy() for p in (weight, indices, indptr))
        return sp.csr_array(parts, shape=self.shape)

    def _parts(self, *, transpose: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return pointers, indices and weights of the matrix or of its transpose."""
        name = "transpose" if transpose else "forward"
        return tuple(getattr(self, f"{name}_{key}") for key in ("indptr", "indices", "weight"))

    def _multiply(self, x: Tensor, *, transpose: bool) -> Tensor:
        indptr, indices, weight = self._parts(transpose=transpose)
        # float32 even if autocast is on around backward: no kernel mixes types.
        x = x.to(weight.dtype)
        if x.device.type == "cpu":
            return RowEntries(indices, weight, indptr).gather(x)
        shape = self.shape[::-1] if transpose else self.shape
        matrix = torch.sparse_csr_tensor(indptr, indices, weight, shape, check_invariants=False)
        product: Tensor = matrix @ x.contiguous()
        return product


class TransposedOperator(SparseOperator):
    """The transpose of an operator, with which it shares all that both need.

    Args:
        operator: holds the pattern and, unless others are given, the weights.
        matrix: the transposed matrix with weights of its own, of exactly the operator's pattern.
    """

    def __init__(self, operator: SparseOperator, matrix: sp.csr_array | None = None) -> None:
        nn.Module.__init__(self)
        self.shape = (operator.shape[1], operator.shape[0])
        self.operator, self.has_weights = operator, matrix is not None
        if matrix is not None:
            for name, part in (("forward", matrix), ("transpose", matrix.tocsc())):
                weight = torch.from_numpy(part.data.astype(np.float32, copy=False))
                self.register_buffer(f"{name}_weight", weight, persistent=False)

    def _parts(self, *, transpose: bool) -> tuple[Tensor, Tensor, Tensor]:
        indptr, indices, weight = self.operator._parts(transpose=not transpose)
        if self.has_weights:
            weight = getattr(self, "transpose_weight" if transpose else "forward_weight")
        return indptr, indices, weight
