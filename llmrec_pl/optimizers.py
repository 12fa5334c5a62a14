"""An optimizer whose step costs what a batch touches, and what sparse gradients need around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Optimizer, SparseAdam
from torch.optim.adamw import adamw

from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from llmrec_pl.models.base import Recommender


class LazyAdamW(Optimizer):
    """AdamW that updates only those rows of a table that have a gradient.

    For tables with sparse gradients (``nn.Embedding(sparse=True)``, here `sparse_gradients: true`)
    a step reads and writes the rows of the batch, in parameter and state, and nothing else; its
    time does not depend on the length of the table. All other parameters get `torch.optim.AdamW`,
    bit for bit.

    What differs from AdamW where a row has no gradient in a step: its moments stay as they are
    instead of fading, it does not move by its old momentum, and it does not decay. So
    `weight_decay` acts as `l2_weight` does: rows shrink as often as they come. The bias correction
    counts all steps, those without the row too. If every row has a gradient in every step, this is
    AdamW.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019; lazy as
    `torch.optim.SparseAdam` is, which has no decay.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: how fast both moments fade, each in [0, 1).
        eps: added to the denominator, which is at least 0.
        weight_decay: decoupled; a touched row is multiplied by ``1 - lr * weight_decay``.

    Raises:
        ConfigError: a value is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if value < 0:
                raise ConfigError(f"`{name}` of LazyAdamW must not be negative, got {value!r}.")
        if not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"`betas` of LazyAdamW must be in [0, 1), got {betas!r}.")
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient.

        Args:
            closure: computes the loss again.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            dense = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self._state_of(parameter)
                if parameter.grad.is_sparse:
                    _update_rows(parameter, state, group)
                else:
                    dense.append((parameter, state))
            _update_whole(dense, group)
        return loss

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state


def _update_rows(parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    assert parameter.grad is not None
    gradient = parameter.grad.coalesce()  # a row that comes several times has one sum
    rows, values = gradient.indices()[0], gradient.values()
    (beta1, beta2), lr = group["betas"], group["lr"]
    state["step"] += 1
    step = state["step"].item()
    first, second = (state[name].index_select(0, rows) for name in ("exp_avg", "exp_avg_sq"))
    first.lerp_(values, 1 - beta1)
    second.mul_(beta2).addcmul_(values, values, value=1 - beta2)
    state["exp_avg"].index_copy_(0, rows, first)
    state["exp_avg_sq"].index_copy_(0, rows, second)
    denominator = second.sqrt_().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
    updated = parameter.index_select(0, rows).mul_(1 - lr * group["weight_decay"])
    updated.addcdiv_(first, denominator, value=-lr / (1 - beta1**step))
    parameter.index_copy_(0, rows, updated)


def _update_whole(dense: list[tuple[Tensor, dict[str, Tensor]]], group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    adamw(
        [parameter for parameter, _ in dense],
        [parameter.grad for parameter, _ in dense if parameter.grad is not None],
        [state["exp_avg"] for _, state in dense],
        [state["exp_avg_sq"] for _, state in dense],
        [],
        [state["step"] for _, state in dense],
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def takes_sparse_gradients(optimizer: Optimizer) -> bool:
    """Return whether an optimizer can step on sparse gradients as it is configured."""
    if isinstance(optimizer, LazyAdamW):
        return True
    reads_all = any(g.get("weight_decay") or g.get("momentum") for g in optimizer.param_groups)
    return isinstance(optimizer, (SGD, Adagrad, SparseAdam)) and not reads_all


def _meets_dense_gradients(model: Recommender, optimizer: Optimizer) -> bool:
    """Return whether SparseAdam, which takes no dense gradient, would meet one."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse}
    others = any(id(p) not in tables for p in model.parameters())
    return isinstance(optimizer, SparseAdam) and others


def check_gradients(model: Recommender, optimizer: Optimizer, backend: str | None = None) -> None:
    """Refuse an optimizer that does not fit the gradients of a model.

    Args:
        model: a built model.
        optimizer: its optimizer.
        backend: what exchanges gradients between processes, None in a single one.

    Raises:
        ConfigError: gradients are sparse and the optimizer, the processes' backend or sharded
            tables need dense ones; or they are dense, so that a lazy optimizer saves nothing.
    """
    name, used = type(model).__name__, type(optimizer).__name__
    off = "set `model.init_args.sparse_gradients` to false"
    if not model.sparse_gradients:
        if isinstance(optimizer, LazyAdamW):
            remedy = "set `model.init_args.sparse_gradients` to true, or use torch.optim.AdamW"
            whole = "it reads its whole tables in every step; use torch.optim.AdamW"
            raise ConfigError(
                f"`optimizer` is {used}, but the gradients of {name} are dense, so it would update "
                f"every row: {remedy if model.row_wise else whole}."
            )
        return
    if not model.row_wise:
        raise ConfigError(
            f"`sparse_gradients` of {name}: it reads its whole tables in every step, so their "
            f"gradients are dense; {off}."
        )
    if _meets_dense_gradients(model, optimizer):
        raise ConfigError(
            f"SparseAdam cannot train {name}, which has parameters besides its tables: use "
            "llmrec_pl.optimizers.LazyAdamW."
        )
    if not takes_sparse_gradients(optimizer):
        raise ConfigError(
            f"`sparse_gradients` of {name} needs an optimizer that takes them, `optimizer` is "
            f"{used}: use llmrec_pl.optimizers.LazyAdamW (or torch's SparseAdam, or SGD or Adagrad "
            f"without momentum and decay), or {off}."
        )
    if backend == "nccl":
        raise ConfigError(
            f"`sparse_gradients` of {name}: NCCL cannot sum sparse gradients over processes; train "
            f"on one device, or {off}."
        )
    if model.device_mesh is not None:
        raise ConfigError(f"`sparse_gradients` of {name}: sharded tables have dense ones; {off}.")


def process_backend() -> str | None:
    """Return what exchanges gradients between several processes; None in a single one."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return distributed.get_backend() if distributed.get_world_size() > 1 else None


def clip_sparse(parameters: Iterable[Tensor], limit: float, algorithm: str | None) -> None:
    """Clip gradients of which some are sparse, as torch does dense ones, without making any dense.

    Args:
        parameters: those without a gradient are left out.
        limit: of the norm of all gradients together, or of each number.
        algorithm: "norm" (the default) or "value".
    """
    numbers = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            numbers.append(parameter.grad.values())
        elif parameter.grad is not None:
            numbers.append(parameter.grad)
    if algorithm == "value":
        for values in numbers:
            values.clamp_(-limit, limit)
        return
    scale = (limit / (nn.utils.get_total_norm(numbers) + 1e-6)).clamp(max=1.0)
    for values in numbers:
        values.mul_(scale)
