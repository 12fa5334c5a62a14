"""Embedding tables split by row over processes, on Lightning's `ModelParallelStrategy`.

Parameters are PyTorch's DTensors: each process holds, updates and keeps optimizer state for its
rows alone. Checkpoints are whole files, which any number of processes reads. Models need not know:
a look-up fetches rows, and ``embedding.weight`` gathers the table for those that read all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from llmrec_pl.checkpoints import read_checkpoint
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.layers import EmbeddingTable

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.optim import Optimizer


class RowShardedEmbedding(nn.Embedding):
    """An embedding table of which each process holds some rows; made by `shard_tables`.

    All processes that share the table must ask for the same rows at the same time.
    """

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The whole table ``[n, d]``, gathered at each access, with gradient."""
        return self.rows.full_tensor()

    @property
    def rows(self) -> DTensor:
        """The parameter; `to_local` gives this process's rows."""
        parameter = self._parameters["weight"]
        assert isinstance(parameter, DTensor)
        return parameter

    def forward(self, ids: Tensor) -> Tensor:
        """Look rows up ``[..., d]``; communicates as many numbers as it returns."""
        # DTensor's own look-up gives every process a gradient of the whole table.
        table = self.rows
        local = table.to_local()
        place = ids - _first_row(table)
        inside = (place >= 0) & (place < len(local))
        found = F.embedding(place * inside, local) * inside.unsqueeze(-1)
        partial = DTensor.from_local(found, table.device_mesh, [Partial()], run_check=False)
        return partial.full_tensor()


def _first_row(table: DTensor) -> int:
    # `Shard` cuts as `torch.chunk` does.
    size = table.device_mesh.size()
    return table.device_mesh.get_local_rank() * -(-len(table) // size)


def shard_tables(model: nn.Module, mesh: DeviceMesh) -> None:
    """Split the embedding tables of a built model by row; a second call does nothing.

    Every process must have built the same weights. All other parameters stay whole, as do tables
    with too few rows to give each process one, or with `padding_idx` or `max_norm`.

    Args:
        model: its `nn.Embedding` modules are changed in place.
        mesh: one-dimensional: the processes that share the tables.

    Raises:
        ConfigError: there is no table to split.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding) and _can_split(module, mesh.size()):
            rows = distribute_tensor(module.weight.data, mesh, [Shard(0)], src_data_rank=None)
            local = DTensor.from_local(
                rows.to_local().clone(),  # a view would keep the whole table in memory
                mesh,
                [Shard(0)],
                run_check=False,
                shape=rows.shape,
                stride=rows.stride(),
            )
            module.register_parameter("weight", nn.Parameter(local))
            module.__class__ = RowShardedEmbedding
    if not any(isinstance(module, RowShardedEmbedding) for module in model.modules()):
        raise ConfigError(
            f"{type(model).__name__} has no embedding table that {mesh.size()} processes could "
            "split by row; drop `trainer.strategy` or use `ddp`."
        )


def _can_split(table: nn.Embedding, size: int) -> bool:
    n_rows = table.num_embeddings
    # No subclass that looks rows up in a way of its own.
    plain = type(table) in (nn.Embedding, EmbeddingTable)
    plain = plain and table.padding_idx is None and table.max_norm is None
    return plain and (size - 1) * -(-n_rows // size) < n_rows


def clip_sharded(parameters: Iterable[Tensor], limit: float, algorithm: str | None) -> None:
    """Clip gradients of which some are sharded; PyTorch takes all of them so, or none.

    Args:
        parameters: those without a gradient are left out.
        limit: of the norm of all gradients of all processes together, or of each number.
        algorithm: "norm" (the default) or "value".
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    local = [_local(gradient) for gradient in gradients]
    if algorithm == "value":
        for part in local:
            part.clamp_(-limit, limit)
        return
    norms = [full(torch.linalg.vector_norm(gradient)) for gradient in gradients]
    scale = (limit / (torch.stack(norms).norm() + 1e-6)).clamp(max=1.0)
    for part in local:
        part.mul_(scale)


def full(tensor: Tensor) -> Tensor:
    """Return a tensor whole; every process that holds a part of it must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def _apart(optimizer: Optimizer) -> Iterator[None]:
    """Let an optimizer step on sharded and on whole parameters, of which kernels take no mixture.

    Afterwards its groups are those of one process, and so are checkpoints.
    """

    def of_kind(group: dict[str, Any], sharded: bool) -> dict[str, Any]:
        return {
            **group,
            "params": [p for p in group["params"] if isinstance(p, DTensor) is sharded],
        }

    groups = optimizer.param_groups
    parts = [of_kind(group, sharded) for group in groups for sharded in (True, False)]
    optimizer.param_groups = [part for part in parts if part["params"]]
    try:
        yield
    finally:
        optimizer.param_groups = groups


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class RowShardedStrategy(ModelParallelStrategy):
    """Splits embedding tables by row within a group of processes; several groups split batches.

    The processes of a group work on the same batch, each with its rows of the tables, and leave
    the numbers of one process. Groups are data-parallel: each has a batch of its own, and
    gradients are averaged over them. Gradients are dense; precision is at most 32 bit.

    Args:
        data_parallel_size: number of groups; "auto" makes one a node.
        tensor_parallel_size: processes a group; "auto" takes all of a node.
        process_group_backend: as for Lightning's strategies.

    Raises:
        ConfigError: the sizes do not multiply to the number of processes; by `set_world_ranks`.
    """

    def __init__(
        self,
        data_parallel_size: Literal["auto"] | int = "auto",
        tensor_parallel_size: Literal["auto"] | int = "auto",
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            data_parallel_size,
            tensor_parallel_size,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
        )

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        """Number of groups and this process's; known before the processes meet."""
        size = self._group_size()
        return {"num_replicas": self.world_size // size, "rank": self.global_rank // size}

    def set_world_ranks(self) -> None:
        """Take the numbers of nodes and devices, and hold the sizes against them."""
        super().set_world_ranks()
        size, n = self._group_size(), self.num_nodes * self.num_processes
        groups = self.num_nodes if self._data_parallel_size == "auto" else self._data_parallel_size
        if groups * size != n:
            raise ConfigError(
                f"`data_parallel_size` ({groups}) times `tensor_parallel_size` ({size}) must be "
                f"the number of processes, {n}; see `--trainer.devices` and `--trainer.num_nodes`."
            )

    def _group_size(self) -> int:
        size = self._tensor_parallel_size
        return self.num_processes if size == "auto" else int(size)

    def batch_to_device(
        self,
        batch: Any,  # noqa: ANN401
        device: torch.device | None = None,
        dataloader_idx: int = 0,
    ) -> Any:  # noqa: ANN401
        """Split the users that a group looks up among its processes, which rank them."""
        moved = super().batch_to_device(batch, device, dataloader_idx)
        assert self.lightning_module is not None
        if self.lightning_module.trainer.state.stage == RunningStage.TRAINING:
            return moved
        size = self._group_size()
        users = moved["user"]
        return {"user": users[self.global_rank % size :: size], "group_user": users}

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average gradients over the groups."""
        groups = self.device_mesh["data_parallel"]
        assert self.model is not None
        for parameter in self.model.parameters() if groups.size() > 1 else ():
            if parameter.grad is not None:
                local = _local(parameter.grad)
                torch.distributed.all_reduce(local, group=groups.get_group())
                local.div_(groups.size())

    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        model: Any = None,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Update sharded and whole parameters apart."""
        with _apart(optimizer):
            return super().optimizer_step(optimizer, closure, model, **kwargs)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:  # noqa: ANN401
        """Refuse a checkpoint of other data or settings before any tensor is copied."""
        assert self.lightning_module is not None
        self.lightning_module.on_load_checkpoint(read_checkpoint(checkpoint_path, mmap=True))
        assert self.model is not None
        for optimizer in self.optimizers:
            with _apart(optimizer):
                get_optimizer_state_dict(self.model, optimizer)  # makes a state to load into
        return super().load_checkpoint(checkpoint_path, weights_only)
