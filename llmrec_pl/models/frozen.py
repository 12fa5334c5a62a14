"""Frozen feature rows that meet a trained projection, a few rows a step.

Only the projection has a gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from llmrec_pl.graph import SparseOperator

Storage = Literal["float32", "float16"]
_TILE_ROWS = 256
_MOST_FILLED = 0.9
"""Share of rows with a gradient above which the others are not worth leaving out."""


class Source(nn.Module):
    """Frozen rows, stored or computed.

    Attributes:
        n_rows: how many there are.
        dim: their width.
    """

    n_rows: int
    dim: int

    def project(self, projection: nn.Linear, index: Tensor | None = None) -> Tensor:
        """Return some rows after projection, each with its share of the bias, ``[m, d]``.

        Args:
            projection: from ``dim`` to d.
            index: int64 ``[m]``; None for all rows.
        """
        raise NotImplementedError


def read_and_project(weight: Tensor, rows: Tensor, index: Tensor | None = None) -> Tensor:
    """Return ``rows[index] @ weight.T`` without a copy of these rows, ``[m, d]``.

    Args:
        weight: ``[d, dim]``; the gradient goes here only.
        rows: ``[n, dim]``.
        index: int64 ``[m]``; None for all rows in their order.
    """
    product: Tensor = _ReadAndProject.apply(weight, rows, index)  # type: ignore[no-untyped-call]
    return product


class _ReadAndProject(torch.autograd.Function):
    """``rows[index] @ weight.T`` tile by tile; the backward pass reads the rows again.

    On the CPU a tile is read into memory that is used again and again: to write the rows to new
    memory takes as long as the product does.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor, index: Tensor | None) -> Tensor:  # noqa: ANN401
        device = weight.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        ctx.rows, ctx.index, ctx.dtype, ctx.weight_dtype = rows, index, dtype, weight.dtype
        with torch.autocast(device, enabled=False):
            turned = weight.to(dtype).T
            n = len(rows) if index is None else len(index)
            product = turned.new_empty(n, len(weight))
            for part, tile in _tiles(rows, index, dtype):
                torch.mm(tile, turned, out=product[part])
        return product

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        shape = gradient.shape[1], ctx.rows.shape[1]
        total = gradient.new_zeros(shape, dtype=ctx.weight_dtype)
        with torch.autocast(gradient.device.type, enabled=False):
            gradient, index = _without_zero_rows(gradient.to(ctx.dtype), ctx.index)
            turned = gradient.T
            for part, tile in _tiles(ctx.rows, index, ctx.dtype):
                if total.dtype == ctx.dtype:
                    total.addmm_(turned[:, part], tile)
                else:
                    total += turned[:, part] @ tile
        return total, None, None


def _without_zero_rows(gradient: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Leave out rows that add nothing to the gradient: of triplets that pruning dropped.

    On the CPU only; a GPU would have to wait for their number.
    """
    if gradient.device.type != "cpu":
        return gradient, index
    filled = gradient.ne(0).any(dim=1).nonzero().squeeze(1)
    if len(filled) > _MOST_FILLED * len(gradient):
        return gradient, index
    return gradient[filled], filled if index is None else index[filled]


def _tiles(
    rows: Tensor, index: Tensor | None, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor]]:
    """Yield parts of the index with their rows, which are overwritten by the next part."""
    # A GPU wants one large product, a core one that stays in its cache.
    n_all = len(rows) if index is None else len(index)
    size = _TILE_ROWS if rows.device.type == "cpu" else max(n_all, 1)
    shape = min(size, n_all), rows.shape[1]
    tile = torch.empty(shape, dtype=dtype, device=rows.device)
    stored = tile if rows.dtype == dtype else torch.empty_like(tile, dtype=rows.dtype)
    for start in range(0, n_all, size):
        part = slice(start, min(start + size, n_all))
        n = part.stop - start
        if index is None:
            read = rows[part]
        else:
            read = torch.index_select(rows, 0, index[part], out=stored[:n])
        yield part, read if rows.dtype == dtype else tile[:n].copy_(read)


class FrozenRows(Source):
    """A stored matrix.

    Buffers are not persistent: a checkpoint holds no features, which come from the data set.

    Args:
        values: float32 or float16 ``[n, dim]``; their memory is shared.
        scale: by which each row, and its bias, is multiplied after projection, ``[n]``. A row of
            sums over a graph is so kept as their mean, which is in the range of float16.
    """

    values: Tensor
    scale: Tensor | None

    def __init__(self, values: NDArray[Any], scale: NDArray[np.float32] | None = None) -> None:
        super().__init__()
        self.n_rows, self.dim = values.shape
        self.register_buffer("values", torch.from_numpy(values), persistent=False)
        self.register_buffer(
            "scale", None if scale is None else torch.from_numpy(scale), persistent=False
        )

    def project(self, projection: nn.Linear, index: Tensor | None = None) -> Tensor:
        """Return some rows after projection; see `Source.project`."""
        rows = read_and_project(projection.weight, self.values, index)
        rows = rows + projection.bias.to(rows.dtype)
        if self.scale is None:
            return rows
        scale = self.scale if index is None else self.scale[index]
        return rows * scale.unsqueeze(1)


class NonZeroRows(Source):
    """Rows many of which are zero, and carry no bias: only the others are stored.

    Args:
        rows: those that are stored.
        filled: which they are, ``[n]``.
    """

    place: Tensor

    def __init__(self, rows: FrozenRows, filled: NDArray[np.bool_]) -> None:
        super().__init__()
        self.rows, self.n_rows, self.dim = rows, len(filled), rows.dim
        place = torch.from_numpy(filled).cumsum(0).masked_fill_(~torch.from_numpy(filled), 0) - 1
        self.register_buffer("place", place, persistent=False)

    def project(self, projection: nn.Linear, index: Tensor | None = None) -> Tensor:
        """Return some rows after projection; see `Source.project`."""
        place = self.place if index is None else self.place[index]
        if place.device.type != "cpu":  # which would have to wait for the number of rows
            rows = self.rows.project(projection, place.clamp(min=0))
            return rows * (place >= 0).unsqueeze(1)
        stored = (place >= 0).nonzero().squeeze(1)
        rows = self.rows.project(projection, place[stored])
        return rows.new_zeros(len(place), rows.shape[1]).index_copy(0, stored, rows)


class MixedRows(Source):
    """Rows of ``A F``, summed from F as they are read.

    Args:
        rows: F, ``[n_in, dim]``.
        operator: A, ``[n_out, n_in]``.
    """

    share: Tensor

    def __init__(self, rows: FrozenRows, operator: SparseOperator) -> None:
        super().__init__()
        self.rows, self.operator = rows, operator
        self.n_rows, self.dim = operator.shape[0], rows.dim
        share = operator(torch.ones(operator.shape[1], 1)).squeeze(1)
        self.register_buffer("share", share, persistent=False)

    def project(self, projection: nn.Linear, index: Tensor | None = None) -> Tensor:
        """Return some rows after projection; see `Source.project`."""
        weight, share = projection.weight, self.share
        if index is None:
            rows: Tensor = self.operator(read_and_project(weight, self.rows.values))
        else:
            # Kept for the backward pass: to sum them again would cost more than their memory.
            read = self.operator.entries(index).gather(self.rows.values)
            rows, share = read_and_project(weight, read), share[index]
        return rows + torch.outer(share, projection.bias).to(rows.dtype)
