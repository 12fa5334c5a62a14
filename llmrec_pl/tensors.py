"""Small helpers on tensors that models, losses and graphs share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half-precision values, whose sums would be coarse; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def take_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """Return ``x[rows]``, or x for None, with the fastest backward pass there is.

    On a CPU that of `index_select` takes a third of the time of that of `F.embedding`, and half
    that of indexing; on a GPU `F.embedding` sums in a fixed order.

    Args:
        x: ``[n, d]``.
        rows: int64 ``[m]``, repeats allowed.
    """
    if rows is None:
        return x
    return x.index_select(0, rows) if x.device.type == "cpu" else F.embedding(rows, x)
