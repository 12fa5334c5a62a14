"""Which user-item edges of an augmentation cannot be right for a data set; pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from llmrec_pl.errors import AugmentationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from llmrec_pl.data.dataset import InteractionDataset

Reason = Literal["unknown_user", "unknown_item", "same_item", "negative_in_train"]
REASONS: tuple[Reason, ...] = get_args(Reason)
COLUMNS = ("user", "pos", "neg")

_SENTENCES: dict[Reason, str] = {
    "unknown_user": "name a user outside the data set",
    "unknown_item": "name an item outside the catalogue",
    "same_item": "have the same item as positive and negative",
    "negative_in_train": "have a negative that the user has in train",
}


def check_edge_arrays(tensors: Mapping[str, NDArray[Any]], where: object) -> NDArray[np.int64]:
    """Stack the three columns of a pairs file.

    Returns:
        User, positive and negative item, int64 ``[3, n]``.

    Raises:
        AugmentationError: a column is missing, or types or lengths are wrong.
    """
    given = {name: (str(t.dtype), list(t.shape)) for name, t in sorted(tensors.items())}
    columns = [tensors.get(name) for name in COLUMNS]
    arrays = [c for c in columns if c is not None and c.dtype == np.int64 and c.ndim == 1]
    if len(arrays) != len(COLUMNS) or len(tensors) != len(COLUMNS) or len({*map(len, arrays)}) != 1:
        raise AugmentationError(
            f"{str(where)!r} holds {given}; expected {list(COLUMNS)}, each int64 [n] of one "
            "length. Export the augmentation again."
        )
    return np.stack(arrays)


def _in_train(
    users: NDArray[np.int64], items: NDArray[np.int64], dataset: InteractionDataset
) -> NDArray[np.bool_]:
    """Say for each pair of valid ids whether it is a train interaction, ``[n]``."""
    train = dataset.train
    rows = np.repeat(np.arange(dataset.n_users, dtype=np.int64), np.diff(train.indptr))
    keys = rows * dataset.n_items + train.indices  # sorted, as the matrix is
    wanted = users * dataset.n_items + items
    at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    found: NDArray[np.bool_] = keys[at] == wanted if len(keys) else np.zeros(len(users), dtype=bool)
    return found


def invalid_edges(
    edges: NDArray[np.int64], dataset: InteractionDataset
) -> dict[Reason, NDArray[np.bool_]]:
    """Find the edges that cannot be right, each under the first reason that applies.

    A positive that is already a train positive is allowed: it adds weight, nothing false.
    Validation and test are not looked at.

    Args:
        edges: dense ids of user, positive and negative item, ``[3, n]``.
        dataset: the data set.

    Returns:
        For each reason that occurs, True at its edges ``[n]``; no edge is under two reasons.
    """
    user, pos, neg = edges
    unknown_user = (user < 0) | (user >= dataset.n_users)
    unknown_item = (np.minimum(pos, neg) < 0) | (np.maximum(pos, neg) >= dataset.n_items)
    known = ~(unknown_user | unknown_item)
    seen = np.zeros(edges.shape[1], dtype=bool)
    seen[known] = _in_train(user[known], neg[known], dataset)
    masks = dict(zip(REASONS, (unknown_user, unknown_item, pos == neg, seen), strict=True))
    found: dict[Reason, NDArray[np.bool_]] = {}
    taken = np.zeros(edges.shape[1], dtype=bool)
    for reason, mask in masks.items():
        if (mask & ~taken).any():
            found[reason] = mask & ~taken
        taken |= mask
    return found


def positives_in_train(edges: NDArray[np.int64], dataset: InteractionDataset) -> NDArray[np.bool_]:
    """Say for each valid edge whether its positive is a train interaction already, ``[n]``."""
    return _in_train(edges[0], edges[1], dataset)


def raise_for_edges(
    found: Mapping[Reason, NDArray[np.bool_]],
    edges: NDArray[np.int64],
    dataset: InteractionDataset,
    where: object,
) -> None:
    """Raise if any edge is invalid, counting them by reason and showing the first of each.

    Raises:
        AugmentationError: `found` is not empty.
    """
    if not found:
        return
    parts = []
    for reason, mask in found.items():
        row = int(np.argmax(mask))
        user, pos, neg = (int(i) for i in edges[:, row])
        shown = (
            f"user {_name(user, dataset.user_ids)}, positive {_name(pos, dataset.item_ids)}, "
            f"negative {_name(neg, dataset.item_ids)}"
        )
        parts.append(f"{int(mask.sum())} {_SENTENCES[reason]} (first: edge {row}, {shown})")
    raise AugmentationError(
        f"{sum(int(m.sum()) for m in found.values())} of {edges.shape[1]} edges in {str(where)!r} "
        f"do not fit {dataset.name!r}: {'; '.join(parts)}. Export the augmentation again, or "
        "leave such edges out with `invalid=drop`, which counts them."
    )


def _name(dense: int, ids: NDArray[np.str_]) -> str:
    """Show an original id; a dense id outside the table is shown as such."""
    return repr(str(ids[dense])) if 0 <= dense < len(ids) else f"number {dense} of {len(ids)}"
