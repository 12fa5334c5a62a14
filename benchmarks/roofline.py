"""Counts what each operation computes and moves, beside the CPU time it takes.

Floating-point operations and bytes follow from the shapes of the tensors, by the formulas below;
no counter of the processor is read. Bytes that a cache serves are counted too, so an operation
may reach more GB/s than memory gives.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.processes import cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_NOTHING_WRITTEN = ("empty", "detach", "set_", "resize_", "lift_fresh")
_SPARSE_SUMS = ("_embedding_bag", "_embedding_bag_forward_only")
_GATHERS = ("index", "index_select", "embedding", "gather")
_SCATTERS = ("index_put_", "_index_put_impl_", "index_add_", "index_add", "scatter_add_")


@dataclasses.dataclass
class Cost:
    """Sums over the calls of one operation.

    Attributes:
        calls: how many.
        cpu_s: CPU seconds.
        flop: floating-point operations.
        n_bytes: bytes read and written.
    """

    calls: int = 0
    cpu_s: float = 0.0
    flop: float = 0.0
    n_bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            *(
                a + b
                for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
            )
        )

    def a_step(self, n_steps: int) -> dict[str, float]:
        """Return the mean over some steps, in plain values: calls, CPU seconds, GFLOP and GB."""
        return {
            "calls": self.calls / n_steps,
            "cpu_s": self.cpu_s / n_steps,
            "gflop": 1e-9 * self.flop / n_steps,
            "gb": 1e-9 * self.n_bytes / n_steps,
        }


class CostOfOperations(TorchDispatchMode):
    """Collects the cost of every operation that runs inside the ``with`` block.

    Attributes:
        costs: operation, such as ``mm``, to its cost.
    """

    def __init__(self) -> None:
        super().__init__()
        self.costs: dict[str, Cost] = {}

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run the operation and add its cost."""
        start = time.process_time()
        result = func(*args, **(kwargs or {}))
        spent = time.process_time() - start
        name = func.overloadpacket.__name__
        flop, n_bytes = 0.0, 0.0
        if not func.is_view and not name.startswith(_NOTHING_WRITTEN):
            flop, n_bytes = work(name, args, kwargs or {}, result)
        self.costs[name] = self.costs.get(name, Cost()) + Cost(1, spent, flop, n_bytes)
        return result


def work(
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    result: Any,  # noqa: ANN401
) -> tuple[float, float]:
    """Return floating-point operations and bytes of one call.

    A product of ``[m, k]`` and ``[k, n]`` takes 2 m n k operations. A sum of weighted rows takes
    2 d for each entry, and reads the row, its number and its weight. A gather reads what it
    writes, and the numbers; a scatter reads and writes the rows that it adds to. All others read
    their inputs, write their outputs and count one operation a number.

    Args:
        name: of the operation, without its overload.
        args: its positional arguments.
        kwargs: its named arguments.
        result: what it returned.
    """
    inputs = _tensors([args, {k: v for k, v in kwargs.items() if k != "out"}])
    outputs = _tensors([result])
    written = _bytes(outputs)
    if name in ("mm", "addmm", "addmm_", "bmm"):
        left, right = inputs[-2:]
        flop = 2.0 * left.numel() * right.shape[-1]
        return flop, _bytes(inputs) + written
    if name in _SPARSE_SUMS:
        rows, numbers, offsets = inputs[:3]
        weights = inputs[3:4]
        read = len(numbers) * rows.shape[1] * rows.element_size()
        return (
            2.0 * len(numbers) * rows.shape[1],
            read + _bytes([numbers, offsets, *weights]) + _bytes(outputs[:1]),
        )
    if name in _GATHERS:
        return 0.0, 2 * written + _bytes(inputs[1:])
    if name in _SCATTERS:
        # The first of the inputs is the table, of which only some rows are touched.
        moved = max(inputs[1:], key=lambda t: t.numel() * t.element_size())
        return float(moved.numel()), 2 * _bytes([moved]) + _bytes(inputs[1:])
    if name.startswith("_fused_adam"):
        # Parameter, gradient and two moments are read, all but the gradient written; some
        # fifteen operations for each number.
        numbers = sum(t.numel() for t in inputs) / 4
        return 15.0 * numbers, 7 * 4 * numbers
    numbers = [sum(t.numel() for t in side) for side in (inputs, outputs)]
    return float(max(numbers)), _bytes(inputs) + written


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensors: Sequence[Tensor]) -> float:
    return float(sum(t.numel() * t.element_size() for t in tensors))


def machine_rates(repeats: int = 5) -> dict[str, float]:
    """Return what this machine does at best on one thread.

    Args:
        repeats: the best of so many counts.

    Returns:
        ``gflop_s``: of a float32 product, the better of a square one of 1,024 and one of the
        shape of a projection; ``gb_s``: read and written by a copy of 128 MiB.
    """
    best = 0.0
    for m, k, n in ((1024, 1024, 1024), (4096, 1536, 64)):
        left, right, product = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
        spent = cpu_seconds(_bound(torch.mm, left, right, out=product), repeats)
        best = max(best, 2e-9 * m * k * n / spent)
    source = torch.ones(2**25)
    target = torch.empty_like(source)
    spent = cpu_seconds(_bound(target.copy_, source), repeats)
    return {"gflop_s": best, "gb_s": 2e-9 * source.numel() * 4 / spent}


def _bound(
    function: Callable[..., object], *args: object, **kwargs: object
) -> Callable[[], object]:
    return lambda: function(*args, **kwargs)
