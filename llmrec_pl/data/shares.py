"""Which part of the batches is this process's: known before processes meet, and without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import lightning as L


class Share(NamedTuple):
    """One part of several.

    Attributes:
        size: number of parts.
        rank: which one, from 0.
    """

    size: int
    rank: int


def batch_share(trainer: L.Trainer | None) -> Share:
    """Return how many different batches a step has, and which one this process works on.

    One a process, except where processes hold parts of the same tables: these share a batch.
    """
    if trainer is None:
        return Share(1, 0)
    replicas = trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
    return Share(replicas["num_replicas"], replicas["rank"])
